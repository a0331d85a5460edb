"""Random histories with many edge cases: ties, window bounds, bad numbers, retractions without a target."""

from hypothesis import settings
from hypothesis import strategies as st

from tests.reputation.history import DAY, NOW, Event
from tests.share import count

FEWER = settings(max_examples=count(2, 20))
"""For properties whose examples each derive several times, in a second or more."""
ONE = settings(max_examples=count(1, 20))
"""For properties of stories, each of several refreshes, publications and rebuilds; every run has another story."""

USERS = ("ann", "bob", "")
RATINGS = (
    "1",
    "2",
    "3",
    "5",
    "4.5",
    "0",
    "-10",
    "10",
    "+4",
    "05",
    "6",
    " 5",
    "5\n",
    "",
    "five",
    "1e1",
    "5.0000001",
    "4.50000000",
    "0.0000000",
    "1000000",
    "-999999999999.999999",
)
AMOUNTS = ("1", "0.01", "99.99", "100.00", "100.01", "-1", "1.005", "0.250000000", "much", "1000000", "999999999999")
CITIES = ("berlin", "'; -- \x1b[2J", "", "é" * 100, "é" * 101)
EDGES = tuple(NOW - days * DAY + shift for days in (0, 1, 7, 30, 90, 365) for shift in (-1, 0, 1))
TIES = tuple(NOW - DAY // 2 + shift for shift in range(4))
EVENT_IDS = tuple(f"e{i:02}" for i in range(16))


def times() -> st.SearchStrategy[int]:
    """Return times that often tie and are often at the edge of a window, of a day, or of as_of."""
    return st.sampled_from(TIES) | st.sampled_from(EDGES) | st.integers(NOW - 40 * DAY, NOW + DAY)


def metadata() -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "rating": st.sampled_from(RATINGS),
            "amount": st.sampled_from(AMOUNTS),
            "target_event_id": st.sampled_from(EVENT_IDS[:5]),
            "rater_id": st.sampled_from(("rita", "rob", *USERS[:2])),
            "ride_id": st.sampled_from(("r1", "r2", "r3")),
            "city": st.sampled_from(CITIES),
        },
    )


def histories(*action_types: str, max_size: int = 16) -> st.SearchStrategy[list[Event]]:
    """Return events with distinct ids, in any order, of these action types and one that no policy knows.

    There are at least three: the first example of Hypothesis would otherwise be spent on an empty history.
    """
    event_ids = st.permutations(EVENT_IDS[:max_size])
    bodies = st.lists(
        st.tuples(st.sampled_from(USERS), st.sampled_from((*action_types, "Unknown")), times(), metadata()),
        max_size=max_size,
    )
    events = st.builds(lambda ids, rows: [Event(i, *row) for i, row in zip(ids, rows, strict=False)], event_ids, bodies)
    return events.filter(lambda found: len(found) > 2)
