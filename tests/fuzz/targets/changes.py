"""Records on the topic of the feed, in each format: a change is matched, filled in and written, or it is malformed."""

import json
import random
from datetime import UTC, datetime
from functools import cache
from types import SimpleNamespace
from typing import Any, get_args

import pyarrow as pa

from pipelines.contract.registry import Format
from pipelines.contract.score_change import encode_changes
from pipelines.lake.tables import SCORE_CHANGES
from pipelines.notify.events import decode_changes
from pipelines.notify.rules import Rule
from pipelines.notify.template import Event, fill, to_json
from pipelines.settings import ContractSettings
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import Target, demand, parts
from tests.fuzz.targets import protobuf

_SEPARATOR = b"\n--\n"
_RECORDS = 8
_FORMATS: tuple[Format, ...] = get_args(Format)
_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_GOOD = {
    "number": 7,
    "user_id": "u-1",
    "as_of": "2026-03-01T12:00:00.000000Z",
    "policy": "p",
    "causes": [],
    "before": {"level": "Silver", "status": "active", "all_time_score": 3},
    "after": {"level": "Gold", "status": "suspended", "all_time_score": 5},
}
_ROW: dict[str, Any] = _GOOD | {
    "before": json.dumps(_GOOD["before"]),
    "after": json.dumps(_GOOD["after"]),
    "as_of": _NOON,
    "recorded": _NOON,
    "lake_version": 4,
    "more_causes": 0,
}
_INTEGERS = (0, 1, 4, -1, 2**31, 2**63 - 1, -(2**63))
_MOMENTS = (_NOON, datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC))
_CAUSES = ([], [{"cause": "start", "event_id": None}], [{"cause": "new event", "event_id": "\u202e"}] * 2)
_VARINTS = (0, 2, 4, 8, 2**40, 2**64 - 2, 2**64 - 1)
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
    """Return changes, each with some members of another kind or missing, and bytes that are none."""
    return _SEPARATOR.join(rng.choice((_json, _encoded, _damaged, _foreign))(rng) for _ in range(_RECORDS))


def _json(rng: random.Random) -> bytes:
    return (rng.choice(_ODD) if rng.random() < 0.1 else _members(rng, _GOOD)).encode()


def _encoded(rng: random.Random) -> bytes:
    """Return a change with odd members as the relay encodes it."""
    odd = {
        "number": rng.choice(_INTEGERS),
        "user_id": rng.choice(("", "\x00", "\u202e")),
        "before": rng.choice((None, "{", _members(rng, _GOOD["before"]), *_ODD)),
        "after": rng.choice((None, "", _members(rng, _GOOD["after"]), *_ODD)),
        "as_of": rng.choice(_MOMENTS),
        "causes": rng.choice(_CAUSES),
        "more_causes": rng.choice(_INTEGERS),
    }
    return _value(_ROW | dict(rng.sample([*odd.items()], rng.randint(1, 4))), rng.choice(_FORMATS))


def _damaged(rng: random.Random) -> bytes:
    return mutate_bytes(rng, _encoded(rng), rng.choice(_neighbours()))


def _foreign(rng: random.Random) -> bytes:
    """Return fields of Protobuf after a number, or numbers of Avro."""
    if rng.random() < 0.5:
        return b"\x09" + rng.randbytes(8) + protobuf.generate(rng)
    return b"".join(protobuf.varint(rng.choice(_VARINTS)) for _ in range(rng.randint(1, 30)))


def _value(row: dict[str, Any], form: Format) -> bytes:
    (batch,) = pa.Table.from_pylist([row], SCORE_CHANGES).to_batches()
    (value,) = encode_changes(batch, form)
    return value


@cache
def _neighbours() -> list[bytes]:
    """Return a valid change in each format; not before a fork, which the threads of Avro's encoder do not survive."""
    return [_value(_ROW, form) for form in _FORMATS]


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
    good = [_sent(neighbour) for neighbour in _neighbours()]
    demand(all(events == good[0] for events in good), f"a format differs: {good}")
    demand([event.action_type for event in good[0]] == ["level.changed", *["score.changed"] * 2], f"{good[0]}")
    return " ".join(str(len(_sent(value))) for value in parts(data, _SEPARATOR))


TARGETS = {"changes": Target(generate, check, good=_value(_ROW, "json"), refusals=())}
