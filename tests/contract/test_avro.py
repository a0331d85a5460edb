"""Avro: fields are matched by name, and no value affects another one (`not-blocked`)."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any

import pyarrow as pa
import pytest
from fastavro import parse_schema, schemaless_reader
from hypothesis import given
from hypothesis import strategies as st
from pyruhvro import deserialize_array

from pipelines.contract import avro
from pipelines.contract.avro import OWN_SCHEMA, parse_avro
from pipelines.contract.rejection import Reason
from tests.contract.encoding import avro_schema, to_avro

_TIME = datetime(2026, 3, 1, 12, 0, 0, 123_456, UTC)
_ROW: dict[str, Any] = {
    "event_id": "e-ü",
    "user_id": "u",
    "action_type": "A",
    "timestamp": _TIME,
    "metadata": {"rating": "5", "": "empty key"},
}
_READ = {
    "event_id": "e-ü",
    "user_id": "u",
    "action_type": "A",
    "event_time": _TIME,
    "metadata": [("rating", "5"), ("", "empty key")],
}


def _values(*values: bytes) -> pa.Array:
    return pa.array(values, pa.binary())


def _schema(**types: Any) -> str:
    """Return our schema with fields of other types, or added fields; None removes a field."""
    schema = json.loads(OWN_SCHEMA)
    own = {field["name"]: field["type"] for field in schema["fields"]} | types
    schema["fields"] = [{"name": name, "type": kind} for name, kind in own.items() if kind is not None]
    return json.dumps(schema)


def test_a_schema_that_the_bulk_decoder_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried on a sample before the first value: its values are decoded in the sandbox, not rejected."""

    def refuse(values: list[bytes], schema: str) -> object:
        if values:
            raise ValueError("the type is not supported")
        return deserialize_array(values, schema)

    monkeypatch.setattr("pyruhvro.deserialize_array", refuse)
    schema = _schema(unsupported="string")
    parsed = parse_avro(_values(to_avro(schema, _ROW | {"unsupported": ""})), schema)
    assert (parsed.events.to_pylist(), parsed.errors) == ([_READ], {})


@pytest.mark.parametrize(
    ("types", "values"),
    [
        ({}, {}),
        ({"source": "string"}, {"source": "app"}),
        ({"source": ["null", "string"], "tags": {"type": "array", "items": "long"}}, {"source": None, "tags": [1, 2]}),
        (
            {"amount": {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}},
            {"amount": Decimal("1.25")},
        ),
        (
            {"place": {"type": "record", "name": "Place", "fields": [{"name": "x", "type": "double"}]}},
            {"place": {"x": 1.5}},
        ),
        (
            {
                "event_id": ["null", "string"],
                "timestamp": ["null", {"type": "long", "logicalType": "timestamp-micros"}],
            },
            {},
        ),
        ({"action_type": {"type": "enum", "name": "Action", "symbols": ["B", "A"]}}, {}),
        ({"user_id": {"type": "string", "logicalType": "uuid"}}, {"user_id": "5b0dd6c8-3c58-4c0f-8a3a-9c8e1a6b9f10"}),
    ],
    ids=["own", "added", "nullable", "bytes", "nested", "unions", "enum", "uuid"],
)
def test_fields_are_found_by_name(types: dict[str, Any], values: dict[str, Any]) -> None:
    """The event is the same whatever fields a writer adds and however it types a field that is still text."""
    schema = _schema(**types)
    parsed = parse_avro(_values(to_avro(schema, _ROW | values)), schema)
    assert parsed.errors == {}
    (row,) = parsed.events.to_pylist()
    assert row == _READ | {name: value for name, value in values.items() if name in _READ}


