"""JSON values: objects with the contract's names and any values, in valid and slightly invalid JSON.

An input is several values separated by a line of two dashes, since one decoder call costs as much as many.
"""

import json
import random
from typing import Any

from pipelines.settings import ContractSettings
from tests.fuzz.neighbours import GOOD, check_neighbours
from tests.fuzz.target import Target, parts

_SEPARATOR = b"\n--\n"
_VALUES = 8
CONTRACT = ContractSettings(format="json")
_NAMES = ("event_id", "user_id", "action_type", "timestamp", "metadata", "extra", "", "\x00", "__proto__")
_TIMES = (
    "2026-03-01T12:00:00Z",
    "2026-03-01T12:00:00.123456789+01:00",
    "2026-02-30T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "10000-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z",
    "0000-00-00",
    "infinity",
    "epoch",
    "now",
    "2026-03-01T12:00:60Z",
    "2026-03-01T12:00:00+99:99",
    "20260301T120000Z",
    "  2026-03-01 12:00:00  ",
)
_ODD_VALUES = (
    "1e999999999",
    "-0",
    "NaN",
    "Infinity",
    "9" * 400,
    "0.1" + "0" * 400,
    '"\\ud800"',
    '"\\u0000"',
    '"\\x41"',
    "01",
    "[" * 3_000 + "]" * 3_000,
    '{"a":' * 2_000 + "1" + "}" * 2_000,
    "'single'",
    "{,}",
    "[1,]",
    "/* no */1",
)


def text_of(row: dict[str, Any]) -> bytes:
    """Return an event as a JSON value of the contract."""
    time = row["event_time"].isoformat().replace("+00:00", "Z")
    event = {name: row[name] for name in ("event_id", "user_id", "action_type")}
    return json.dumps(event | {"timestamp": time, "metadata": dict(row["metadata"])}).encode()


NEIGHBOURS = [text_of(row) for row in GOOD]


def generate(rng: random.Random) -> bytes:
    """Return objects, and sometimes another value."""
    values = [_object(rng, _NAMES) if rng.random() < 0.9 else _value(rng, 3) for _ in range(_VALUES)]
    return _SEPARATOR.join(value.encode("utf-8", "surrogatepass") for value in values)


def _object(rng: random.Random, names: tuple[str, ...]) -> str:
    chosen = [*names[:5]] if rng.random() < 0.6 else rng.choices(names, k=rng.randint(0, 8))
    pairs = [f"{json.dumps(name)}{_space(rng)}:{_space(rng)}{_member(rng, name)}" for name in chosen]
    return "{" + f"{_space(rng)},".join(pairs) + "}"


def _member(rng: random.Random, name: str) -> str:
    if rng.random() < 0.25:
        return _value(rng, 3)
    match name:
        case "timestamp":
            return json.dumps(rng.choice(_TIMES))
        case "metadata":
            return json.dumps({f"k{n}": rng.choice(("", "5", "\u202e")) for n in range(rng.randint(0, 3))})
        case _:
            return json.dumps(f"{name}-{rng.randrange(9)}")


def _value(rng: random.Random, depth: int) -> str:
    match rng.randrange(6 if depth else 4):
        case 0:
            return rng.choice(_ODD_VALUES)
        case 1:
            return rng.choice(("null", "true", "false", "0", "-1.5e10", '""'))
        case 2:
            return json.dumps(
                "".join(chr(rng.choice((0, 34, 92, 0x7F, 0x2028, 0xD800, 0x1F600, 65))) for _ in range(4))
            )
        case 3:
            return json.dumps(rng.choice(_TIMES))
        case 4:
            return "[" + ",".join(_value(rng, depth - 1) for _ in range(rng.randint(0, 3))) + "]"
        case _:
            return _object(rng, ("a", "a", *_NAMES))


def _space(rng: random.Random) -> str:
    return rng.choice(("", "", "", " ", "\n\t", "\u00a0", "\x0b"))


def check(data: bytes) -> str:
    """Decode the values among valid events."""
    return check_neighbours(NEIGHBOURS, parts(data, _SEPARATOR), CONTRACT)


TARGETS = {"json": Target(generate, check, good=NEIGHBOURS[0], refusals=())}
