"""The text of a notification: `{user_id}` and its like stand for what the event says."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELDS = ("event_id", "user_id", "action_type", "event_time")
_METADATA = "metadata."


class Event(NamedTuple):
    """An event as a notification speaks of it."""

    event_id: str
    user_id: str
    action_type: str
    event_time: str
    """ISO 8601, UTC."""
    metadata: Mapping[str, str]


def check(text: str) -> str:
    """Return the template; ValueError naming the first place in it that nothing can stand in."""
    for match in _PLACE.finditer(text):
        name = match[1]
        if match[0] in {"{", "}"}:
            raise ValueError(f"has a lone {match[0]!r}: write {match[0] * 2!r} for the character itself")
        if name is not None and name not in _FIELDS and not (name.startswith(_METADATA) and name != _METADATA):
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise ValueError(f"has {{{name}}}, which is no field of an event: write {known} or {{metadata.KEY}}")
    return text


def fill(text: str, event: Event) -> str:
    """Return a checked template with what the event says; metadata that it does not have is left empty."""
    return _PLACE.sub(lambda match: match[0][0] if match[1] is None else _value(match[1], event), text)


def to_json(event: Event, rule: str, text: str) -> str:
    """Return the notification as the JSON object that every webhook receives."""
    return json.dumps(event._asdict() | {"rule": rule, "text": text}, ensure_ascii=False, separators=(",", ":"))


def _value(name: str, event: Event) -> str:
    if name.startswith(_METADATA):
        return event.metadata.get(name.removeprefix(_METADATA), "")
    return str(getattr(event, name))
