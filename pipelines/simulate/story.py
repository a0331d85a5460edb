"""Four users of every simulated world whose reputation is easy to follow by hand.

driver-ada drives in two cities. She has good ratings except for one, is suspended for it, drives while suspended, is
reinstated, and the bad rating is retracted. seller-grace has only good ratings. seller-mallory is suspended and never
reinstated. seller-heidi has good ratings until ten strangers who never bought from her give her one star each within
an hour.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipelines.contract.schema import EVENT

_DAY_US = 86_400_000_000
_LENGTH_DAYS = 21
STORY_IDS = 96
"""Ids that the story needs, at most."""
BOMBED_USER = "seller-heidi"
"""The only user of the story that an anomaly trend should report."""


def story(end_us: int, length_us: int, ids: pa.Array) -> pa.Table:
    """Return the story's events (EVENT columns) within the last three weeks, or `length_us` if that is less.

    `ids` are the ids of its events and transactions; STORY_IDS of them suffice.
    """
    builder = _StoryBuilder(end_us, min(length_us // _LENGTH_DAYS, _DAY_US), iter(ids.to_pylist()))
    _add_ada(builder)
    _add_grace(builder)
    _add_mallory(builder)
    _add_heidi(builder)
    return pa.Table.from_pylist(builder.rows, schema=EVENT)


class _StoryBuilder:
    def __init__(self, end_us: int, day_us: int, ids: Iterator[str]) -> None:
        self._end_us = end_us
        self._day_us = day_us
        self._ids = ids
        self.rows: list[dict[str, Any]] = []

    def add(self, days_before_end: float, user_id: str, action_type: str, **metadata: str) -> str:
        """Add an event; return its id."""
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

    def within_a_day(self, days_before_end: float, days: float) -> float:
        """Return when to begin what lasts some days, in days before the end: earlier if it would span midnight."""
        begin_us = self._end_us - int(days_before_end * self._day_us)
        spans_midnight = begin_us // _DAY_US < (begin_us + int(days * self._day_us)) // _DAY_US
        return days_before_end + days if spans_midnight else days_before_end

    def add_rated_transaction(
        self, days_before_end: float, user_id: str, action_type: str, rating: int, rater_id: str, city: str
    ) -> str:
        """Add a transaction in a city and, half an hour later, its rating; return the rating's id."""
        transaction = {"transaction_id": next(self._ids), "city": city}
        self.add(days_before_end, user_id, "TransactionCompleted", **transaction)
        entries = {"rating": str(rating), "rater_id": rater_id, **transaction}
        return self.add(days_before_end - 0.02, user_id, action_type, **entries)


def _add_ada(builder: _StoryBuilder) -> None:
    for day, rating, rider in ((20, 5, "rider-bob"), (19, 5, "rider-cyd"), (18, 4, "rider-eve"), (17, 5, "rider-bob")):
        builder.add_rated_transaction(day, "driver-ada", "DriverRated", rating, rider, "berlin")
    bad_rating = builder.add_rated_transaction(16, "driver-ada", "DriverRated", 1, "rider-dan", "berlin")
    builder.add_rated_transaction(15, "driver-ada", "DriverRated", 5, "rider-cyd", "berlin")
    builder.add(12, "driver-ada", "AccountSuspended", reason="disputed_rating")
    builder.add_rated_transaction(11, "driver-ada", "DriverRated", 5, "rider-eve", "berlin")
    builder.add(9, "driver-ada", "AccountReinstated", reason="disputed_rating")
    builder.add(8, "driver-ada", "RatingRetracted", target_event_id=bad_rating)
    for day, rating, rider in ((6, 5, "rider-bob"), (4, 5, "rider-eve"), (2, 4, "rider-cyd"), (1, 5, "rider-bob")):
        builder.add_rated_transaction(day, "driver-ada", "DriverRated", rating, rider, "lima")


def _add_grace(builder: _StoryBuilder) -> None:
    for day, rating, buyer in ((18, 5, "buyer-ann"), (14, 4, "buyer-joe"), (10, 5, "buyer-kim"), (3, 5, "buyer-ann")):
        builder.add_rated_transaction(day, "seller-grace", "ReviewPosted", rating, buyer, "lagos")


def _add_mallory(builder: _StoryBuilder) -> None:
    for day, rating, buyer in ((13, 2, "buyer-ann"), (12, 1, "buyer-joe"), (7, 1, "buyer-kim")):
        builder.add_rated_transaction(day, "seller-mallory", "ReviewPosted", rating, buyer, "lima")
    builder.add(6, "seller-mallory", "AccountSuspended", reason="fraud")


def _add_heidi(builder: _StoryBuilder) -> None:
    for day, rating, buyer in ((19, 5, "buyer-kim"), (16, 5, "buyer-joe"), (12, 4, "buyer-ann"), (9, 5, "buyer-joe")):
        builder.add_rated_transaction(day, BOMBED_USER, "ReviewPosted", rating, buyer, "berlin")
    begin = builder.within_a_day(5, 10 / 240)  # trends count by days
    for number in range(10):
        entries = {"rating": "1", "rater_id": f"stranger-{number}", "city": "berlin"}
        builder.add(begin - number / 240, BOMBED_USER, "ReviewPosted", **entries)
    for day, rating, buyer in ((4, 5, "buyer-kim"), (2, 5, "buyer-ann"), (1, 4, "buyer-joe")):
        builder.add_rated_transaction(day, BOMBED_USER, "ReviewPosted", rating, buyer, "berlin")
