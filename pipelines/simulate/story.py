"""Four people whose reputation is easy to follow by hand, in every simulated world.

driver-ada is rated well but for one ride, suspended over it, drives on while suspended, is reinstated, disputes the bad
rating, and it is retracted. seller-grace has an uneventful life. seller-mallory is suspended and stays so.
seller-heidi sells in peace until ten strangers who never bought from her give her one star each within an hour.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipelines.contract.schema import EVENT

_DAY_US = 86_400_000_000
_LENGTH_DAYS = 21
STORY_IDS = 96
BOMBED = "seller-heidi"
"""The one user of the story whom an anomaly trend should name."""


def story(end_us: int, length_us: int, ids: pa.Array) -> pa.Table:
    """Return the story's events (EVENT columns); it takes the last three weeks, or `length_us` if that is less.

    `ids` name its events and transactions; STORY_IDS are enough.
    """
    teller = _Teller(end_us, min(length_us // _LENGTH_DAYS, _DAY_US), iter(ids.to_pylist()))
    _tell_of_ada(teller)
    _tell_of_grace(teller)
    _tell_of_mallory(teller)
    _tell_of_heidi(teller)
    return pa.Table.from_pylist(teller.rows, schema=EVENT)


class _Teller:
    def __init__(self, end_us: int, day_us: int, ids: Iterator[str]) -> None:
        self._end_us = end_us
        self._day_us = day_us
        self._ids = ids
        self.rows: list[dict[str, Any]] = []

    def tell(self, days_before_end: float, user_id: str, action_type: str, **metadata: str) -> str:
        """Add one event; return its id."""
        event_id = next(self._ids)
        event_time = self._end_us - int(days_before_end * self._day_us)
        self.rows.append(
            {
                "event_id": event_id,
                "user_id": user_id,
                "action_type": action_type,
                "event_time": event_time,
                "metadata": list(metadata.items()),
            }
        )
        return event_id

    def tell_rated(self, days_before_end: float, user_id: str, action_type: str, rating: int, rater_id: str) -> str:
        """Add a transaction and, half an hour later, its rating; return the rating's id."""
        transaction_id = next(self._ids)
        self.tell(days_before_end, user_id, "TransactionCompleted", transaction_id=transaction_id)
        entries = {"rating": str(rating), "rater_id": rater_id, "transaction_id": transaction_id}
        return self.tell(days_before_end - 0.02, user_id, action_type, **entries)


def _tell_of_ada(teller: _Teller) -> None:
    for day, rating, rider in ((20, 5, "rider-bob"), (19, 5, "rider-cyd"), (18, 4, "rider-eve"), (17, 5, "rider-bob")):
        teller.tell_rated(day, "driver-ada", "DriverRated", rating, rider)
    bad_rating = teller.tell_rated(16, "driver-ada", "DriverRated", 1, "rider-dan")
    teller.tell_rated(15, "driver-ada", "DriverRated", 5, "rider-cyd")
    teller.tell(12, "driver-ada", "AccountSuspended", reason="disputed_rating")
    teller.tell_rated(11, "driver-ada", "DriverRated", 5, "rider-eve")
    teller.tell(9, "driver-ada", "AccountReinstated", reason="disputed_rating")
    teller.tell(8, "driver-ada", "RatingRetracted", target_event_id=bad_rating)
    for day, rating, rider in ((6, 5, "rider-bob"), (4, 5, "rider-eve"), (2, 4, "rider-cyd"), (1, 5, "rider-bob")):
        teller.tell_rated(day, "driver-ada", "DriverRated", rating, rider)


def _tell_of_grace(teller: _Teller) -> None:
    for day, rating, buyer in ((18, 5, "buyer-ann"), (14, 4, "buyer-joe"), (10, 5, "buyer-kim"), (3, 5, "buyer-ann")):
        teller.tell_rated(day, "seller-grace", "ReviewPosted", rating, buyer)


def _tell_of_mallory(teller: _Teller) -> None:
    for day, rating, buyer in ((13, 2, "buyer-ann"), (12, 1, "buyer-joe"), (7, 1, "buyer-kim")):
        teller.tell_rated(day, "seller-mallory", "ReviewPosted", rating, buyer)
    teller.tell(6, "seller-mallory", "AccountSuspended", reason="fraud")


def _tell_of_heidi(teller: _Teller) -> None:
    for day, rating, buyer in ((19, 5, "buyer-kim"), (16, 5, "buyer-joe"), (12, 4, "buyer-ann"), (9, 5, "buyer-joe")):
        teller.tell_rated(day, BOMBED, "ReviewPosted", rating, buyer)
    for number in range(10):
        entries = {"rating": "1", "rater_id": f"stranger-{number}"}
        teller.tell(5 - number / 240, BOMBED, "ReviewPosted", **entries)
    for day, rating, buyer in ((4, 5, "buyer-kim"), (2, 5, "buyer-ann"), (1, 4, "buyer-joe")):
        teller.tell_rated(day, BOMBED, "ReviewPosted", rating, buyer)
