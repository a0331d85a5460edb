"""Notifications decode records as ingest does, including schemas named in headers."""

from types import SimpleNamespace
from typing import Any

from pipelines.notify.events import decode_events
from pipelines.settings import ContractSettings
from tests.contract.encoding import to_protobuf

_SECONDS = 1_772_366_400


def _record(offset: int, headers: list[tuple[str, bytes | None]]) -> Any:
    value = to_protobuf(1, f"e-{offset}", _SECONDS)
    return SimpleNamespace(
        topic="t", partition=0, offset=offset, timestamp=_SECONDS * 1_000, key=b"u", value=value, headers=headers
    )


def test_a_schema_in_a_header_is_followed() -> None:
    """A record that ingest rejects because of its header is not delivered."""
    another_message = b"\x00" + (7).to_bytes(4, "big") + b"\x02\x02"
    records = [_record(0, []), _record(1, [("__value_schema_id", another_message)]), _record(2, [("trace", None)])]
    understood = decode_events(records, ContractSettings())
    assert [event.event_id for _, event in understood.events] == ["e-0", "e-2"]
    assert understood.malformed == 1
