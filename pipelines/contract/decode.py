"""Decoding and validation of records: valid events and rejected records. Pure; independent of Kafka and the lake.

`_failures` decides which record is rejected, and why; `_detail` explains it. A rejected record becomes a dead letter
when its batch is committed (`_stage` in `drain.py`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract import metadata
from pipelines.contract.parsing import Parsed, is_propagated, reject_all, sanitize_message, undecodable
from pipelines.contract.queue_messages import are_of_queues, unwrap_bodies
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, POSITION, RECORD, REJECTED, TIMESTAMP, filter_rows
from pipelines.contract.values import parse_values
from pipelines.settings import ContractSettings

_LAST_US = (datetime.max.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
"""The end of the year 9999: later times cannot be formatted, or stored as a day."""
_OF_PARSING = (Reason.UNDECODABLE, Reason.UNKNOWN_SCHEMA, Reason.UNMAPPABLE, Reason.REFUSED_SELECT)
"""The reasons that `Parsed.errors` has."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoded records of a batch. Each has one fate: it became events, it was rejected, or it was filtered.

    All tables keep the order of the records.
    """

    events: pa.Table
    """EVENT and POSITION columns; the rows of one record are neighbours, with its position."""
    rejected: pa.Table
    """REJECTED columns, one row a record."""
    mis_keyed: pa.BooleanArray
    """One an event: whether its record's key is not its user_id; False if the key is not meant to be, as in a queue."""
    filtered: pa.Table
    """POSITION columns: the records that the source leaves out; none of our own contract."""


Decoder = Callable[[pa.Table, datetime | None], Decoded]
"""Decodes the records (RECORD columns) of one topic; the time limits event_time, None means this machine's clock."""


def decode(records: pa.Table, contract: ContractSettings, now: datetime | None = None) -> Decoded:
    """Split `records` (RECORD columns) into valid events and rejected records (`not-blocked`).

    Rejected records of SQS have their values unwrapped (`queue_messages.py`). `now` limits event_time, as does the bus
    time; None means the clock of this machine. Raises ConfigurationError or TransientError if a required schema
    registry is not available.
    """
    records = unwrap_bodies(records.combine_chunks(), contract)
    parsed = parse_values(_flat(records["value"]), contract, _flat(records["headers"]))
    return validate(records, parsed, contract, now or datetime.now(UTC))


def validate(records: pa.Table, parsed: Parsed, contract: ContractSettings, now: datetime) -> Decoded:
    """Split `records` (RECORD columns, in one chunk) and their parsed values into valid events and rejected records.

    If validation raises, the records are bisected: one that fails on its own is undecodable (`not-blocked`).
    """
    try:
        return _validate(records, parsed, contract, now)
    except BaseException as error:
        if is_propagated(error):
            raise
        if len(records) > 1:
            return _validate_halves(records, parsed, contract, now)
        if parsed.errors or not len(records):
            raise
        failed = reject_all(1, undecodable("an event that passes validation", error))
        return validate(records, failed, contract, now)


def validate_mapped(
    records: pa.Table, origins: np.ndarray, parsed: Parsed, contract: ContractSettings, now: datetime
) -> Decoded:
    """Validate the events of a source, of which a record may have several or none; its key is not a user_id.

    `parsed` has a row for each event, and one for each record that could not be mapped; `origins` (int64, rising) is
    the row of the record of each. A record with an invalid event is rejected whole, with the first reason. `records`
    (RECORD columns, in one chunk) without an event are filtered.
    """
    without_keys = contract.model_copy(update={"strict_keys": False})
    decoded = validate(_numbered(records, origins), parsed, without_keys, now)
    invalid = decoded.rejected["value"].cast(pa.string()).cast(pa.int64()).to_numpy()
    refused, first = np.unique(origins[invalid], return_index=True)
    kept = ~np.isin(np.delete(origins, invalid), refused)
    reasons = decoded.rejected.select(["reason", "detail"]).take(pa.array(first))
    rejected = [
        *records.take(pa.array(refused)).columns,
        reasons["reason"],
        _placed(reasons["detail"], origins, invalid[first]),
    ]
    events = filter_rows(decoded.events, pa.array(kept))
    left_out = ~np.isin(np.arange(len(records)), origins)
    return Decoded(
        events=events,
        rejected=pa.table(rejected, schema=REJECTED),
        mis_keyed=pa.repeat(pa.scalar(value=False), len(events)),
        filtered=records.select(POSITION.names).filter(pa.array(left_out)),
    )


def _numbered(records: pa.Table, origins: np.ndarray) -> pa.Table:
    """Return the record of each event (RECORD columns) with the number of the event as its value.

    Keys and headers are null: they say nothing about the event, and copying them takes longer than validation.
    """
    places = records.select(POSITION.names)
    if not np.array_equal(origins, np.arange(len(records))):
        places = places.take(pa.array(origins)).combine_chunks()
    numbers = pa.array(np.arange(len(origins))).cast(pa.string()).cast(pa.binary())
    nothing = [pa.nulls(len(origins), RECORD.field(name).type) for name in ("key", "headers")]
    return pa.table([*places.columns, nothing[0], numbers, nothing[1]], schema=RECORD)


