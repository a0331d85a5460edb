"""Records on the topic of the feed: a change is matched, filled in and written, or it is counted as malformed."""

import json
import random
from types import SimpleNamespace
from typing import Any

from pipelines.notify.events import decode_changes
from pipelines.notify.rules import Rule
from pipelines.notify.template import Event, fill, to_json
from pipelines.settings import ContractSettings
from tests.fuzz.target import Target, demand

_SEPARATOR = b"\n--\n"
_RECORDS = 8
_GOOD = {
    "number": 7,
    "user_id": "u-1",
    "as_of": "2026-03-01T12:00:00Z",
    "policy": "p",
    "causes": [],
    "before": {"level": "Silver", "status": "active", "all_time_score": 3},
    "after": {"level": "Gold", "status": "suspended", "all_time_score": 5},
}
_NEIGHBOUR = json.dumps(_GOOD).encode()
_ODD = (
    "1e999999999",
    "1e99999999999999999999",
    "-1e-99999999999999999999",
    "NaN",
    "-Infinity",
    "true",
    "null",
    "[]",
    "{}",
    "9" * 4_000,
    "9" * 5_000,
    "0." + "1" * 5_000,
    "[" * 300 + "]" * 300,
    '{"a":' * 900 + "1" + "}" * 900,
    '"\\ud800"',
    '"\\u0000\\u202e"',
    '""',
    '[["level", "x"]]',
)
_TEXT = "{user_id} {metadata.before} {metadata.after} {metadata.direction} {metadata.number}"
_KEYS: tuple[dict[str, Any], ...] = (
    {"changes": ["level.changed", "status.changed"]},
    {"changes": ["score.changed"]},
    {"changes": ["score.changed"], "falls_below": "5", "rises_above": "1e6000"},
    {"changes": ["score.changed"], "when": [{"key": "after", "at_least": "1"}]},
)
RULES = [Rule.model_validate({"name": "r", "text": _TEXT, "to": ["t"]} | keys) for keys in _KEYS]


def generate(rng: random.Random) -> bytes:
    """Return changes, each with some members of another kind or missing."""
    return _SEPARATOR.join(_record(rng).encode() for _ in range(_RECORDS))


def _record(rng: random.Random) -> str:
    return rng.choice(_ODD) if rng.random() < 0.1 else _members(rng, _GOOD)


def _members(rng: random.Random, values: dict[str, Any]) -> str:
    found = [f'"{name}":{_member(rng, value)}' for name, value in values.items() if rng.random() < 0.97]
    return "{" + ",".join(found) + "}"


def _member(rng: random.Random, value: Any) -> str:
    if rng.random() < 0.15:
        return rng.choice(_ODD)
    return _members(rng, value) if isinstance(value, dict) else json.dumps(value)


def _sent(value: bytes) -> list[Event]:
    """Return the events that rules make of a record, written as a webhook receives them."""
    decoded = decode_changes([SimpleNamespace(value=value)], ContractSettings())
    demand(len(decoded.events) + decoded.malformed <= 1, "a record has several outcomes")
    events = [event for _, change in decoded.events for rule in RULES if (event := rule.event_of(change)) is not None]
    for event in events:
        json.loads(to_json(event, "r", fill(_TEXT, event)))
    return events


def check(data: bytes) -> str:
    """Decode the records among valid changes."""
    good = _sent(_NEIGHBOUR)
    demand([event.action_type for event in good] == ["level.changed", *["score.changed"] * 2], f"{good}")
    return " ".join(str(len(_sent(value))) for value in data.split(_SEPARATOR))


TARGETS = {"changes": Target(generate, check, good=_NEIGHBOUR, refusals=())}
