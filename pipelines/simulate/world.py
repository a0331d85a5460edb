"""A ride-hailing and marketplace world: its true events, each once, ordered by event time.

Pure and vectorized; the result depends only on the arguments and the generator. `faults.py` adds the faults of a bus.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contract.schema import EVENT, METADATA, TIMESTAMP
from pipelines.simulate.story import STORY_IDS, story

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

_RATING_SHARE = 0.42
"""Share of ratings among transactions and ratings: about three in four transactions are rated."""
_RETRACTED_SHARE = 0.004
_SUSPENDED_SHARE = 0.001
_ANGRY_SHARE = 0.03
"""Share of ratings that are 1 regardless of quality."""
_MAX_ACTIVITY = 300
"""Activity of the most active user, as a multiple of the least active: it truncates the heavy tail."""
_GROWTH = 1.5
"""Activity at the end, as a multiple of activity at the start."""
_BY_HOUR = np.array([3, 2, 1, 1, 1, 2, 4, 8, 10, 8, 6, 6, 7, 7, 6, 6, 7, 10, 12, 11, 9, 8, 7, 5], dtype=np.float64)
_BY_WEEKDAY = np.array([1.0, 1.0, 1.05, 1.1, 1.35, 1.5, 1.2])
_SUSPENSION_REASONS = pa.array(["fraud", "low_rating", "payment_dispute", "safety"])
CITIES = pa.array(["berlin", "lagos", "lima"])
"""A provider works in one of them, in turn; customers travel."""


@dataclass(frozen=True, slots=True)
class Span:
    """The period [start_us, end_us] of all events, in microseconds since 1970."""

    start_us: int
    end_us: int

    @property
    def length_us(self) -> int:
        """Length in microseconds."""
        return self.end_us - self.start_us


@dataclass(frozen=True, slots=True)
class _People:
    """Providers (two thirds drivers, then sellers) are rated by customers (as riders or buyers)."""

    provider_ids: pa.Array
    drivers: int
    customer_ids: pa.Array
    """All as riders, then all as buyers."""
    activity: Numbers
    """Probability of each provider in a transaction: shape (providers,), float64; sums to 1."""
    eagerness: Numbers
    """The same for customers: shape (customers,)."""
    quality: Numbers
    strictness: Numbers


@dataclass(frozen=True, slots=True)
class _Transactions:
    providers: Integers
    customers: Integers
    times: Integers
    ids: pa.Array

    def take(self, rows: Integers) -> "_Transactions":
        ids = self.ids.take(pa.array(rows))
        return _Transactions(self.providers[rows], self.customers[rows], self.times[rows], ids)


def build_world(rng: np.random.Generator, events: int, span: Span) -> pa.Table:
    """Return exactly `events` events (EVENT columns), ordered by event_time; `events` is at least a few hundred."""
    people = _people(rng, events)
    parts = [story(span.end_us, span.length_us, random_ids(rng, STORY_IDS))]
    ids = random_ids(rng, events - len(parts[0]))
    parts += (changes := _status_changes(rng, people, span, ids, round(events * _SUSPENDED_SHARE)))
    ids = ids.slice(sum(map(len, changes)))
    retractions = round(events * _RETRACTED_SHARE)
    ratings = round((len(ids) - retractions) * _RATING_SHARE)
    transactions = _transactions(rng, people, span, len(ids) - retractions - ratings)
    rated = transactions.take(rng.permutation(len(transactions.ids))[:ratings])
    parts.append(_ratings(rng, people, span, ids.slice(0, ratings), rated))
    parts.append(_retractions(rng, span, ids.slice(ratings, retractions), parts[-1]))
    parts.append(_completions(people, ids.slice(ratings + retractions), transactions))
    return by_time(parts)


def by_time(parts: list[pa.Table]) -> pa.Table:
    """Return the events of all parts (EVENT columns), ordered by event_time."""
    world = pa.concat_tables(parts).combine_chunks()
    return world.take(pa.array(np.argsort(microseconds(world), kind="stable")))


def microseconds(events: pa.Table) -> Integers:
    """Return event_time in microseconds since 1970: shape (events,), int64."""
    return events["event_time"].cast(pa.int64()).to_numpy()


def random_ids(rng: np.random.Generator, count: int) -> pa.Array:
    """Return `count` UUIDs (version 4) as strings."""
    octets = np.frombuffer(rng.bytes(16 * count), dtype=np.uint8).reshape(count, 16).copy()
    octets[:, 6] = octets[:, 6] & 0x0F | 0x40
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(octets.tobytes().hex().encode(), dtype=np.uint8).reshape(count, 32)
    text = np.insert(digits, (8, 12, 16, 20), ord("-"), axis=1)
    offsets = np.arange(0, 36 * (count + 1), 36, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))


def _people(rng: np.random.Generator, events: int) -> _People:
    providers = max(20, events // 60)
    customers = max(50, events // 25)
    drivers = providers * 2 // 3
    activity = np.minimum(1 + rng.pareto(1.3, providers), _MAX_ACTIVITY)
    eagerness = np.minimum(1 + rng.pareto(1.5, customers), _MAX_ACTIVITY)
    return _People(
        provider_ids=_user_ids("driver", drivers, "seller", providers - drivers),
        drivers=drivers,
        customer_ids=_user_ids("rider", customers, "buyer", customers),
        activity=activity / activity.sum(),
        eagerness=eagerness / eagerness.sum(),
        quality=2.2 + 2.8 * rng.beta(6, 1.4, providers),
        strictness=rng.normal(0, 0.35, customers),
    )


def _user_ids(first: str, first_count: int, second: str, second_count: int) -> pa.Array:
    return pa.array(
        [
            f"{kind}-{number:06d}"
            for kind, count in ((first, first_count), (second, second_count))
            for number in range(count)
        ]
    )


def _transactions(rng: np.random.Generator, people: _People, span: Span, count: int) -> _Transactions:
    return _Transactions(
        providers=rng.choice(len(people.activity), count, p=people.activity),
        customers=rng.choice(len(people.eagerness), count, p=people.eagerness),
        times=_transaction_times(rng, span, count),
        ids=random_ids(rng, count),
    )


def _transaction_times(rng: np.random.Generator, span: Span, count: int) -> Integers:
    """Return `count` times, weighted by hour of the day, day of the week (UTC) and growth: microseconds, int64."""
    hours = max(1, span.length_us // HOUR_US)
    hour = np.arange(hours)
    since_epoch = span.start_us // HOUR_US + hour
    weekday = (since_epoch // 24 + 3) % 7  # 1970-01-01 was a Thursday
    weights = _BY_HOUR[since_epoch % 24] * _BY_WEEKDAY[weekday] * _GROWTH ** (hour / hours)
    chosen = rng.choice(hours, count, p=weights / weights.sum())
    width = span.length_us // hours
    return span.start_us + chosen * width + rng.integers(0, width, count)


def _status_changes(
    rng: np.random.Generator, people: _People, span: Span, ids: pa.Array, suspensions: int
) -> list[pa.Table]:
    """Suspend providers, each at most once, worse ones more often; reinstate most of them before the end."""
    bad = (5.2 - people.quality) ** 3
    count = min(suspensions, len(bad) // 4)
    suspended = rng.choice(len(bad), count, replace=False, p=bad / bad.sum())
    begins = span.start_us + (span.length_us * rng.uniform(0.1, 1, count)).astype(np.int64)
    ends = begins + ((0.5 + rng.exponential(6, count)) * DAY_US).astype(np.int64)
    reinstated = np.flatnonzero(ends <= span.end_us)
    reasons = _SUSPENSION_REASONS.take(pa.array(rng.integers(0, len(_SUSPENSION_REASONS), count)))
    users = people.provider_ids.take(pa.array(suspended))
    rows = pa.array(reinstated)
    return [
        to_events(ids.slice(0, count), users, "AccountSuspended", begins, reason=reasons),
        to_events(
            ids.slice(count, len(reinstated)),
            users.take(rows),
            "AccountReinstated",
            ends[reinstated],
            reason=reasons.take(rows),
        ),
    ]


def _ratings(rng: np.random.Generator, people: _People, span: Span, ids: pa.Array, rated: _Transactions) -> pa.Table:
    """Rate transactions: rides within about an hour, purchases within days; never after the end."""
    count = len(ids)
    rides = rated.providers < people.drivers
    delay = np.where(rides, rng.exponential(HOUR_US / 3, count), rng.exponential(3 * DAY_US, count))
    remaining = span.end_us - rated.times
    delay = np.where(delay < remaining, delay, rng.uniform(0, 1, count) * remaining)
    expected = people.quality[rated.providers] - people.strictness[rated.customers] + rng.normal(0, 0.7, count)
    stars = np.where(rng.uniform(0, 1, count) < _ANGRY_SHARE, 1, np.clip(np.rint(expected), 1, 5)).astype(np.int64)
    return to_events(
        ids,
        people.provider_ids.take(pa.array(rated.providers)),
        pa.array(np.where(rides, "DriverRated", "ReviewPosted"), pa.string()),
        rated.times + delay.astype(np.int64),
        rating=pa.array(stars).cast(pa.string()),
        rater_id=people.customer_ids.take(pa.array(rated.customers + len(people.strictness) * ~rides)),
        transaction_id=rated.ids,
        city=_cities(rated.providers),
    )


def _retractions(rng: np.random.Generator, span: Span, ids: pa.Array, ratings: pa.Table) -> pa.Table:
    targets = ratings.take(pa.array(rng.permutation(len(ratings))[: len(ids)]))
    times = microseconds(targets)
    later = times + (rng.uniform(0, 1, len(ids)) ** 2 * (span.end_us - times)).astype(np.int64)
    return to_events(ids, targets["user_id"], "RatingRetracted", later, target_event_id=targets["event_id"])


def _completions(people: _People, ids: pa.Array, transactions: _Transactions) -> pa.Table:
    users = people.provider_ids.take(pa.array(transactions.providers))
    cities = _cities(transactions.providers)
    return to_events(
        ids, users, "TransactionCompleted", transactions.times, transaction_id=transactions.ids, city=cities
    )


def _cities(providers: Integers) -> pa.Array:
    return CITIES.take(pa.array(providers % len(CITIES)))


def to_events(ids: pa.Array, users: Any, action: str | pa.Array, times: Integers, **metadata: Any) -> pa.Table:
    """Return EVENT columns; each keyword argument is a metadata entry of every row."""
    count = len(ids)
    actions = pa.repeat(pa.scalar(action, pa.string()), count) if isinstance(action, str) else action
    event_time = pa.array(times, pa.int64()).cast(TIMESTAMP)
    return pa.table([ids, users, actions, event_time, _maps(metadata, count)], schema=EVENT)


def _maps(metadata: dict[str, Any], count: int) -> pa.Array:
    """Return one map per row, built from columns."""
    width = len(metadata)
    columns = [
        column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in metadata.values()
    ]
    row_major = np.arange(width * count).reshape(width, count).T.ravel()
    keys = pa.array(list(metadata)).take(pa.array(np.tile(np.arange(width), count)))
    items = pa.concat_arrays(columns).take(pa.array(row_major))
    offsets = pa.array(np.arange(0, width * (count + 1), width, dtype=np.int32))
    return pa.MapArray.from_arrays(offsets, keys, items).cast(METADATA)
