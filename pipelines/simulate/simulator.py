"""A simulated world on the bus with the faults of a real one, and the ground truth of what was planted."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from pipelines.contract.rejection import Reason
from pipelines.emit.producer import Record
from pipelines.errors import UsageError
from pipelines.simulate.community import build_community
from pipelines.simulate.faults import CONFLICT, DUPLICATE, MIS_KEYED, FaultRates, inject_faults
from pipelines.simulate.world import DAY_US, Span

_MIN_EVENTS = 200
_EARLIEST_US = 946_684_800_000_000  # 2000-01-01, the contract's first day
_CHUNK_RECORDS = 8192
_REASONS = frozenset(reason.value for reason in Reason)


@dataclass(frozen=True, slots=True)
class Planted:
    """Counts of the stream: sent = distinct + duplicates + conflicts + all malformed."""

    sent: int
    distinct: int
    """Valid events: what an empty lake holds after ingest."""
    duplicates: int
    conflicts: int
    malformed: Mapping[str, int]
    """Records by the reason for their rejection under the contract's default limits."""
    mis_keyed: int
    """Distinct events whose key is not their user_id."""
    out_of_order: int
    """Distinct events after an event with a later event time in the stream."""
    late: int
    """Of those, events overtaken by more than a day."""
    users: int
    actions: Mapping[str, int]
    """Distinct events by action_type."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """The records in sending order, and the counts that a test compares the lake with."""

    stream: pa.Table
    """Columns of `faults.STREAM`."""
    planted: Planted

    @property
    def records(self) -> Iterator[Record]:
        """Iterate over the records; malformed ones have a header `planted` with their reason."""
        for batch in self.stream.to_batches(_CHUNK_RECORDS):
            keys, values, marks = (batch.column(name).to_pylist() for name in ("key", "value", "planted"))
            for key, value, mark in zip(keys, values, marks, strict=True):
                yield Record(key, value, [("planted", mark.encode())]) if mark in _REASONS else Record(key, value)


def simulate(
    seed: int, events: int, *, days: int = 90, end: datetime | None = None, rates: FaultRates | None = None
) -> Simulation:
    """Generate `events` distinct valid events in the `days` before `end` (default: now), and inject faults.

    Equal arguments give equal bytes; any different argument gives different event_ids, so that another simulation adds
    to a lake. User ids are the same in every world. No valid event is later than `end`. Late events arrive at least
    1.5 days after their event time: a world of less than six days has none. Raises UsageError for invalid arguments.
    """
    rates = rates or FaultRates()
    span = _span(days, end or datetime.now(UTC))
    if events < _MIN_EVENTS or seed < 0:
        raise UsageError(
            f"events={events}, seed={seed}: a world has at least {_MIN_EVENTS} events; a seed is not negative"
        )
    shares = [round(share * 1_000_000_000) for share in astuple(rates)]
    rng = np.random.default_rng(np.random.SeedSequence([seed, events, span.start_us, span.end_us, *shares]))
    world = build_community(rng, events, span)
    stream = inject_faults(rng, world, span, rates)
    return Simulation(stream, _planted(world, stream))


def _span(days: int, end: datetime) -> Span:
    if end.tzinfo is None or end > datetime.now(UTC):
        raise UsageError(f"end={end} has no time zone or is in the future: give a past time with a time zone")
    end_us = int(end.timestamp()) * 1_000_000
    span = Span(end_us - days * DAY_US, end_us)
    if days < 1 or span.start_us < _EARLIEST_US:
        raise UsageError(f"days={days} before {end:%Y-%m-%d}: a world lasts at least a day and begins after 2000-01-01")
    return span


def _planted(world: pa.Table, stream: pa.Table) -> Planted:
    marks = _counts(stream["planted"])
    times = stream["event_us"].drop_null().to_numpy()
    ahead_us = np.maximum.accumulate(times) - times
    return Planted(
        sent=len(stream),
        distinct=len(times),
        duplicates=marks.get(DUPLICATE, 0),
        conflicts=marks.get(CONFLICT, 0),
        malformed={mark: count for mark, count in marks.items() if mark in _REASONS},
        mis_keyed=marks.get(MIS_KEYED, 0),
        out_of_order=int(np.count_nonzero(ahead_us)),
        late=int(np.count_nonzero(ahead_us > DAY_US)),
        users=len(world["user_id"].unique()),
        actions=_counts(world["action_type"]),
    )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counts = {pair["values"]: pair["counts"] for pair in column.drop_null().value_counts().to_pylist()}
    return dict(sorted(counts.items()))
