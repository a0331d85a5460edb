"""Adding an event to the outbox, inside the caller's transaction.

An event that ingest would reject is refused here, where the service can still fix it. `contract.decode` is the
authority, and a test compares this module with it. Values are checked one by one: building a decoder's columns costs
more than the service's whole INSERT.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, insert
from sqlalchemy.orm import Session

from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.outbox.table import OUTBOX
from pipelines.errors import UsageError
from pipelines.settings import ContractSettings

_TEXT_FIELDS = ("event_id", "user_id", "action_type")
_DEFAULT_CONTRACT = ContractSettings()
_MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Event:
    """A fact that may change a user's reputation; the fields of `karmalake.v1.Event`."""

    event_id: str
    """Globally unique: the same event sent twice is counted once."""
    user_id: str
    """The user whose reputation it affects."""
    action_type: str
    """The kind of event, for example DriverRated."""
    timestamp: datetime
    """Event time, with a time zone; stored in whole microseconds."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further values for the policy: rating, rater_id, ..."""


def add(connection: Connection | Session, event: Event, contract: ContractSettings = _DEFAULT_CONTRACT) -> None:
    """Add `event` to the outbox: it is sent if, and only if, the caller's transaction commits.

    Execute one INSERT and nothing else: no commit, no broker, no other connection. Raises UsageError naming the field
    that violates the contract; database errors propagate unchanged.
    """
    _validate(event, contract)
    connection.execute(insert(OUTBOX), [_row(event)])


def _row(event: Event) -> dict[str, Any]:
    fields = {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "action_type": event.action_type,
        "event_time": event.timestamp.astimezone(UTC),
        "metadata": list(event.metadata.items()),
    }
    [payload] = encode(pa.Table.from_pylist([fields], schema=EVENT)).to_pylist()
    return {"id": event.event_id, "aggregateid": event.user_id, "type": event.action_type, "payload": payload}


def _validate(event: Event, contract: ContractSettings) -> None:
    for name in _TEXT_FIELDS:
        value = getattr(event, name)
        size = _size(name, value)
        if not size:
            raise UsageError(f"{name} is empty: every event needs one")
        if "\0" in value:
            raise UsageError(f"{name} {_short(value)} contains a NUL character, which databases do not store in text")
        _check_size(name, size, getattr(contract, f"max_{name}_bytes"))
    _check_size("metadata", _metadata_size(event.metadata), contract.max_metadata_bytes)
    _validate_time(event.timestamp, contract)


def _metadata_size(metadata: Mapping[str, str]) -> int:
    keys = (_size(f"the metadata key {_short(key)}", key) for key in metadata)
    values = (_size(f"metadata[{_short(key)}]", value) for key, value in metadata.items())
    return sum(keys) + sum(values)


def _size(name: str, value: object) -> int:
    """Return the size of a text in bytes. Raises UsageError if it is not one."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is {_short(value)}, a {type(value).__name__}: it must be a str")
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{name} {_short(value)} is not UTF-8: it contains a lone surrogate") from None


def _check_size(name: str, size: int, allowed: int) -> None:
    if size > allowed:
        raise UsageError(f"{name} has {size} bytes; {allowed} are allowed")


def _validate_time(timestamp: object, contract: ContractSettings) -> None:
    if not isinstance(timestamp, datetime):
        raise UsageError(f"timestamp is {_short(timestamp)}, a {type(timestamp).__name__}: it must be a datetime")
    if timestamp.utcoffset() is None:
        raise UsageError(f"timestamp {timestamp.isoformat()} has no time zone: add one, for example datetime.now(UTC)")
    if timestamp < contract.earliest:
        raise UsageError(f"timestamp {timestamp.isoformat()} is before {contract.earliest.isoformat()}")
    if timestamp - datetime.now(UTC) > timedelta(seconds=contract.max_ahead_seconds):
        raise UsageError(f"timestamp {timestamp.isoformat()} is over {contract.max_ahead_seconds} s in the future")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
