"""Records of the bus to events that a rule can be asked about, by the very contract that the warehouse reads by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.contract.decode import decode
from pipelines.contract.schema import HEADERS, RECORD, TIMESTAMP
from pipelines.notify.template import Event
from pipelines.settings import ContractSettings


@dataclass(frozen=True, slots=True)
class Understood:
    """What a poll brought: each record that is an event, with it, and how many are none."""

    events: tuple[tuple[Any, Event], ...]
    """kafka-python's ConsumerRecord, in the order of the poll."""
    malformed: int
    """Skipped here: they are dead letters of the warehouse, which reads the same topic."""


def understand(records: Sequence[Any], contract: ContractSettings) -> Understood:
    """Decode ConsumerRecords of one topic."""
    decoded = decode(_columns(records), contract)
    by_place = {(record.partition, record.offset): record for record in records}
    rows = decoded.events.to_pylist()
    events = tuple((by_place[row["topic_partition"], row["offset"]], _event(row)) for row in rows)
    return Understood(events, len(decoded.rejected))


def _columns(records: Sequence[Any]) -> pa.Table:
    columns = [
        pa.array([""] * len(records), pa.string()),
        pa.array([record.topic for record in records], pa.string()),
        pa.array([record.partition for record in records], pa.int32()),
        pa.array([record.offset for record in records], pa.int64()),
        pa.array([record.timestamp * 1_000 for record in records], pa.int64()).cast(TIMESTAMP),
        pa.array([record.key for record in records], pa.binary()),
        pa.array([record.value for record in records], pa.binary()),
        pa.array([[{"key": key, "value": value} for key, value in record.headers] for record in records], HEADERS),
    ]
    return pa.table(columns, schema=RECORD)


def _event(row: dict[str, Any]) -> Event:
    time = row["event_time"].isoformat()
    return Event(row["event_id"], row["user_id"], row["action_type"], time, dict(row["metadata"] or ()))
