"""Values of the feed's topic, in each of its formats: what a notifier makes of one, among valid changes."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, get_args

import pyarrow as pa

from pipelines.contract.registry import Format
from pipelines.contract.score_change import encode_changes
from pipelines.lake.tables import SCORE_CHANGES
from pipelines.notify.changes import Kind
from pipelines.notify.events import decode_changes
from pipelines.notify.rules import Rule
from pipelines.notify.template import fill
from pipelines.settings import ContractSettings
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import Target, demand
from tests.fuzz.targets import protobuf

_FORMATS: tuple[Format, ...] = get_args(Format)
_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_GOOD: dict[str, Any] = {
    "number": 4,
    "user_id": "ann",
    "before": '{"user_id":"ann","all_time_score":4.70,"level":"Silver","status":"active"}',
    "after": '{"user_id":"ann","all_time_score":5,"level":"\u4e16","status":"suspended"}',
    "policy": "default@1",
    "lake_version": 40,
    "as_of": _NOON,
    "recorded": _NOON,
    "causes": [{"cause": "new event", "event_id": "e-1"}, {"cause": "policy", "event_id": None}],
    "more_causes": 1,
}
_TEXT = "{user_id} {event_time} {metadata.before} {metadata.after} {metadata.direction}"
_RULES = [
    Rule.model_validate({"name": "r", "changes": [kind], "text": _TEXT, "to": ["app"]} | more)
    for kind in get_args(Kind)
    for more in ({}, {"falls_below": 5, "rises_above": 3} if kind == "score.changed" else {})
]
_ROWS = (
    None,
    "{}",
    "[]",
    "7",
    "null",
    "[[1,2]]",
    '{"all_time_score":1e999999}',
    '{"all_time_score":NaN}',
    "{",
    '"x"',
    "[" * 9_999,
)
_INTEGERS = (0, 1, 4, -1, 2**31, 2**63 - 1, -(2**63))


def _value(change: dict[str, Any], form: Format) -> bytes:
    (batch,) = pa.Table.from_pylist([change], SCORE_CHANGES).to_batches()
    (value,) = encode_changes(batch, form)
    return value


@cache
def _neighbours() -> list[bytes]:
    """Return a valid change in each format; not before a fork, which the threads of Avro's encoder do not survive."""
    return [_value(_GOOD, form) for form in _FORMATS]


def generate(rng: random.Random) -> bytes:
    """Return a change with odd members, a damaged one, or bytes of another kind."""
    makers: list[Callable[[], bytes]] = [
        partial(_odd, rng),
        lambda: mutate_bytes(rng, _odd(rng), rng.choice(_neighbours())),
        lambda: b"\x09" + rng.randbytes(8) + protobuf.generate(rng),
        lambda: b"".join(
            protobuf.varint(rng.choice((0, 2, 4, 8, 2**40, 2**64 - 1))) for _ in range(rng.randint(1, 30))
        ),
        lambda: json.dumps({name: rng.choice((None, 7, "x", [], {}, [{"cause": 1}])) for name in _GOOD}).encode(),
    ]
    return rng.choice(makers)()


def _odd(rng: random.Random) -> bytes:
    odd = {
        "number": rng.choice(_INTEGERS),
        "user_id": rng.choice(("", "ann", "\x00", "\u202e")),
        "before": rng.choice(_ROWS),
        "after": rng.choice(_ROWS),
        "as_of": rng.choice((_NOON, datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC))),
        "causes": rng.choice(([], [{"cause": "start", "event_id": None}], _GOOD["causes"])),
        "more_causes": rng.choice(_INTEGERS),
    }
    return _value(_GOOD | dict(rng.sample([*odd.items()], rng.randint(0, 4))), rng.choice(_FORMATS))


def check(data: bytes) -> str:
    """Decode the value among valid changes, and fill in the texts of rules."""
    values = [value for neighbour in _neighbours() for value in (neighbour, data)]
    records = [SimpleNamespace(value=value) for value in values]
    found = decode_changes(records, ContractSettings())
    good = [change for record, change in found.events if any(record is each for each in records[::2])]
    demand(len(good) == len(_FORMATS) and all(change == good[0] for change in good), "a valid change is lost")
    others = len(found.events) - len(good)
    demand((others, found.malformed) in {(3, 0), (0, 3), (0, 0)}, f"{others} changes, {found.malformed} malformed")
    for _, change in found.events:
        for rule in _RULES:
            event = rule.event_of(change)
            demand(event is None or isinstance(fill(rule.text, event), str), "a rule has no text")
    return "change" if others else "malformed" if found.malformed else "left out"


TARGETS = {"changes": Target(generate, check, good=_value(_GOOD, "json"), refusals=())}