@pytest.mark.parametrize(("unit", "microsecond"), [("millis", 123_000), ("micros", 123_456), ("nanos", 123_456)])
def test_times_of_any_unit(unit: str, microsecond: int) -> None:
    """The logical type defines the unit; times are truncated to microseconds."""
    schema = _schema(timestamp={"type": "long", "logicalType": f"timestamp-{unit}"})
    count = int((_TIME - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
    timestamp = {"millis": count // 1_000, "micros": count, "nanos": count * 1_000 + 999}[unit]
    plain = _schema(timestamp="long")
    parsed = parse_avro(_values(to_avro(plain, _ROW | {"timestamp": timestamp})), schema)
    assert parsed.events["event_time"].to_pylist() == [_TIME.replace(microsecond=microsecond)]


def test_absent_fields_are_empty() -> None:
    """An absent or null field is empty: text is empty, a time is null, metadata has no entries."""
    schema = _schema(metadata=None, user_id=None, timestamp=None)
    parsed = parse_avro(_values(to_avro(schema, _ROW)), schema)
    assert parsed.events.to_pylist() == [_READ | {"user_id": "", "event_time": None, "metadata": []}]
    nullable = _schema(event_id=["null", "string"], metadata=["null", {"type": "map", "values": "string"}])
    parsed = parse_avro(_values(to_avro(nullable, _ROW | {"event_id": None, "metadata": None})), nullable)
    assert parsed.events.to_pylist() == [_READ | {"event_id": "", "metadata": []}]


@pytest.mark.parametrize("absent", ["user_id", "action_type", "timestamp", "metadata"])
def test_values_of_writers_without_a_field_are_decoded_in_bulk(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    """None goes to the sandbox, whose decoder is slow, and reads numbers of eleven bytes that the audit refuses."""
    monkeypatch.setattr(avro, "decode_sandboxed", lambda *_: pytest.fail("decoded in the sandbox"))
    monkeypatch.setattr(avro, "check_schema_sandboxed", lambda _: pytest.fail("decoded in the sandbox"))
    schema = _schema(**{absent: None}, number="long")
    good = to_avro(schema, _ROW | {"number": 0})
    parsed = parse_avro(_values(good, good[:-1] + b"\x80" * 10 + b"\x01"), schema)
    assert (parsed.events["event_id"].to_pylist()[0], [*parsed.errors]) == ("e-ü", [1])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (_schema(event_id="long"), 'its event_id is "long", not enum or string'),
        (_schema(timestamp="long"), 'its timestamp is "long", not timestamp-'),
        (_schema(metadata={"type": "map", "values": "int"}), "its metadata is"),
        ('"string"', "it is not a record with fields"),
        ("{", "it cannot be read"),
        ('{"type": "record", "name": "E"}', "it is not a record with fields"),
        (_schema(event_id=None), "it has no field event_id"),
    ],
)
def test_a_schema_that_holds_no_events(schema: str, message: str) -> None:
    """Its values are rejected with the error in the schema, and never misinterpreted."""
    parsed = parse_avro(_values(b"\x00", b"\x02a"), schema)
    assert len(parsed.events) == 2
    assert [problem.reason for problem in parsed.errors.values()] == [Reason.UNDECODABLE] * 2
    assert message in parsed.errors[0].detail


@pytest.mark.parametrize("in_bulk", [True, False])
@given(damage=st.binary(min_size=1, max_size=4), data=st.data())
def test_damaged_bytes_have_one_outcome_and_affect_no_other_value(
    in_bulk: bool, damage: bytes, data: st.DataObject
) -> None:
    """Both decoders agree with the reference reader on damaged bytes, and other values are unaffected."""
    schema = _schema() if in_bulk else _schema(seal={"type": "fixed", "name": "Seal", "size": 2})
    value = to_avro(schema, _ROW | {"seal": b"ab"})
    at = data.draw(st.integers(0, len(value) - 1))
    damaged = value[:at] + damage + value[at + len(damage) :]
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    parsed = parse_avro(_values(value, damaged, value), schema)
    assert set(parsed.errors) <= {1}
    rows = parsed.events.to_pylist()
    assert [rows[0], rows[2]] == [_READ, _READ]
    if not parsed.errors:
        read = schemaless_reader(BytesIO(damaged), parse_schema(json.loads(schema)), None)
        assert isinstance(read, dict)
        assert [read[name] for name in ("event_id", "user_id", "action_type")] == [
            rows[1][name] for name in ("event_id", "user_id", "action_type")
        ]


def test_the_versions_of_the_tests_are_versions() -> None:
    """The writers of the evolution test differ in their fields."""
    names = [[field["name"] for field in json.loads(avro_schema(version))["fields"]] for version in (1, 2, 3)]
    assert [len(fields) for fields in names] == [5, 6, 5]


@pytest.mark.parametrize("bad", [to_avro(OWN_SCHEMA, _ROW)[:20], to_avro(OWN_SCHEMA, _ROW)[:3] + b"\xff" * 40])
@pytest.mark.parametrize("every", [1, 2, 100])
def test_bad_values_cost_their_good_neighbours_no_call(monkeypatch: pytest.MonkeyPatch, bad: bytes, every: int) -> None:
    """Each bad value is decoded on its own once; all good values are decoded together, at most twice."""
    good = to_avro(OWN_SCHEMA, _ROW)
    values = _values(*(bad if n % every == 0 else good for n in range(1_000)))
    parse_avro(values)  # the first attempts at a schema are not counted
    sizes: list[int] = []
    columns = avro._columns

    def counted(rows: pa.Table, time_kinds: set[str]) -> pa.Table:
        sizes.append(len(rows))
        return columns(rows, time_kinds)

    monkeypatch.setattr(avro, "_columns", counted)
    parsed = parse_avro(values)
    assert parsed.errors.keys() == set(range(0, 1_000, every))
    assert parsed.events["event_id"].to_pylist()[1:2] == ([None] if every == 1 else ["e-ü"])
    assert sizes == [1_000 - len(parsed.errors)]
