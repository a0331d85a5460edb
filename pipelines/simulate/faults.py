"""Faults of a real bus: duplicate, late, out-of-order, conflicting, mis-keyed and malformed records.

Pure and seeded. The number of each fault is known; the stream has a column that says which record carries which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contract.encode import encode
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT
from pipelines.errors import UsageError
from pipelines.simulate.world import DAY_US, Integers, Span, microseconds, random_ids

STREAM = pa.schema([("key", pa.binary()), ("value", pa.binary()), ("planted", pa.string()), ("event_us", pa.int64())])
"""A record; its fault (null, one of the three below, or the reason for its rejection); and the event time, in
microseconds, if it is the first record of its event."""

DUPLICATE = "duplicate"
CONFLICT = "conflict"
MIS_KEYED = "mis_keyed"

_STATUS_ACTIONS = pa.array(["AccountSuspended", "AccountReinstated", "RatingRetracted"])
_RATING_ACTIONS = pa.array(["DriverRated", "ReviewPosted"])
_MINUTE_US = 60_000_000
_OUT_OF_ORDER_STATUS_SHARE = 0.2
_MAX_RATE = 0.2


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Rates of faults, as shares of the distinct valid events."""

    duplicates: float = 0.03
    """Byte-identical copies of earlier records."""
    conflicts: float = 0.002
    """Ratings sent again under the same event_id with another number of stars."""
    late: float = 0.01
    """Events that reach the bus 1.5 to 6 days after their event time."""
    out_of_order: float = 0.03
    """Events delayed by up to half an hour, so that others overtake them; so is one status event in five."""
    mis_keyed: float = 0.0005
    """Valid events under another user's key."""
    malformed: float = 0.003
    """Invalid records, of all kinds in turn."""

    def __post_init__(self) -> None:
        """Raise UsageError for a rate out of range."""
        for rate in fields(self):
            if not 0 <= getattr(self, rate.name) <= _MAX_RATE:
                raise UsageError(f"{rate.name}={getattr(self, rate.name)} is not a share from 0 to {_MAX_RATE}")


@dataclass(frozen=True, slots=True)
class _Groups:
    """Disjoint row numbers of the world, by fault."""

    late: Integers
    out_of_order: Integers
    duplicated: Integers
    amended: Integers
    mis_keyed: Integers


@dataclass(frozen=True, slots=True)
class _Part:
    """Records and their bus times in microseconds, int64."""

    arrivals: Integers
    records: pa.Table


def inject_faults(rng: np.random.Generator, world: pa.Table, span: Span, rates: FaultRates) -> pa.Table:
    """Return the records of `world` (EVENT columns ordered by event time) in bus order, as STREAM columns."""
    groups = _choose(rng, world, span, rates)
    first = _first_deliveries(rng, world, groups)
    again = first.records.select(["key", "value"]).take(pa.array(groups.duplicated))
    amended = _amended(world.take(pa.array(groups.amended)))
    parts = [
        first,
        _Part(
            _redelivery_times(rng, first.arrivals[groups.duplicated]), _records(again["key"], again["value"], DUPLICATE)
        ),
        _Part(
            _redelivery_times(rng, first.arrivals[groups.amended]),
            _records(amended["user_id"], encode(amended), CONFLICT),
        ),
        _malformed(rng, world, span, round(rates.malformed * len(world))),
    ]
    order = np.argsort(np.concatenate([part.arrivals for part in parts]), kind="stable")
    return pa.concat_tables([part.records for part in parts]).combine_chunks().take(pa.array(order))


def _choose(rng: np.random.Generator, world: pa.Table, span: Span, rates: FaultRates) -> _Groups:
    """Draw disjoint rows; `duplicated` may contain a row several times."""
    count = len(world)
    actions = world["action_type"]
    status = _where(actions, _STATUS_ACTIONS)
    overtaken = status[rng.uniform(0, 1, len(status)) < (_OUT_OF_ORDER_STATUS_SHARE if rates.out_of_order else 0)]
    free = np.setdiff1d(np.arange(count), overtaken)
    free = rng.permutation(free)
    ratings = free[np.isin(free, _where(actions, _RATING_ACTIONS))]
    amended, free = _take(ratings, free, rates.conflicts * count)
    early = free[microseconds(world)[free] <= span.end_us - 6 * DAY_US]
    late, free = _take(early, free, rates.late * count)
    mis_keyed, free = _take(free, free, rates.mis_keyed * count)
    others, free = _take(free, free, rates.out_of_order * count - len(overtaken))
    duplicated = rng.choice(free, round(rates.duplicates * count))
    return _Groups(late, np.concatenate([overtaken, others]), duplicated, amended, mis_keyed)


def _take(source: Integers, free: Integers, count: float) -> tuple[Integers, Integers]:
    """Return up to `count` rows of `source`, and `free` without them."""
    taken = source[: max(0, round(count))]
    return taken, free[~np.isin(free, taken)]


