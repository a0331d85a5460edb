"""Ingest and audit agree on every value, in any format (`nothing-lost`).

By two readers that share rulings and no code: an audit that is stricter calls records lost that are not, one that is
laxer passes for accepted what never was.
"""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.json_grammar import MAX_JSON_DEPTH
from pipelines.contract.wire import MAX_GROUPS
from pipelines.emit.producer import Record
from pipelines.operate.audit import audit
from pipelines.settings import ContractSettings, Settings
from tests.draining import drain_all, send, with_ingest
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.targets import avro, json_values, protobuf
from tests.verdicts import of_audit, of_ingest

_PROTOBUF, _JSON = ContractSettings(), ContractSettings(format="json")
_EVENT = b'{"event_id":"e-1","user_id":"u-1","action_type":"A","timestamp":"2026-03-01T10:00:00Z"'
_WIRE = b"\x0a\x01e\x12\x01u\x1a\x01A"


def _agreed(values: list[bytes], contract: ContractSettings) -> int:
    """Assert equal verdicts, decoded together and one by one; return the number of events."""
    ingested = of_ingest(values, contract)
    assert ingested == [of_audit(value, contract) for value in values]
    return sum(verdict is not None for verdict in ingested)


@pytest.mark.slow
@pytest.mark.parametrize("target", [protobuf, json_values], ids=["protobuf", "json"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_ingest_and_audit_agree_on_random_values(target: Any, seed: int) -> None:
    """For values of the fuzz harness, some of them damaged, both return equal fields or none."""
    rng = random.Random(seed)  # noqa: S311 - values for a test
    generated = [target.generate(rng) for _ in range(8)]
    values = [value for each in generated for value in (each.split(b"\n--\n") if target is json_values else [each])]
    damaged = [mutate_bytes(rng, value, values[0]) for value in values]
    _agreed([value for value in values + damaged if value[:1] != b"\0"], target.CONTRACT)


_AVRO_TYPES: list[Any] = [
    *("null", "boolean", "int", "long", "float", "double", "bytes", "string"),
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "int", "logicalType": "date"},
    {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2},
    {"type": "fixed", "name": "d", "size": 12, "logicalType": "duration"},
    {"type": "string", "logicalType": "uuid"},
    ["null", "string"],
    ["string", "int", "boolean"],
    {"type": "array", "items": "int"},
    {"type": "map", "values": "boolean"},
    {"type": "enum", "name": "E", "symbols": ["A", "B"], "default": "A"},
    {"type": "record", "name": "R", "aliases": ["S"], "fields": [{"name": "f", "type": "int", "default": 1}]},
]
_CHANGED = {
    "user_id": [["null", "string"], {"type": "enum", "name": "E", "symbols": ["A", "B"]}, "bytes"],
    "timestamp": [
        {"type": "int", "logicalType": "timestamp-millis"},
        ["null", {"type": "long", "logicalType": "timestamp-nanos"}],
        "long",
    ],
    "metadata": [["null", {"type": "map", "values": "string"}], {"type": "map", "values": ["null", "string"]}],
}  # fmt: skip
_PIECES = [
    *(b"", b"\x00", b"\x01", b"\x02", b"\x03", b"\x04", b"\x80", b"\xff", b"\x02A", b"\x02\xff", b"\x80\x00"),
    *(b"\xff" * 9 + b"\x01", b"\x80" * 10 + b"\x01", b"\xfe\xff\xff\xff\x0f", b"\xff" * 5 + b"\x0f"),
    *(b"\x02\x02a\x02b\x00", b"\x03\x08\x02a\x02b\x00"),
]


def _schemas() -> list[tuple[int | None, str]]:
    """Return schemas, each with the index of a skipped field; None if a field of the event has another type."""
    found: list[tuple[int | None, str]] = []
    for of in _AVRO_TYPES:
        for place in (0, 5):
            schema = json.loads(OWN_SCHEMA)
            schema["fields"].insert(place, {"name": "extra", "type": of})
            found.append((place, json.dumps(schema)))
    for name, types in _CHANGED.items():
        for of in types:
            schema = json.loads(OWN_SCHEMA)
            schema["fields"] = [each | ({"type": of} if each["name"] == name else {}) for each in schema["fields"]]
            found.append((None, json.dumps(schema)))
    return found


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a schema file per id."""
    folder = tmp_path_factory.mktemp("schemas")
    for number, (_, schema) in enumerate(_schemas()):
        (folder / f"{number}.avsc").write_text(schema, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("number", "place"), [(number, place) for number, (place, _) in enumerate(_schemas())])
def test_ingest_and_audit_agree_on_random_avro(writers: Path, number: int, place: int | None) -> None:
    """For values with a skipped field or one of another type, and with malformed numbers and lengths."""
    rng = random.Random(number)  # noqa: S311 - values for a test
    contract = ContractSettings(format="avro", schemas_dir=writers)
    values: list[bytes] = []
    for _ in range(150):
        piece, event = b"".join(rng.choices(_PIECES, k=rng.randint(0, 3))), rng.choice(avro.NEIGHBOURS)
        at = rng.randrange(len(event))
        value = piece + event if place == 0 else event + piece if place else event[:at] + piece + event[at + 1 :]
        values.append(struct.pack(">bI", 0, number) + value)
    _agreed(values, contract)


@pytest.mark.parametrize(
    ("value", "events"),
    [
        (_EVENT + b"}", 1),
        (_EVENT + b",}", 0),
        (_EVENT + b',"x":[1,]}', 0),
        (_EVENT + b',"x":NaN}', 0),
        (_EVENT + b',"x":-Infinity}', 0),
        (_EVENT + b',"x":' + b"[" * (MAX_JSON_DEPTH - 1) + b"]" * (MAX_JSON_DEPTH - 1) + b"}", 1),
        (_EVENT + b',"x":' + b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH + b"}", 0),
        (_EVENT + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0),
        (_EVENT + b',"x":' + b"9" * 10_000 + b"}", 1),
        (_EVENT + b',"x":1e99999}', 1),
        (_EVENT + b',"x":-0}', 1),
        (_EVENT + b',"x":01}', 0),
        (_EVENT + b',"x":"\\ud800"}', 0),
        (_EVENT + b',"\\ud83d\\ude00":"\\ud83d\\ude00"}', 1),
        (_EVENT + b',"x":"\xff"}', 0),
        (_EVENT + b',"x":"\\u0000"}', 1),
        (_EVENT + b',"x":"\x00"}', 0),
        (_EVENT + b',"":1}', 1),
        (_EVENT + b',"x":1,"x":2}', 0),
        (_EVENT + b',"x":{"a":1,"a":2}}', 1),
        (_EVENT + b',"metadata":{"":""}}', 1),
        (_EVENT + b',"metadata":{"a":1}}', 0),
        (_EVENT + b',"metadata":{"a":null}}', 0),
        (_EVENT + b',"metadata":{"a":"1","\\u0061":"2"}}', 0),
        (_EVENT + b',"metadata":null}', 1),
        (_EVENT + b',/* no */"x":1}', 0),
        (b"\xef\xbb\xbf" + _EVENT + b"}", 0),
        ((_EVENT + b"}").decode().encode("utf-16"), 0),
        (_EVENT.replace(b'"u-1"', b"1") + b"}", 0),
        (_EVENT.replace(b'"u-1"', b"9" * 400) + b"}", 0),
        (_EVENT.replace(b'"u-1"', b"true") + b"}", 0),
        (_EVENT.replace(b"10:00:00Z", b"10:00:60Z") + b"}", 0),
        (_EVENT.replace(b"2026-03-01T10:00:00Z", b" 20260301T10Z ") + b"}", 1),
        (_EVENT.replace(b"2026-03-01T10:00:00Z", b"0001-01-01T00:00:00+00:01") + b"}", 0),
        (_EVENT.replace(b"2026-03-01T10:00:00Z", b"9999-12-31T23:59:59-00:01") + b"}", 0),
        (_EVENT + b',"x":[' + b"1," * 1_000_000 + b"1]}", 1),
    ],
)
def test_ingest_and_audit_agree_on_json(value: bytes, events: int) -> None:
    """Both accept strict JSON to the same depth; skipped fields may hold any number and any string."""
    assert _agreed([value, _EVENT + b"}"], _JSON) == events + 1


@pytest.mark.parametrize(
    ("tail", "events"),
    [
        (b"\x4b" * MAX_GROUPS + b"\x4c" * MAX_GROUPS, 1),
        (b"\x4b" * (MAX_GROUPS + 1) + b"\x4c" * (MAX_GROUPS + 1), 0),
        (b"\x4b" * 200 + b"\x4c" * 200, 1),
        (b"\x4b\x44", 1),
        (b"\x4c", 0),
        (b"\x4b", 0),
        (b"\x08\x05", 1),
        (b"\x0a\x01z", 1),
        (b"\x4a\x01\xff", 1),
        (b"\x0a\x01\xff", 0),
        (b"\x2a\x06\x0a\x01a\x12\x01b" * 2, 1),
        (b"\x2a\x08\x0a\x01a\x12\x01b\x18\x01", 1),
        (b"\x22\x02\x08\x05\x22\x02\x10\x05", 1),
        (b"\x22\x02\x15\x00", 0),
        (b"\x48" + b"\x80" * 10 + b"\x01", 0),
        (b"\x48" + b"\xff" * 9 + b"\x7f", 1),
    ],
)
def test_ingest_and_audit_agree_on_protobuf(tail: bytes, events: int) -> None:
    """Both skip unknown fields and groups; the last of repeated fields wins."""
    assert _agreed([_WIRE + tail, _WIRE], _PROTOBUF) == events + 1


def test_repeated_edge_cases_are_not_lost(settings: Settings) -> None:
    """Borderline JSON values sent twice become an event and a duplicate, or two dead letters."""
    bus = with_ingest(settings.model_copy(update={"contract": _JSON}))
    depths = (MAX_JSON_DEPTH - 1, MAX_JSON_DEPTH, 3_000)
    deep = [b',"x":' + b"[" * depth + b"]" * depth + b"}" for depth in depths]
    values = [_EVENT.replace(b"e-1", b"e-%d" % n) + tail for n, tail in enumerate([b"}", b",}", *deep])]
    send(bus, [Record(b"u-1", value, [], 0) for value in values * 2])
    drain_all(bus)
    found = audit(bus)
    assert found.lost == 0
    assert sum(p.accepted for p in found.partitions) == sum(p.duplicate_ids for p in found.partitions) == 2
    assert sum(p.dead_letters for p in found.partitions) == 6
