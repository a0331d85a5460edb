"""The text template of a notification, with placeholders such as `{user_id}` for fields of the event."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELDS = ("event_id", "user_id", "action_type", "event_time")
_METADATA = "metadata."


class Event(NamedTuple):
    """The fields of an event that a notification can use."""

    event_id: str
    user_id: str
    action_type: str
    event_time: str
    """ISO 8601, UTC."""
    metadata: Mapping[str, str]


def check(text: str) -> str:
    """Return the template; raises ValueError with the first invalid placeholder."""
    for match in _PLACE.finditer(text):
        name = match[1]
        if match[0] in {"{", "}"}:
            raise ValueError(f"has an unmatched {match[0]!r}: write {match[0] * 2!r} for the character itself")
        if name is not None and name not in _FIELDS and not (name.startswith(_METADATA) and name != _METADATA):
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise ValueError(f"has {{{name}}}, which is not an event field: write {known} or {{metadata.KEY}}")
    return text


def metadata_keys(text: str) -> list[str]:
    """Return the keys of metadata that a checked template contains."""
    names = (name for name in _PLACE.findall(text) if name.startswith(_METADATA))
    return [name.removeprefix(_METADATA) for name in names]


def fill(text: str, event: Event) -> str:
    """Fill a checked template with the fields of an event; missing metadata is empty."""
    return _PLACE.sub(lambda match: match[0][0] if match[1] is None else _value(match[1], event), text)


def to_json(event: Event, rule: str, text: str) -> str:
    """Return the notification as the JSON object that webhooks receive."""
    return json.dumps(event._asdict() | {"rule": rule, "text": text}, ensure_ascii=False, separators=(",", ":"))


def _value(name: str, event: Event) -> str:
    if name.startswith(_METADATA):
        return event.metadata.get(name.removeprefix(_METADATA), "")
    return str(getattr(event, name))