def _where(actions: pa.ChunkedArray, names: pa.Array) -> Integers:
    return np.flatnonzero(np.isin(actions.to_numpy(), names.to_pylist()))


def _first_deliveries(rng: np.random.Generator, world: pa.Table, groups: _Groups) -> _Part:
    times = microseconds(world)
    arrivals = times.copy()
    arrivals[groups.late] += rng.integers(3 * DAY_US // 2, 6 * DAY_US, len(groups.late))
    arrivals[groups.out_of_order] += rng.integers(_MINUTE_US, 30 * _MINUTE_US, len(groups.out_of_order))
    keys = world["user_id"].to_numpy().copy()
    keys[groups.mis_keyed] = [f"stranger-{number:03d}" for number in rng.integers(0, 100, len(groups.mis_keyed))]
    planted = np.full(len(world), None)
    planted[groups.mis_keyed] = MIS_KEYED
    columns = [pa.array(keys).cast(pa.binary()), encode(world), pa.array(planted, pa.string()), pa.array(times)]
    return _Part(arrivals, pa.table(columns, schema=STREAM))


def _redelivery_times(rng: np.random.Generator, arrivals: Integers) -> Integers:
    """Return the bus times of copies: mostly immediate, as from a producer's retry; otherwise within three days."""
    delays = rng.integers(0, 3 * DAY_US, len(arrivals))
    return arrivals + np.where(rng.uniform(0, 1, len(arrivals)) < 0.7, 0, delays)


def _records(keys: Any, values: Any, planted: Any) -> pa.Table:
    """Return STREAM columns of records that are not the first of their event."""
    count = len(values)
    marks = pa.repeat(pa.scalar(planted, pa.string()), count) if isinstance(planted, str) else planted
    return pa.table([keys.cast(pa.binary()), values, marks, pa.nulls(count, pa.int64())], schema=STREAM)


def _amended(ratings: pa.Table) -> pa.Table:
    """Return the same events with other stars."""
    rows = ratings.to_pylist()
    for row in rows:
        row["metadata"] = [
            (name, str(int(value) % 5 + 1) if name == "rating" else value) for name, value in row["metadata"]
        ]
    return pa.Table.from_pylist(rows, schema=EVENT)


@dataclass(frozen=True, slots=True)
class _Malformation:
    """A way to invalidate an event: replaced fields, or changed bytes."""

    reason: Reason
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    damage: Callable[[bytes], bytes | None] = bytes


_MALFORMATIONS = (
    _Malformation(Reason.NULL_VALUE, damage=lambda _: None),
    _Malformation(Reason.UNDECODABLE, damage=lambda value: value[:-1]),
    _Malformation(Reason.UNDECODABLE, damage=lambda value: b"\xff" * len(value)),
    _Malformation(Reason.UNDECODABLE, damage=lambda _: b'{"event_id": "in JSON", "user_id": "driver-ada"}'),
    _Malformation(Reason.MISSING_EVENT_ID, {"event_id": None}),
    _Malformation(Reason.MISSING_EVENT_ID, damage=lambda _: b""),
    _Malformation(Reason.MISSING_USER_ID, {"user_id": None}),
    _Malformation(Reason.MISSING_ACTION_TYPE, {"action_type": None}),
    _Malformation(Reason.MISSING_TIMESTAMP, {"event_time": None}),
    _Malformation(Reason.OVERSIZED_EVENT_ID, {"event_id": "x" * 300}),
    _Malformation(Reason.OVERSIZED_USER_ID, {"user_id": "x" * 300}),
    _Malformation(Reason.OVERSIZED_ACTION_TYPE, {"action_type": "x" * 200}),
    _Malformation(Reason.OVERSIZED_METADATA, {"metadata": [("note", "x" * 70_000)]}),
    _Malformation(Reason.TIMESTAMP_TOO_EARLY, {"event_time": datetime(1999, 1, 1, tzinfo=UTC)}),
    _Malformation(Reason.TIMESTAMP_TOO_LATE, {"event_time": datetime(2100, 1, 1, tzinfo=UTC)}),
)
"""Each violates the contract's default limits in exactly one way."""


def _malformed(rng: np.random.Generator, world: pa.Table, span: Span, count: int) -> _Part:
    """Return `count` malformed copies of events with new event_ids, of all malformations in turn."""
    kinds = list(islice(cycle(_MALFORMATIONS), count))
    models = world.take(pa.array(rng.integers(0, len(world), count)))
    models = models.set_column(0, EVENT.field("event_id"), random_ids(rng, count))
    rows = [row | kind.fields for row, kind in zip(models.to_pylist(), kinds, strict=True)]
    values = encode(pa.Table.from_pylist(rows, schema=EVENT)).to_pylist()
    broken = [kind.damage(value) for kind, value in zip(kinds, values, strict=True)]
    reasons = pa.array([kind.reason.value for kind in kinds], pa.string())
    arrivals = rng.integers(span.start_us, span.end_us, count)
    return _Part(arrivals, _records(models["user_id"], pa.array(broken, pa.binary()), reasons))
