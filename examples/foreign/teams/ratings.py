"""The ratings team: Avro in Confluent's framing. A new release is being rolled out, so two schemas are in use."""

import random
from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from typing import Any

from fastavro import parse_schema, schemaless_writer

from examples.foreign.teams.registry import register
from examples.foreign.teams.team import PEOPLE, Record, line, moments

TOPIC = "ride-ratings"
_FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": "string"},
    {"name": "ride", "type": "string"},
    {"name": "rated", "type": "string"},
    {"name": "stars", "type": {"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 1}},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
]
_TIP = {"name": "tip_cents", "type": ["null", "long"], "default": None}
_SCHEMAS = [
    {"type": "record", "name": "RideRating", "namespace": "com.example.rides", "fields": fields}
    for fields in (_FIELDS, [*_FIELDS, _TIP])
]


def ratings(seed: int, registry_port: int) -> Iterator[Record]:
    """Yield ratings of riders and drivers, with half stars; each is written by the present or the next release."""
    rng = random.Random(f"ratings {seed}")  # noqa: S311 - reproducible
    writers = [(register(registry_port, f"{TOPIC}-value", each), parse_schema(each)) for each in _SCHEMAS]
    for number, at in enumerate(moments(rng)):
        person, stars = rng.choice(PEOPLE), Decimal(rng.randrange(2, 11)) / 2
        moment = at.replace(microsecond=at.microsecond // 1000 * 1000)
        row = {"id": f"rating-{number}", "ride": f"ride-{number}", "rated": person, "stars": stars, "at": moment}
        schema_id, schema = rng.choice(writers)
        book = line(person, "rated", row["id"], moment, stars=f"{stars:.1f}")
        yield Record(_framed(schema_id, schema, row | {"tip_cents": 150}), (book,), row["ride"].encode())


def _framed(schema_id: int, schema: Any, row: dict[str, Any]) -> bytes:
    """Return a value as Confluent's serializer writes it: a zero byte, the schema's id in four bytes, Avro."""
    content = BytesIO()
    schemaless_writer(content, schema, row)
    return b"\0" + schema_id.to_bytes(4, "big") + content.getvalue()
