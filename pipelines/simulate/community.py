"""The world of `world.py` as a community: providers rate their customers, too, and a ring rates itself up.

Without it, no one would say which riders and buyers to trust. Pure and vectorized; the result depends only on the
arguments and the generator.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.simulate.world import (
    CITIES,
    HOUR_US,
    Integers,
    Span,
    build_world,
    by_time,
    microseconds,
    random_ids,
    to_events,
)

Names = npt.NDArray[np.str_]

RING_DRIVERS = tuple(f"driver-ring-{number}" for number in range(1, 4))
RING_RIDERS = tuple(f"rider-ring-{number}" for number in range(1, 10))
"""The ring: its drivers and riders give each other five stars; other riders give its drivers two stars or less."""

_ROUNDS, _EVENTS_FOR_A_ROUND = 5, 4_000
"""Rides of each rider of the ring with each of its drivers; a small world has fewer, the smallest ones have no ring."""
_PAIRS = np.array([(driver, rider) for driver in RING_DRIVERS for rider in RING_RIDERS])
_HONEST_RIDES = 4
"""Rides of others with each driver of the ring, a round."""
_ROUND_EVENTS = 3 * len(_PAIRS) + 2 * _HONEST_RIDES * len(RING_DRIVERS)
"""Each ride is completed and the driver rated; the ring's riders are rated, too."""
_ANSWER_SHARE = 0.15
"""Share of ratings of customers among all events: about every second rating is answered."""
_RUDE_SHARE = 0.05
"""Share of customers whose ratings are low."""


def build_community(rng: np.random.Generator, events: int, span: Span) -> pa.Table:
    """Return exactly `events` events (EVENT columns), ordered by event_time; `events` is at least a few hundred."""
    rounds = min(_ROUNDS, events // _EVENTS_FOR_A_ROUND)
    answers = round(events * _ANSWER_SHARE)
    world = build_world(rng, events - answers - rounds * _ROUND_EVENTS, span)
    rated = world.filter(_entry(world, "rater_id").is_valid())
    parts = [world, _answers(rng, rated, span, answers)]
    return by_time(parts + _ring(rng, rated, span, rounds) if rounds else parts)


def _answers(rng: np.random.Generator, rated: pa.Table, span: Span, count: int) -> pa.Table:
    """Let providers rate their customers within an hour of being rated, never after the end."""
    rated = rated.filter(_entry(rated, "transaction_id").is_valid())
    answered = rated.take(pa.array(rng.permutation(len(rated))[:count]))
    customers = _entry(answered, "rater_id")
    encoded = customers.dictionary_encode()
    manners = np.where(rng.uniform(0, 1, len(encoded.dictionary)) < _RUDE_SHARE, 2.0, 4.6)
    stars = np.clip(np.rint(manners[encoded.indices.to_numpy()] + rng.normal(0, 0.6, count)), 1, 5).astype(np.int64)
    rides = pc.equal(answered["action_type"], "DriverRated")
    return to_events(
        random_ids(rng, count),
        customers,
        pc.if_else(rides, "RiderRated", "BuyerRated"),
        _soon(rng, microseconds(answered), span),
        rating=pa.array(stars).cast(pa.string()),
        rater_id=answered["user_id"],
        transaction_id=_entry(answered, "transaction_id"),
        city=_entry(answered, "city"),
    )


def _ring(rng: np.random.Generator, rated: pa.Table, span: Span, rounds: int) -> list[pa.Table]:
    """Let the ring ride and rate itself up, and let others who ride with its drivers say what these are like."""
    drivers, riders = _rides_with_ring(rng, rated, rounds)
    count, within = len(drivers), np.isin(riders, RING_RIDERS)
    times = span.start_us + rng.integers(0, span.length_us, count)
    stars = pa.array(np.where(within, 5, rng.integers(1, 3, count))).cast(pa.string())
    ride = {"transaction_id": random_ids(rng, count), "city": pa.repeat(CITIES[0], count)}
    completed, given, answers = (
        to_events(random_ids(rng, count), pa.array(users), action, moments, **entries, **ride)
        for users, action, moments, entries in (
            (drivers, "TransactionCompleted", times, {}),
            (drivers, "DriverRated", _soon(rng, times, span), {"rating": stars, "rater_id": pa.array(riders)}),
            (riders, "RiderRated", _soon(rng, times, span), {"rating": stars, "rater_id": pa.array(drivers)}),
        )
    )
    return [completed, given, answers.filter(pa.array(within))]


def _rides_with_ring(rng: np.random.Generator, rated: pa.Table, rounds: int) -> tuple[Names, Names]:
    """Return driver and rider of each ride with a driver of the ring: first those within it, then those of others."""
    others = _entry(rated.filter(pc.equal(rated["action_type"], "DriverRated")), "rater_id").to_pylist()
    drivers = np.repeat(RING_DRIVERS, _HONEST_RIDES * rounds)
    honest = np.stack([drivers, rng.choice(others, len(drivers))], axis=1)
    rides = np.concatenate([np.tile(_PAIRS, (rounds, 1)), honest])
    return rides[:, 0], rides[:, 1]


def _soon(rng: np.random.Generator, times: Integers, span: Span) -> Integers:
    """Return a moment within an hour of each of some times, none after the end."""
    return times + (rng.uniform(0, 1, len(times)) * np.minimum(HOUR_US, span.end_us - times)).astype(np.int64)


def _entry(events: pa.Table, key: str) -> pa.Array:
    """Return the metadata at a key of each event; null where it has none."""
    return pc.map_lookup(events["metadata"].combine_chunks(), key, "first")
