"""A simulated community: drivers and riders of three cities who rate each other, and a ring that rates itself up.

In the world of `world.py` riders are never rated, so trust ends at the drivers; here it can return to the riders. Pure
and vectorized; the result depends only on the arguments and the generator.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from pipelines.contract.schema import TIMESTAMP
from pipelines.errors import UsageError
from pipelines.simulate.world import DAY_US, Integers, Numbers, random_ids

CITIES = ("berlin", "lagos", "lima")
"""The city of a driver or rider is that of the number in the name, modulo three: rides do not leave a city."""

_MIN_RIDES = 500
_DRIVERS, _RIDERS = 60, 240
_RING_DRIVERS, _RING_RIDERS = 3, 9
"""Members of the ring: the first drivers and riders, all of one city."""
_SEEDS = 6
_RIDE_RATING_SHARE, _RIDER_RATING_SHARE = 0.9, 0.7
"""Shares of rides after which the rider rates the driver, and the driver the rider."""
_RING_ROUNDS = 8
"""Ratings by each member of the ring of each member of the other kind."""


@dataclass(frozen=True, slots=True)
class Community:
    """Ratings of a community, and the ground truth of the ring in it."""

    ratings: pa.Table
    """Columns event_id, user_id, action_type (DriverRated or RiderRated), event_time (microseconds, UTC), rating (1 to
    5), rater_id and city; ordered by event_time, each rating once."""
    ring: frozenset[str]
    """Drivers and riders who rate each other five stars; riders outside it rate its drivers two stars or less."""
    seeds: tuple[str, ...]
    """Riders outside the ring, two of each city: whom an operator would know, as seeds of trust."""


def simulate_community(seed: int, rides: int, days: int, end: datetime) -> Community:
    """Generate the ratings of `rides` rides (at least 500) in the `days` before `end`, and those of a ring.

    Equal arguments give equal ratings, and any other argument other event_ids; no rating is later than `end`.
    Raises UsageError for invalid arguments.
    """
    if rides < _MIN_RIDES or days < 1 or seed < 0 or end.tzinfo is None:
        raise UsageError(
            f"seed={seed}, rides={rides}, days={days}, end={end}: a community has at least {_MIN_RIDES} rides and "
            "a day, a seed that is not negative, and an end with a time zone"
        )
    end_us = int(end.timestamp()) * 1_000_000
    rng = np.random.default_rng(np.random.SeedSequence([seed, rides, days, end_us]))
    ratings = pa.concat_tables([*_rides(rng, rides), *_ring()])
    shuffled = ratings.take(pa.array(rng.permutation(len(ratings))))
    times = np.sort(end_us - rng.integers(0, days * DAY_US, len(ratings)))
    return Community(_complete(rng, shuffled, times), frozenset(_ring_members()), _seeds())


def _rides(rng: np.random.Generator, rides: int) -> list[pa.Table]:
    """Return what riders and drivers say of each other: good drivers and riders are rated well, the ring's are not."""
    riders = rng.integers(_RING_RIDERS * len(CITIES), _RIDERS, rides)
    drivers = rng.integers(0, _DRIVERS // len(CITIES), rides) * len(CITIES) + riders % len(CITIES)
    quality = rng.uniform(3.6, 5, _DRIVERS)
    quality[_ring_numbers(_RING_DRIVERS)] = 1.5
    manners = rng.uniform(4, 5, _RIDERS)
    rated = rng.uniform(0, 1, (2, rides)) < [[_RIDE_RATING_SHARE], [_RIDER_RATING_SHARE]]
    return [
        _said("DriverRated", drivers, riders, _stars(rng, quality[drivers])).filter(pa.array(rated[0])),
        _said("RiderRated", riders, drivers, _stars(rng, manners[riders])).filter(pa.array(rated[1])),
    ]


def _ring() -> list[pa.Table]:
    """Let each driver of the ring and each of its riders give each other five stars, several times."""
    drivers, riders = _ring_numbers(_RING_DRIVERS), _ring_numbers(_RING_RIDERS)
    pairs = np.array([(driver, rider) for driver in drivers for rider in riders] * _RING_ROUNDS)
    five = np.full(len(pairs), 5)
    return [
        _said("DriverRated", pairs[:, 0], pairs[:, 1], five),
        _said("RiderRated", pairs[:, 1], pairs[:, 0], five),
    ]


def _stars(rng: np.random.Generator, expected: Numbers) -> Integers:
    """Return stars near the expected ones: at most 2 where 1.5 are expected."""
    return np.clip(np.rint(expected + rng.uniform(-0.9, 0.9, len(expected))), 1, 5).astype(np.int64)


def _said(action: str, rated: Integers, raters: Integers, stars: Integers) -> pa.Table:
    kinds = ("driver", "rider") if action == "DriverRated" else ("rider", "driver")
    users, givers = (_names(kind, numbers) for kind, numbers in zip(kinds, (rated, raters), strict=True))
    cities = pa.array(CITIES).take(pa.array(rated % len(CITIES)))
    columns = [users, pa.repeat(action, len(users)), pa.array(stars), givers, cities]
    return pa.table(columns, names=["user_id", "action_type", "rating", "rater_id", "city"])


def _names(kind: str, numbers: Integers) -> pa.Array:
    return pa.array([f"{kind}-{number:03d}" for number in numbers])


def _ring_numbers(members: int) -> Integers:
    """Return the numbers of the ring's drivers or riders: the first ones of the first city."""
    return np.arange(members) * len(CITIES)


def _ring_members() -> list[str]:
    drivers, riders = _ring_numbers(_RING_DRIVERS), _ring_numbers(_RING_RIDERS)
    return [*_names("driver", drivers).to_pylist(), *_names("rider", riders).to_pylist()]


def _seeds() -> tuple[str, ...]:
    first = _RING_RIDERS * len(CITIES)
    return tuple(_names("rider", np.arange(first, first + _SEEDS)).to_pylist())


def _complete(rng: np.random.Generator, ratings: pa.Table, times: Integers) -> pa.Table:
    """Add ids and times, in the order of the contract's columns."""
    ratings = ratings.append_column("event_id", random_ids(rng, len(ratings)))
    ratings = ratings.append_column("event_time", pa.array(times).cast(TIMESTAMP))
    return ratings.select(["event_id", "user_id", "action_type", "event_time", "rating", "rater_id", "city"])
