"""The verdicts of ingest and audit on the same values, in a comparable form."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from pipelines.contract.metadata import last_value_wins
from pipelines.contract.schema import HEADERS
from pipelines.contract.values import parse_values
from pipelines.operate.audit_values import ReadEvent, read_event
from pipelines.settings import ContractSettings

Headers = Sequence[tuple[str, bytes | None]]
Verdict = tuple[str, str, str, int | str | None, dict[str, str]] | None
"""The fields of an event; None for a value that is not an event."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def of_ingest(values: Sequence[bytes], contract: ContractSettings, headers: Headers = ()) -> list[Verdict]:
    """Return the verdicts of ingest on values that it decodes together."""
    entries = pa.array([[{"key": key, "value": value} for key, value in headers]] * len(values), HEADERS)
    parsed = parse_values(pa.array(values, pa.binary()), contract, entries)
    times = parsed.events["event_time"].cast(pa.int64()).to_pylist()
    rows = enumerate(last_value_wins(parsed.events).drop_columns(["event_time"]).to_pylist())
    return [None if row in parsed.errors else _of_row(event, times[row]) for row, event in rows]


def of_audit(value: bytes, contract: ContractSettings, headers: Headers = ()) -> Verdict:
    """Return the verdict of the audit on a value."""
    read = read_event(value, headers, contract)
    if not isinstance(read, ReadEvent):
        return None
    return *read[:3], _time(read.event_time_us), read.metadata


def _of_row(event: dict[str, Any], time: int | None) -> Verdict:
    return event["event_id"], event["user_id"], event["action_type"], _time(time), dict(event["metadata"])


def _time(microseconds: int | None) -> int | str | None:
    """Return a time, or one word for all times outside the calendar, which no event can have."""
    if microseconds is None or _FIRST_US <= microseconds <= _LAST_US:
        return microseconds
    return "outside the calendar"