def _placed(details: pa.ChunkedArray, origins: np.ndarray, rows: np.ndarray) -> pa.Array:
    """Return the details with the number of the event, where its record has several."""
    starts, ends = (np.searchsorted(origins, origins[rows], side) for side in ("left", "right"))
    places = [
        f"Event {row - start + 1} of {end - start}: " if end - start > 1 else ""
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]
    texts = [place + detail for place, detail in zip(places, details.to_pylist(), strict=True)]
    return pa.array(list(map(sanitize_message, texts)), pa.string())


def _validate_halves(records: pa.Table, parsed: Parsed, contract: ContractSettings, now: datetime) -> Decoded:
    middle = len(records) // 2
    earlier = {row: problem for row, problem in parsed.errors.items() if row < middle}
    later = {row - middle: problem for row, problem in parsed.errors.items() if row >= middle}
    first = Parsed(parsed.events.slice(0, middle), earlier)
    second = Parsed(parsed.events.slice(middle), later)
    halves = [
        validate(records.slice(0, middle).combine_chunks(), first, contract, now),
        validate(records.slice(middle).combine_chunks(), second, contract, now),
    ]
    return Decoded(
        events=pa.concat_tables([half.events for half in halves]).combine_chunks(),
        rejected=pa.concat_tables([half.rejected for half in halves]).combine_chunks(),
        mis_keyed=pa.concat_arrays([half.mis_keyed for half in halves]),
        filtered=POSITION.empty_table(),
    )


def _validate(records: pa.Table, parsed: Parsed, contract: ContractSettings, now: datetime) -> Decoded:
    events = metadata.last_value_wins(parsed.events)
    mis_keyed = _mis_keyed(records, events["user_id"])
    limits = _Limits(contract, now)
    reasons = _first_reason(list(_failures(parsed, events, records, mis_keyed, limits)), len(records))
    valid = pc.is_null(reasons)
    return Decoded(
        events=filter_rows(_with_position(events, records), valid),
        rejected=_rejected(records, reasons, pc.invert(valid), parsed, events, limits),
        mis_keyed=_flat(pc.filter(mis_keyed, valid)),
        filtered=POSITION.empty_table(),
    )


