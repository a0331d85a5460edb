"""Records to events and rejections: the gate of the contract. Pure; knows nothing of Kafka or the lake."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract import metadata
from pipelines.contract.parsed import Parsed
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, PLACE, REJECTED, TIMESTAMP
from pipelines.contract.values import parse_values
from pipelines.settings import ContractSettings


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of the records of a batch: each is in exactly one of the two tables.

    `events` has the columns EVENT + PLACE and keeps the order of the records; `rejected` has REJECTED.
    `mis_keyed` marks the events whose record key is not their user_id.
    """

    events: pa.Table
    rejected: pa.Table
    mis_keyed: pa.BooleanArray


def decode(records: pa.Table, contract: ContractSettings) -> Decoded:
    """Split `records` (RECORD columns) into valid events and rejected records (`not-blocked`).

    Raises ConfigurationError or TransientError when a schema registry is needed and cannot be asked.
    """
    records = records.combine_chunks()
    return judge(records, parse_values(_flat(records["value"]), contract, _flat(records["headers"])), contract)


def judge(records: pa.Table, parsed: Parsed, contract: ContractSettings) -> Decoded:
    """Split what the values of `records` (RECORD columns, in one chunk) were parsed into by the bounds of an event."""
    events = metadata.last_value_wins(parsed.events)
    mis_keyed = pc.fill_null(pc.not_equal(records["key"], events["user_id"].cast(pa.binary())), fill_value=True)
    reasons = _first_reason(list(_failures(parsed, events, records, mis_keyed, contract)), len(records))
    valid = pc.is_null(reasons)
    return Decoded(
        events=keep(_with_place(events, records), valid),
        rejected=_rejected(records, reasons, pc.invert(valid), parsed, events, contract),
        mis_keyed=_flat(pc.filter(mis_keyed, valid)),
    )


def keep(rows: pa.Table, wanted: pa.BooleanArray) -> pa.Table:
    """Return the wanted rows, and the table itself, without a copy, where that is all of them."""
    return rows if pc.all(wanted, min_count=0).as_py() else rows.filter(wanted)


def _failures(
    parsed: Parsed,
    events: pa.Table,
    records: pa.Table,
    mis_keyed: pa.ChunkedArray,
    contract: ContractSettings,
) -> Iterator[tuple[Reason, pa.Array]]:
    """Yield each reason with the mask of rows it applies to, in order of precedence."""
    yield Reason.NULL_VALUE, pc.is_null(records["value"])
    for reason in (Reason.UNDECODABLE, Reason.UNKNOWN_SCHEMA):
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
    latest = pc.add(records["bus_time"].cast(pa.int64()), contract.max_ahead_seconds * 1_000_000)
    yield Reason.TIMESTAMP_TOO_EARLY, pc.less(event_us, _microseconds(contract.earliest))
    yield Reason.TIMESTAMP_TOO_LATE, pc.greater(event_us, latest)
    if contract.strict_keys:
        yield Reason.KEY_MISMATCH, mis_keyed


def _first_reason(failures: list[tuple[Reason, pa.Array]], rows: int) -> pa.Array:
    reasons = pa.nulls(rows, pa.string())
    for reason, mask in reversed(failures):
        if pc.any(mask).as_py():
            reasons = pc.if_else(pc.fill_null(mask, fill_value=False), reason.value, reasons)
    return _flat(reasons)


def _with_place(events: pa.Table, records: pa.Table) -> pa.Table:
    columns = [events[name] for name in EVENT.names] + [records[name] for name in PLACE.names]
    return pa.table(columns, schema=pa.schema([*EVENT, *PLACE]))


def _rejected(
    records: pa.Table,
    reasons: pa.Array,
    mask: pa.Array,
    parsed: Parsed,
    events: pa.Table,
    contract: ContractSettings,
) -> pa.Table:
    rows = pc.indices_nonzero(mask).to_pylist()
    kept = reasons.take(pa.array(rows, pa.int64()))
    details = [
        _sentence(Reason(reason), row, parsed, events, contract)
        for row, reason in zip(rows, kept.to_pylist(), strict=True)
    ]
    columns = [*records.filter(mask).columns, kept, pa.array(details, pa.string())]
    return pa.table(columns, schema=REJECTED)


def _sentence(reason: Reason, row: int, parsed: Parsed, events: pa.Table, contract: ContractSettings) -> str:
    match reason:
        case Reason.NULL_VALUE:
            return "The record has no value (a tombstone), and an event is never deleted by one."
        case Reason.UNDECODABLE | Reason.UNKNOWN_SCHEMA:
            return parsed.errors[row].sentence
        case Reason.KEY_MISMATCH:
            return (
                f"The record's key is not its user_id {_short(events['user_id'][row].as_py())}, and strict_keys is on."
            )
        case Reason.OVERSIZED_METADATA:
            return f"metadata is longer than {contract.max_metadata_bytes} bytes."
        case Reason.OVERSIZED_EVENT_ID | Reason.OVERSIZED_USER_ID | Reason.OVERSIZED_ACTION_TYPE:
            field = reason.removeprefix("oversized_")
            size = len(events[field][row].as_py().encode())
            return f"{field} has {size} bytes; {getattr(contract, f'max_{field}_bytes')} are allowed."
        case Reason.TIMESTAMP_TOO_EARLY:
            return f"timestamp {_time(events, row)} is before {contract.earliest.isoformat()}."
        case Reason.TIMESTAMP_TOO_LATE:
            return f"timestamp {_time(events, row)} is over {contract.max_ahead_seconds} s ahead of the broker's time."
        case _:
            return f"The field {reason.removeprefix('missing_')} is absent or empty."


def _time(events: pa.Table, row: int) -> str:
    microseconds = events["event_time"].cast(pa.int64())[row].as_py()
    try:
        return datetime.fromtimestamp(microseconds // 1_000_000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{microseconds} us since 1970"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


def _microseconds(instant: datetime) -> int:
    return pa.array([instant], TIMESTAMP).cast(pa.int64())[0].as_py()


def _flat(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
