"""What a real bus does to events: sends them again, late, out of order, amended, under a wrong key, or broken.

Pure and seeded. Of every fault it is known how often it was planted; what cannot be known from the outside (which
record is which) is in the stream beside the records.
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
"""A record, what was planted in it (null, one of the three below, or the reason it will be rejected for), and, where
it is the first to carry its event, when that happened."""

DUPLICATE = "duplicate"
CONFLICT = "conflict"
MIS_KEYED = "mis_keyed"

_STATUS_ACTIONS = pa.array(["AccountSuspended", "AccountReinstated", "RatingRetracted"])
_RATING_ACTIONS = pa.array(["DriverRated", "ReviewPosted"])
_MINUTE_US = 60_000_000
_STATUS_SHARE_OUT_OF_ORDER = 0.2
_HIGHEST_RATE = 0.2


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what goes wrong, as a share of the distinct valid events."""

    duplicates: float = 0.03
    """Records that repeat an earlier one to the byte."""
    conflicts: float = 0.002
    """Ratings sent again under the same event_id with another number of stars."""
    late: float = 0.01
    """Events that reach the bus 1.5 to 6 days after they happened."""
    out_of_order: float = 0.03
    """Events that are overtaken by up to half an hour of others; one status event in five is, too."""
    mis_keyed: float = 0.0005
    """Valid events under another user's key."""
    malformed: float = 0.003
    """Records that are no events, shared among all kinds."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for rate in fields(self):
            if not 0 <= getattr(self, rate.name) <= _HIGHEST_RATE:
                raise UsageError(f"{rate.name}={getattr(self, rate.name)} is not a share from 0 to {_HIGHEST_RATE}")


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows of the world to each of which at most one thing happens."""

    late: Integers
    out_of_order: Integers
    duplicated: Integers
    amended: Integers
    mis_keyed: Integers


@dataclass(frozen=True, slots=True)
class _Part:
    """Records and when each reaches the bus."""

    arrivals: Integers
    records: pa.Table


def disturb(rng: np.random.Generator, world: pa.Table, span: Span, rates: Rates) -> pa.Table:
    """Return the records of `world` (EVENT columns in order of time) in the order of the bus, as STREAM columns."""
    groups = _choose(rng, world, span, rates)
    first = _first_sendings(rng, world, groups)
    again = first.records.select(["key", "value"]).take(pa.array(groups.duplicated))
    amended = _amended(world.take(pa.array(groups.amended)))
    parts = [
        first,
        _Part(_later(rng, first.arrivals[groups.duplicated]), _records(again["key"], again["value"], DUPLICATE)),
        _Part(_later(rng, first.arrivals[groups.amended]), _records(amended["user_id"], encode(amended), CONFLICT)),
        _malformed(rng, world, span, round(rates.malformed * len(world))),
    ]
    order = np.argsort(np.concatenate([part.arrivals for part in parts]), kind="stable")
    return pa.concat_tables([part.records for part in parts]).combine_chunks().take(pa.array(order))


def _choose(rng: np.random.Generator, world: pa.Table, span: Span, rates: Rates) -> _Groups:
    """Draw disjoint rows; `duplicated` may name a row several times."""
    count = len(world)
    actions = world["action_type"]
    status = _where(actions, _STATUS_ACTIONS)
    overtaken = status[rng.uniform(0, 1, len(status)) < (_STATUS_SHARE_OUT_OF_ORDER if rates.out_of_order else 0)]
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


def _first_sendings(rng: np.random.Generator, world: pa.Table, groups: _Groups) -> _Part:
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


def _later(rng: np.random.Generator, arrivals: Integers) -> Integers:
    """Return when a copy arrives: mostly at once, as of a producer that tries again; else within three days."""
    delays = rng.integers(0, 3 * DAY_US, len(arrivals))
    return arrivals + np.where(rng.uniform(0, 1, len(arrivals)) < 0.7, 0, delays)


def _records(keys: Any, values: Any, planted: Any) -> pa.Table:
    """Return STREAM columns of records that carry no event for the first time."""
    count = len(values)
    marks = pa.repeat(pa.scalar(planted, pa.string()), count) if isinstance(planted, str) else planted
    return pa.table([keys.cast(pa.binary()), values, marks, pa.nulls(count, pa.int64())], schema=STREAM)


def _amended(ratings: pa.Table) -> pa.Table:
    """Return the same events with another number of stars."""
    rows = ratings.to_pylist()
    for row in rows:
        row["metadata"] = [
            (name, str(int(value) % 5 + 1) if name == "rating" else value) for name, value in row["metadata"]
        ]
    return pa.Table.from_pylist(rows, schema=EVENT)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One way to break an event: fields that replace its own, or a change of its bytes."""

    reason: Reason
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    damage: Callable[[bytes], bytes | None] = bytes


_KINDS = (
    _Kind(Reason.NULL_VALUE, damage=lambda _: None),
    _Kind(Reason.UNDECODABLE, damage=lambda value: value[:-1]),
    _Kind(Reason.UNDECODABLE, damage=lambda value: b"\xff" * len(value)),
    _Kind(Reason.UNDECODABLE, damage=lambda _: b'{"event_id": "in JSON", "user_id": "driver-ada"}'),
    _Kind(Reason.MISSING_EVENT_ID, {"event_id": None}),
    _Kind(Reason.MISSING_EVENT_ID, damage=lambda _: b""),
    _Kind(Reason.MISSING_USER_ID, {"user_id": None}),
    _Kind(Reason.MISSING_ACTION_TYPE, {"action_type": None}),
    _Kind(Reason.MISSING_TIMESTAMP, {"event_time": None}),
    _Kind(Reason.OVERSIZED_EVENT_ID, {"event_id": "x" * 300}),
    _Kind(Reason.OVERSIZED_USER_ID, {"user_id": "x" * 300}),
    _Kind(Reason.OVERSIZED_ACTION_TYPE, {"action_type": "x" * 200}),
    _Kind(Reason.OVERSIZED_METADATA, {"metadata": [("note", "x" * 70_000)]}),
    _Kind(Reason.TIMESTAMP_TOO_EARLY, {"event_time": datetime(1999, 1, 1, tzinfo=UTC)}),
    _Kind(Reason.TIMESTAMP_TOO_LATE, {"event_time": datetime(2100, 1, 1, tzinfo=UTC)}),
)
"""Each breaks the contract's default bounds in one way only."""


def _malformed(rng: np.random.Generator, world: pa.Table, span: Span, count: int) -> _Part:
    """Break copies of events, under event_ids of their own, in every way in turn."""
    kinds = list(islice(cycle(_KINDS), count))
    models = world.take(pa.array(rng.integers(0, len(world), count)))
    models = models.set_column(0, EVENT.field("event_id"), random_ids(rng, count))
    rows = [row | kind.fields for row, kind in zip(models.to_pylist(), kinds, strict=True)]
    values = encode(pa.Table.from_pylist(rows, schema=EVENT)).to_pylist()
    broken = [kind.damage(value) for kind, value in zip(kinds, values, strict=True)]
    reasons = pa.array([kind.reason.value for kind in kinds], pa.string())
    arrivals = rng.integers(span.start_us, span.end_us, count)
    return _Part(arrivals, _records(models["user_id"], pa.array(broken, pa.binary()), reasons))