def _mis_keyed(records: pa.Table, user_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return whether the key of each record is not its user_id, or missing where records have keys."""
    keys = records["key"]
    differs = pc.fill_null(pc.not_equal(keys, user_ids.cast(pa.binary())), fill_value=True)
    return pc.and_not(differs, pc.and_(pc.is_null(keys), are_of_queues(records["topic"])))


@dataclass(frozen=True, slots=True)
class _Limits:
    """The limits of a valid event as of `now`."""

    contract: ContractSettings
    now: datetime

    def latest(self, bus_times: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the latest valid event_time of each record, in microseconds since 1970."""
        ahead_us = min(self.contract.max_ahead_seconds * 1_000_000, _LAST_US)
        reference = pc.min_element_wise(bus_times.cast(pa.int64()), _microseconds(self.now))
        return pc.min_element_wise(pc.add(reference, ahead_us), _LAST_US)

    def describe_clock(self, bus_time_us: int | None) -> str:
        """Describe the clock that limits the event_time of a record."""
        if bus_time_us is None:
            return f"this machine's clock, {_format_time(_microseconds(self.now))}: the record has no valid record time"
        if bus_time_us > _microseconds(self.now):
            return (
                f"this machine's clock, {_format_time(_microseconds(self.now))}; "
                f"the record time {_format_time(bus_time_us)} is ahead of it too"
            )
        return f"the record time on the bus, {_format_time(bus_time_us)}"


def _failures(
    parsed: Parsed,
    events: pa.Table,
    records: pa.Table,
    mis_keyed: pa.ChunkedArray,
    limits: _Limits,
) -> Iterator[tuple[Reason, pa.Array]]:
    """Yield each reason with the mask (bool, one a row) of the rows that it applies to, in order of precedence."""
    contract = limits.contract
    yield Reason.NULL_VALUE, pc.is_null(records["value"])
    for reason in _OF_PARSING:
        undecodable = np.zeros(len(records), bool)
        undecodable[[row for row, problem in parsed.errors.items() if problem.reason is reason]] = True
        yield reason, pa.array(undecodable)
    yield Reason.MISSING_EVENT_ID, pc.equal(events["event_id"], "")
    yield Reason.MISSING_USER_ID, pc.equal(events["user_id"], "")
    yield Reason.MISSING_ACTION_TYPE, pc.equal(events["action_type"], "")
    yield Reason.MISSING_TIMESTAMP, pc.is_null(events["event_time"])
    yield Reason.OVERSIZED_EVENT_ID, pc.greater(pc.binary_length(events["event_id"]), contract.max_event_id_bytes)
    yield Reason.OVERSIZED_USER_ID, pc.greater(pc.binary_length(events["user_id"]), contract.max_user_id_bytes)
    yield (
        Reason.OVERSIZED_ACTION_TYPE,
        pc.greater(pc.binary_length(events["action_type"]), contract.max_action_type_bytes),
    )
    yield Reason.OVERSIZED_METADATA, pc.greater(metadata.sizes(events["metadata"]), contract.max_metadata_bytes)
    event_us = events["event_time"].cast(pa.int64())
    yield Reason.TIMESTAMP_TOO_EARLY, pc.less(event_us, _microseconds(contract.earliest))
    yield Reason.TIMESTAMP_TOO_LATE, pc.greater(event_us, limits.latest(records["bus_time"]))
    if contract.strict_keys:
        yield Reason.KEY_MISMATCH, mis_keyed


def _first_reason(failures: list[tuple[Reason, pa.Array]], rows: int) -> pa.Array:
    reasons = pa.nulls(rows, pa.string())
    for reason, mask in reversed(failures):
        if pc.any(mask).as_py():
            reasons = pc.if_else(pc.fill_null(mask, fill_value=False), reason.value, reasons)
    return _flat(reasons)


def _with_position(events: pa.Table, records: pa.Table) -> pa.Table:
    columns = [events[name] for name in EVENT.names] + [records[name] for name in POSITION.names]
    return pa.table(columns, schema=pa.schema([*EVENT, *POSITION]))


def _rejected(
    records: pa.Table,
    reasons: pa.Array,
    mask: pa.Array,
    parsed: Parsed,
    events: pa.Table,
    limits: _Limits,
) -> pa.Table:
    rows = pc.indices_nonzero(mask).to_pylist()
    row_reasons = reasons.take(pa.array(rows, pa.int64()))
    bus_times = records["bus_time"].cast(pa.int64())
    details = [
        sanitize_message(_detail(Reason(reason), row, parsed, events, limits, bus_times))
        for row, reason in zip(rows, row_reasons.to_pylist(), strict=True)
    ]
    columns = [*records.filter(mask).columns, row_reasons, pa.array(details, pa.string())]
    return pa.table(columns, schema=REJECTED)


def _detail(
    reason: Reason, row: int, parsed: Parsed, events: pa.Table, limits: _Limits, bus_times: pa.ChunkedArray
) -> str:
    contract = limits.contract
    match reason:
        case Reason.NULL_VALUE:
            return "The record has no value (a tombstone), and an event is never deleted by one."
        case Reason.UNDECODABLE | Reason.UNKNOWN_SCHEMA | Reason.UNMAPPABLE | Reason.REFUSED_SELECT:
            return parsed.errors[row].detail
        case Reason.KEY_MISMATCH:
            return (
                f"The record's key is not its user_id {_quote(events['user_id'][row].as_py())}, and strict_keys is on."
            )
        case Reason.OVERSIZED_METADATA:
            return f"metadata is longer than {contract.max_metadata_bytes} bytes."
        case Reason.OVERSIZED_EVENT_ID | Reason.OVERSIZED_USER_ID | Reason.OVERSIZED_ACTION_TYPE:
            field = reason.removeprefix("oversized_")
            size = len(events[field][row].as_py().encode())
            return f"{field} has {size} bytes; {getattr(contract, f'max_{field}_bytes')} are allowed."
        case Reason.TIMESTAMP_TOO_EARLY | Reason.TIMESTAMP_TOO_LATE:
            return _out_of_range(reason, row, events, limits, bus_times)
        case Reason.MISSING_EVENT_ID | Reason.MISSING_USER_ID | Reason.MISSING_ACTION_TYPE | Reason.MISSING_TIMESTAMP:
            return f"The field {reason.removeprefix('missing_')} is absent or empty."
        case Reason.SKIPPED:
            raise AssertionError("only `karmalake skip` gives this reason")


def _out_of_range(reason: Reason, row: int, events: pa.Table, limits: _Limits, bus_times: pa.ChunkedArray) -> str:
    if reason is Reason.TIMESTAMP_TOO_EARLY:
        return f"timestamp {_time(events, row)} is before {limits.contract.earliest.isoformat()}."
    if events["event_time"].cast(pa.int64())[row].as_py() > _LAST_US:
        return f"timestamp {_time(events, row)} is after the year 9999."
    clock = limits.describe_clock(bus_times[row].as_py())
    time = f"timestamp {_time(events, row)} (the producer's clock)"
    return f"{time} is over {limits.contract.max_ahead_seconds} s ahead of {clock}."


def _time(events: pa.Table, row: int) -> str:
    return _format_time(events["event_time"].cast(pa.int64())[row].as_py())


def _format_time(microseconds: int) -> str:
    try:
        return datetime.fromtimestamp(microseconds // 1_000_000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{microseconds} us since 1970"


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


def _microseconds(time: datetime) -> int:
    return pa.array([time], TIMESTAMP).cast(pa.int64())[0].as_py()


def _flat(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
