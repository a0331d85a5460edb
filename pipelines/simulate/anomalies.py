"""Anomalies planted in a simulated world, with the ground truth that anomaly trends are measured against.

There are four kinds: a review bomb, a rater's burst, a ring of users who rate each other, a drift of a user's ratings;
and two benign changes that look similar: a busy day and a popular newcomer. All functions are pure: each takes a world
(EVENT columns) and a generator and returns a changed world.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contract.schema import EVENT, METADATA
from pipelines.simulate.world import DAY_US, HOUR_US, Integers, microseconds, random_ids

_RATED = ("DriverRated", "ReviewPosted")
_MIN_RATINGS_BEFORE = 30
_MIN_RATINGS_AFTER = 25
"""Ratings of a user before and after the start of a drift."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A planted anomaly: the users that an alarm should name, and its days [first_day, last_day]."""

    user_ids: frozenset[str]
    first_day: date
    last_day: date


def plant_review_bomb(rng: np.random.Generator, world: pa.Table, ratings: int) -> tuple[pa.Table, Anomaly]:
    """Add `ratings` of one or two stars for one user, from new raters, within six hours."""
    begin = _random_day(rng, world) + 12 * HOUR_US
    user_id = str(rng.choice(_rated_users(world)))
    times = begin + rng.integers(0, 6 * HOUR_US, ratings)
    raters = [f"stranger-{number:06d}" for number in rng.choice(10**6, ratings, replace=False)]
    added = _ratings(rng, [user_id] * ratings, raters, rng.integers(1, 3, ratings), times)
    return _merge(world, added), _planted({user_id}, times)


def plant_rater_burst(rng: np.random.Generator, world: pa.Table, ratings: int) -> tuple[pa.Table, Anomaly]:
    """Add `ratings` by one existing rater within one hour, far above the usual rate."""
    begin = _random_day(rng, world) + 12 * HOUR_US
    rater_id = str(rng.choice(np.array(sorted(set(_metadata(world, "rater_id"))))))
    users = rng.choice(_rated_users(world), ratings)
    times = begin + rng.integers(0, HOUR_US, ratings)
    added = _ratings(rng, list(users), [rater_id] * ratings, rng.integers(1, 6, ratings), times)
    return _merge(world, added), _planted({rater_id}, times)


def plant_ring(rng: np.random.Generator, world: pa.Table, members: int, rounds: int) -> tuple[pa.Table, Anomaly]:
    """Let `members` rated users all give each other five stars, `rounds` times within 30 days."""
    users = rng.choice(_rated_users(world), members, replace=False)
    pairs = [(user, rater) for user in users for rater in users if user != rater] * rounds
    times = _random_day(rng, world) - rng.integers(0, 30 * DAY_US, len(pairs))
    times = np.maximum(times, microseconds(world)[0])
    rated, raters = map(list, zip(*pairs, strict=True))
    added = _ratings(rng, rated, raters, np.full(len(pairs), 5), times)
    return _merge(world, added), _planted(set(map(str, users)), times)


def plant_drift(rng: np.random.Generator, world: pa.Table, share: float) -> tuple[pa.Table, Anomaly]:
    """Lower a `share` (0 to 1) of one user's ratings by two stars from a random rating on, never below one star."""
    rows = _ratings_of_drift_candidate(rng, world)
    later = rows[rng.integers(_MIN_RATINGS_BEFORE, len(rows) - _MIN_RATINGS_AFTER + 1) :]
    lowered = later[rng.uniform(0, 1, len(later)) < share]
    metadata = world["metadata"].to_pylist()
    for row in lowered:
        entries = dict(metadata[row])
        metadata[row] = list({**entries, "rating": str(max(1, int(entries["rating"]) - 2))}.items())
    place = world.schema.get_field_index("metadata")
    user_id = world["user_id"][int(later[0])].as_py()
    changed = world.set_column(place, EVENT.field(place), pa.array(metadata, METADATA))
    return changed, _planted({user_id}, microseconds(world)[later])


