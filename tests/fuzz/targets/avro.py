"""Avro values under random writer schemas: an input is the schema, a line of two dashes, and the value."""

import json
import random
import struct
import tempfile
from functools import cache
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

from fastavro import parse_schema, schemaless_writer

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.settings import ContractSettings
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.neighbours import GOOD, check_neighbours
from tests.fuzz.target import Target

_SEPARATOR = b"\n--\n"
_IDS = count(1)
_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_LOGICAL = (
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "long", "logicalType": "timestamp-nanos"},
    {"type": "long", "logicalType": "local-timestamp-micros"},
    {"type": "int", "logicalType": "date"},
    {"type": "int", "logicalType": "time-millis"},
    {"type": "string", "logicalType": "uuid"},
    {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 9},
    {"type": "fixed", "name": "d", "size": 12, "logicalType": "duration"},
    {"type": "long", "logicalType": "unheard-of"},
)
_NAMES = ("event_id", "user_id", "action_type", "timestamp", "metadata")


def _own(row: dict[str, Any]) -> bytes:
    out = BytesIO()
    event = {name: row[name] for name in ("event_id", "user_id", "action_type")}
    time = {"timestamp": row["event_time"], "metadata": dict(row["metadata"])}
    schemaless_writer(out, parse_schema(json.loads(OWN_SCHEMA)), event | time)
    return out.getvalue()


NEIGHBOURS = [_own(row) for row in GOOD]


def generate(rng: random.Random) -> bytes:
    """Return the contract's schema with fields added, changed or removed, and a value that mostly fits it."""
    schema = json.loads(OWN_SCHEMA)
    fields = [field for field in schema["fields"] if rng.random() < 0.97]
    for _ in range(rng.randint(0, 3)):
        fields.insert(rng.randint(0, len(fields)), {"name": f"x{rng.randrange(9)}", "type": _type(rng, 3)})
    if rng.random() < 0.15:
        rng.choice(fields)["type"] = _type(rng, 2)
    schema["fields"] = fields
    if rng.random() < 0.05:
        schema["type"] = rng.choice(("error", "enum", "fixed", "map", ["null", "record"], 7))
    return json.dumps(schema).encode() + _SEPARATOR + _value(rng, schema)


def _type(rng: random.Random, depth: int) -> Any:
    match rng.randrange(9 if depth else 2):
        case 0:
            return rng.choice(_PRIMITIVES)
        case 1:
            return rng.choice(_LOGICAL)
        case 2:
            return {"type": "array", "items": _type(rng, depth - 1)}
        case 3:
            return {"type": "map", "values": _type(rng, depth - 1)}
        case 4:
            return [*dict.fromkeys(rng.choices(_PRIMITIVES, k=rng.randint(0, 3)))]
        case 5:
            return {"type": "enum", "name": f"E{rng.randrange(99)}", "symbols": ["A", "B"][: rng.randint(0, 2)]}
        case 6:
            return {"type": "fixed", "name": f"F{rng.randrange(99)}", "size": rng.choice((0, 1, 16, 2**31, -1))}
        case 7:
            return rng.choice(("Event", "karmalake.v1.Event", "Node", ["null", "Event"]))  # recursive
        case _:
            inner = [{"name": f"f{n}", "type": _type(rng, depth - 1)} for n in range(rng.randint(0, 2))]
            return {"type": rng.choice(("record", "record", "error")), "name": f"R{rng.randrange(99)}", "fields": inner}


def _value(rng: random.Random, schema: Any) -> bytes:
    """Return a value that fits the schema, or random bytes if none can be written."""
    event = {"event_id": "w", "user_id": "u", "action_type": "A", "timestamp": 1_772_366_400_000_000, "metadata": {}}
    try:
        known = parse_schema(schema)
        row = {field["name"]: event.get(field["name"], _default(rng, field["type"])) for field in schema["fields"]}
        out = BytesIO()
        schemaless_writer(out, known, row)
    except Exception:  # noqa: BLE001 - fastavro raises any error for an invalid schema
        return rng.choice((rng.randbytes(rng.randint(0, 30)), b"\x02", *NEIGHBOURS))
    return out.getvalue()


def _default(rng: random.Random, schema: Any) -> Any:
    kind = schema["type"] if isinstance(schema, dict) else schema
    values = {"null": None, "boolean": True, "int": 1, "long": 1, "float": 0.5, "double": 0.5, "bytes": b"b"}
    return {**values, "string": "s", "array": [], "map": {}}.get(kind if isinstance(kind, str) else "")


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the value, the schema, or both; sometimes exchange one of them with that of `other`."""
    schema, _, value = data.partition(_SEPARATOR)
    other_schema, _, other_value = other.partition(_SEPARATOR)
    match rng.randrange(6):
        case 0:
            return mutate_bytes(rng, schema, other_schema) + _SEPARATOR + value
        case 1:
            return other_schema + _SEPARATOR + value
        case 2:
            bomb = b"".join(rng.choice((b"\xff" * 9 + b"\x01", b"\xfe\xff\xff\xff\x0f", b"\x01")) for _ in range(3))
            return schema + _SEPARATOR + value + bomb
        case _:
            return schema + _SEPARATOR + mutate_bytes(rng, value, other_value)


def check(data: bytes) -> str:
    """Decode the value under the writer's schema, with an id of its own, among bare events."""
    schema, _, value = data.partition(_SEPARATOR)
    number = next(_IDS)
    file = _folder() / f"{number}.avsc"
    file.write_text(schema.decode("utf-8", "replace"), encoding="utf-8")  # a registry returns text
    try:
        contract = ContractSettings(format="avro", schemas_dir=_folder())
        return check_neighbours(NEIGHBOURS, [struct.pack(">bI", 0, number) + value], contract)
    finally:
        file.unlink()


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


TARGETS = {
    "avro": Target(generate, check, good=OWN_SCHEMA.encode() + _SEPARATOR + NEIGHBOURS[0], refusals=(), mutate=mutate)
}
