"""One event into the outbox, inside the caller's transaction.

What the contract would reject at the other end is refused here, where somebody can still mend it; `contract.decode`
is the authority, and a test holds this module to it. Values are checked one by one: the columns of a decoder cost
more than a service's whole insert.
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

_TEXT = ("event_id", "user_id", "action_type")
_CONTRACT = ContractSettings()
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Event:
    """One fact that may change somebody's reputation; the fields of `karmalake.v1.Event`."""

    event_id: str
    """Unique for ever: the same event sent twice is counted once."""
    user_id: str
    """Whose reputation it is about."""
    action_type: str
    """What happened, for example DriverRated."""
    timestamp: datetime
    """When it happened, with a time zone; kept in whole microseconds."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the policy may need beside: rating, rater_id, ..."""


def add(connection: Connection | Session, event: Event, contract: ContractSettings = _CONTRACT) -> None:
    """Put `event` into the outbox: it is sent if, and only if, the caller's transaction commits.

    Executes one INSERT and nothing else: no commit, no broker, no other connection. Raises UsageError naming the
    field that the contract does not allow; errors of the database go through as they are.
    """
    _check(event, contract)
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


def _check(event: Event, contract: ContractSettings) -> None:
    for name in _TEXT:
        value = getattr(event, name)
        size = _size(name, value)
        if not size:
            raise UsageError(f"{name} is empty: every event needs one")
        if "\0" in value:
            raise UsageError(f"{name} {_short(value)} holds a NUL character, which databases do not keep in text")
        _bound(name, size, getattr(contract, f"max_{name}_bytes"))
    _bound("metadata", _metadata_size(event.metadata), contract.max_metadata_bytes)
    _check_time(event.timestamp, contract)


def _metadata_size(metadata: Mapping[str, str]) -> int:
    keys = (_size(f"the metadata key {_short(key)}", key) for key in metadata)
    values = (_size(f"metadata[{_short(key)}]", value) for key, value in metadata.items())
    return sum(keys) + sum(values)


def _size(name: str, value: object) -> int:
    """Return the bytes of a text; UsageError where it is none."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is {_short(value)}, a {type(value).__name__}: it must be a str")
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{name} {_short(value)} is not UTF-8: it holds half of a surrogate pair") from None


def _bound(name: str, size: int, allowed: int) -> None:
    if size > allowed:
        raise UsageError(f"{name} has {size} bytes; {allowed} are allowed")


def _check_time(timestamp: object, contract: ContractSettings) -> None:
    if not isinstance(timestamp, datetime):
        raise UsageError(f"timestamp is {_short(timestamp)}, a {type(timestamp).__name__}: it must be a datetime")
    if timestamp.utcoffset() is None:
        raise UsageError(
            f"timestamp {timestamp.isoformat()} has no time zone: say which, for example datetime.now(UTC)"
        )
    if timestamp < contract.earliest:
        raise UsageError(f"timestamp {timestamp.isoformat()} is before {contract.earliest.isoformat()}")
    if timestamp - datetime.now(UTC) > timedelta(seconds=contract.max_ahead_seconds):
        raise UsageError(f"timestamp {timestamp.isoformat()} is over {contract.max_ahead_seconds} s in the future")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
