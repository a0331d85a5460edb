"""Decoding Kafka records to what rules match: events, by the same contract as ingest, and changes of the feed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import pyarrow as pa

from pipelines.contract.change_causes import START
from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.contract.score_change import decode_change
from pipelines.contract.times import bus_times
from pipelines.notify.changes import Change
from pipelines.notify.template import Event
from pipelines.settings import ContractSettings

_COLUMNS = ("topic_partition", "offset", "event_id", "user_id", "action_type", "metadata")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DecodedRecords(Generic[T]):
    """The records of a poll: each valid event, or change, with its record, and the number of others."""

    events: tuple[tuple[Any, T], ...]
    """kafka-python's ConsumerRecord, in the order of the poll."""
    malformed: int
    """Number of records skipped here: ingest, which reads the same topic, makes them dead letters."""


def decode_events(records: Sequence[Any], contract: ContractSettings) -> DecodedRecords[Event]:
    """Decode ConsumerRecords of one topic; exactly those that ingest makes dead letters are malformed.

    Raises the errors of `decode` where a schema registry is needed.
    """
    decoded = decode(_columns(records), contract)
    by_place = {(record.partition, record.offset): record for record in records}
    rows = decoded.events.select(_COLUMNS).to_pylist()
    times = decoded.events["event_time"].cast(pa.int64()).to_pylist()
    matched = (
        (by_place[row["topic_partition"], row["offset"]], row, time) for row, time in zip(rows, times, strict=True)
    )
    return DecodedRecords(tuple((record, _event(row, time)) for record, row, time in matched), len(decoded.rejected))


def decode_changes(records: Sequence[Any], _contract: ContractSettings) -> DecodedRecords[Change]:
    """Decode ConsumerRecords of the feed's topic, in whatever format each of them is.

    Records without a value, of erased users, and changes of the feed's first publication are left out. Whatever another
    writer of the topic put there is malformed (`not-blocked`).
    """
    found, malformed = list[tuple[Any, Change]](), 0
    for record in records:
        try:
            change = None if record.value is None else _change(decode_change(record.value))
        except Exception:  # noqa: BLE001 - whatever its bytes raise, such as InvalidOperation for an endless exponent
            malformed += 1
        else:
            found += [(record, change)] if change else []
    return DecodedRecords(tuple(found), malformed)


def _change(members: dict[str, Any]) -> Change | None:
    causes = tuple(dict.fromkeys(each["cause"] for each in members["causes"]))
    if START in causes:
        return None
    number, user_id, as_of, policy = (members[name] for name in ("number", "user_id", "as_of", "policy"))
    if not (
        isinstance(number, int) and all(text and isinstance(text, str) for text in (user_id, as_of, policy, *causes))
    ):
        raise TypeError("not a change")
    return Change(number, user_id, as_of, policy, causes, _scalars(members["before"]), _scalars(members["after"]))


def _scalars(row: dict[str, Any] | None) -> dict[str, Any]:
    """Return the values of a row, without lists and objects: no column has one, and they nest to any depth."""
    return {name: value for name, value in (row or {}).items() if not isinstance(value, list | dict)}


def _columns(records: Sequence[Any]) -> pa.Table:
    columns = [
        pa.array([""] * len(records), pa.string()),
        pa.array([record.topic for record in records], pa.string()),
        pa.array([record.partition for record in records], pa.int32()),
        pa.array([record.offset for record in records], pa.int64()),
        bus_times([record.timestamp for record in records]),
        pa.array([record.key for record in records], pa.binary()),
        pa.array([record.value for record in records], pa.binary()),
        pa.array([_headers(record) for record in records], RECORD.field("headers").type),
    ]
    return pa.table(columns, schema=RECORD)


def _headers(record: Any) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in record.headers or ()]


def _event(row: dict[str, Any], microseconds: int) -> Event:
    metadata = dict(row["metadata"] or ())
    return Event(row["event_id"], row["user_id"], row["action_type"], _iso(microseconds), metadata)


def _iso(microseconds: int) -> str:
    """Return microseconds since 1970 as ISO 8601, UTC. A valid event's are within the years 1 to 9999."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
