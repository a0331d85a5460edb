"""Avro values read many at a time are those that are read one at a time, and fail alone."""

import json
from io import BytesIO
from typing import Any

import pyarrow as pa
import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import given
from hypothesis import strategies as st

from pipelines.mapping import avro_values
from pipelines.mapping.values import ValueSchema, decode_values

_ITEM = {"type": "record", "name": "Item", "fields": [{"name": "sku", "type": "string"}, {"name": "n", "type": "int"}]}
_FIELDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "text": ("string", st.text(max_size=5)),
    "note": (["null", "string"], st.none() | st.text(max_size=3)),
    "flag": ("boolean", st.booleans()),
    "number": ("long", st.integers(-(2**63), 2**63 - 1)),
    "ratio": ("double", st.floats()),
    "small": ("float", st.floats(width=32)),
    "kind": ({"type": "enum", "name": "Kind", "symbols": ["GOOD", "BAD"]}, st.sampled_from(["GOOD", "BAD"])),
    "at": ({"type": "long", "logicalType": "timestamp-millis"}, st.integers(-(2**44), 2**44)),
    "when": ({"type": "long", "logicalType": "timestamp-micros"}, st.integers(-(2**54), 2**54)),
    "local": ({"type": "long", "logicalType": "local-timestamp-millis"}, st.integers(-(2**44), 2**44)),
    "day": (["null", {"type": "int", "logicalType": "date"}], st.none() | st.integers(-(10**5), 10**6)),
    "tags": (
        {"type": "map", "values": "string"},
        st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
    ),
    "items": (
        {"type": "array", "items": _ITEM},
        st.lists(st.fixed_dictionaries({"sku": st.text(max_size=2), "n": st.integers(-9, 9)}), max_size=2),
    ),
}
_DEFINITION: Any = {
    "type": "record",
    "name": "Rating",
    "namespace": "shop",
    "fields": [{"name": name, "type": kind} for name, (kind, _) in _FIELDS.items()],
}
_SCHEMA = ValueSchema("avro", json.dumps(_DEFINITION))
_ROWS = st.fixed_dictionaries({name: values for name, (_, values) in _FIELDS.items()})
_PARSED: Any = parse_schema(_DEFINITION)


def _written(row: dict[str, Any]) -> bytes:
    out = BytesIO()
    schemaless_writer(out, _PARSED, row)
    return out.getvalue()


_ONE = {
    "text": "a", "note": None, "flag": True, "number": 1, "ratio": 0.5, "small": 0.5, "kind": "BAD", "at": 1, "when": 1,
    "local": 1, "day": None, "tags": {"x": "y"}, "items": [{"sku": "s", "n": 1}],
}  # fmt: skip


def _one_by_one(values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Return the values as `fastavro` alone reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avro_values, "_bulk_columns", lambda *_: None)
        found, errors = decode_values(values, ValueSchema("avro", f" {_SCHEMA.text}"))  # another text, so not cached
    return found, errors


@given(st.lists(_ROWS, max_size=4), st.binary(max_size=3))
def test_together_or_one_at_a_time(rows: list[dict[str, Any]], more: bytes) -> None:
    """Every value is the same, and has the same fate, whatever follows it."""
    values = pa.array([*map(_written, rows), *(_written(row) + more for row in rows[:1])], pa.binary())
    found, errors = decode_values(values, _SCHEMA)
    expected, expected_errors = _one_by_one(values)
    assert errors == expected_errors
    assert found.type == expected.type
    assert str(found.to_pylist()) == str(expected.to_pylist())


def test_values_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those of the part with an invalid value are read one at a time; it alone fails (`not-blocked`)."""
    values = [_written(_ONE | {"number": number}) for number in range(1_000)]
    values[700] += b"\0"
    alone: list[int] = []
    read = avro_values._decode

    def counted(part: pa.Array, **ways: Any) -> pa.Array:
        def one_by_one(some: pa.Array) -> pa.Array:
            alone.append(len(some))
            return ways["one_by_one"](some)

        return read(part, together=ways["together"], one_by_one=one_by_one)

    monkeypatch.setattr(avro_values, "_decode", counted)
    found, errors = decode_values(pa.array(values, pa.binary()), ValueSchema("avro", f"  {_SCHEMA.text}"))
    assert errors == {700: "1 byte follows it"}
    assert found.field("number").to_pylist()[699:702] == [699, None, 701]
    assert 0 < sum(alone) < 200


@pytest.mark.parametrize("field", ["at", "when", "local", "day"])
def test_a_time_after_the_year_9999_fails(field: str) -> None:
    """It cannot be a time of Python, whichever way it is read."""
    far = {"at": 2**50, "when": 2**60, "local": 2**50, "day": 2**30}[field]
    values = pa.array([_written(_ONE), _written(_ONE | {field: far})], pa.binary())
    assert decode_values(values, _SCHEMA)[1].keys() == _one_by_one(values)[1].keys() == {1}


_OTHERS: list[Any] = [
    ["null", "string", "long"],
    {"type": "string", "logicalType": "uuid"},
    "bytes",
    {"type": "map", "values": "shop.R"},
]


@pytest.mark.parametrize("kind", _OTHERS)
def test_other_types_are_read_one_at_a_time(kind: Any) -> None:
    """Unions of several types, ids, bytes, and types within themselves are not read together."""
    definition = {"type": "record", "name": "R", "namespace": "shop", "fields": [{"name": "a", "type": kind}]}
    assert avro_values._bulk_columns(definition, pa.struct([("a", pa.string())])) is None