def add_busy_day(rng: np.random.Generator, world: pa.Table, factor: int) -> pa.Table:
    """Multiply the ratings of one day by `factor`, with the usual raters and stars, as on a holiday."""
    begin = _random_day(rng, world)
    when = microseconds(world)
    ratings = world.filter(pa.array(_is_rating(world) & (when >= begin) & (when < begin + DAY_US)))
    more = ratings.take(pa.array(rng.integers(0, len(ratings), len(ratings) * (factor - 1))))
    return _merge(
        world, _typical_ratings(rng, world, more["user_id"].to_pylist(), begin + rng.integers(0, DAY_US, len(more)))
    )


def add_newcomer(rng: np.random.Generator, world: pa.Table, ratings_per_day: int) -> pa.Table:
    """Add a new driver with many ratings per day for the last twenty days; their stars are the usual ones."""
    end = int(microseconds(world)[-1])
    times = end - rng.integers(0, 20 * DAY_US, 20 * ratings_per_day)
    return _merge(world, _typical_ratings(rng, world, ["driver-newcomer"] * len(times), times))


def _typical_ratings(rng: np.random.Generator, world: pa.Table, users: list[str], times: Integers) -> pa.Table:
    """Return ratings whose raters and stars are drawn from the ratings of the world."""
    raters, stars = (np.array(_metadata(world, key)) for key in ("rater_id", "rating"))
    drawn = rng.integers(0, len(stars), len(users))
    return _ratings(rng, users, list(raters[rng.permutation(drawn)]), stars[drawn].astype(np.int64), times)


def _ratings_of_drift_candidate(rng: np.random.Generator, world: pa.Table) -> Integers:
    """Return the row numbers of all ratings of a user with enough of them for a drift: shape (ratings,), int64."""
    ratings = np.flatnonzero(_is_rating(world))
    users = world["user_id"].to_numpy()[ratings].astype(str)
    names, counts = np.unique(users, return_counts=True)
    chosen = rng.choice(names[counts >= _MIN_RATINGS_BEFORE + _MIN_RATINGS_AFTER])
    return ratings[users == chosen]


def _rated_users(world: pa.Table) -> npt.NDArray[np.str_]:
    return np.unique(world["user_id"].to_numpy()[_is_rating(world)].astype(str))


def _is_rating(world: pa.Table) -> npt.NDArray[np.bool_]:
    return np.isin(world["action_type"].to_numpy().astype(str), _RATED)


def _metadata(world: pa.Table, key: str) -> list[str]:
    return [value for entries in world["metadata"].to_pylist() for name, value in entries if name == key]


def _random_day(rng: np.random.Generator, world: pa.Table) -> int:
    """Return midnight UTC, in microseconds, of a random day in the last two thirds of the world, except the last."""
    times = microseconds(world)
    first, last = int(times[0]) // DAY_US, int(times[-1]) // DAY_US
    return int(rng.integers(first + (last - first) // 3, last)) * DAY_US


def _ratings(
    rng: np.random.Generator, users: list[str], raters: list[str], stars: Integers, times: Integers
) -> pa.Table:
    """Return EVENT columns of ratings: DriverRated for drivers, ReviewPosted for other users."""
    rows = [
        {
            "event_id": event_id,
            "user_id": user_id,
            "action_type": "DriverRated" if user_id.startswith("driver") else "ReviewPosted",
            "event_time": int(time),
            "metadata": [("rating", str(star)), ("rater_id", rater_id)],
        }
        for event_id, user_id, rater_id, star, time in zip(
            random_ids(rng, len(users)).to_pylist(), users, raters, stars, times, strict=True
        )
    ]
    return pa.Table.from_pylist(rows, EVENT)


def _merge(world: pa.Table, added: pa.Table) -> pa.Table:
    both = pa.concat_tables([world, added]).combine_chunks()
    return both.take(pa.array(np.argsort(microseconds(both), kind="stable")))


def _planted(user_ids: set[str], times: Integers) -> Anomaly:
    return Anomaly(frozenset(user_ids), _day(times.min()), _day(times.max()))


def _day(time_us: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(time_us))).date()
