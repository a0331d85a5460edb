"""Random bytes and damaged values of every format among valid events: the valid ones are decoded (`not-blocked`).

This short run is part of the tests; `tests/fuzz` runs for hours.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.avro import OWN_SCHEMA, parse_avro
from pipelines.contract.decode import decode
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import RECORD
from pipelines.lake.commit import describe_events
from pipelines.settings import ContractSettings
from tests.contract.encoding import to_avro, to_json, to_protobuf

_NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
_ROW: dict[str, Any] = {
    "event_id": "good",
    "user_id": "u",
    "action_type": "A",
    "timestamp": _NOW,
    "metadata": {"rating": "5"},
}
_GOOD = {
    "protobuf": to_protobuf(1, "good", int(_NOW.timestamp())),
    "avro": to_avro(OWN_SCHEMA, _ROW),
    "json": to_json(1, "good", _NOW.isoformat()),
}


@st.composite
def damaged(draw: st.DrawFn, value: bytes) -> bytes:
    """Return a value with up to three parts replaced, and sometimes truncated."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(st.binary(max_size=4)) + value[at + draw(st.integers(0, 4)) :]
    return value[: draw(st.integers(0, len(value)))] if draw(st.booleans()) else value


@pytest.mark.slow
@pytest.mark.parametrize("form", list(_GOOD))
@given(data=st.data(), bus_time=st.none() | st.datetimes(timezones=st.just(UTC)))
def test_any_values_among_good_ones(form: Any, data: st.DataObject, bus_time: datetime | None) -> None:
    """Each record has one outcome, valid events keep theirs, and a commit can be described from what was accepted."""
    values = data.draw(st.lists(st.none() | st.binary(max_size=40) | damaged(_GOOD[form]), max_size=6))
    at = data.draw(st.integers(0, len(values)))
    records = _records([*values[:at], _GOOD[form], *values[at:]], bus_time)
    records = records.set_column(4, RECORD.field(4), _with(records["bus_time"], at, _NOW))
    decoded = decode(records, ContractSettings(format=form), _NOW)
    fates = decoded.events["offset"].to_pylist() + decoded.rejected["offset"].to_pylist()
    assert sorted(fates) == list(range(len(values) + 1))
    assert at in decoded.events["offset"].to_pylist()
    assert all(detail and detail.isprintable() for detail in decoded.rejected["detail"].to_pylist())
    described = describe_events(decoded.events)
    assert described["first_event_time"] <= _NOW <= described["last_event_time"] <= _NOW + timedelta(days=1)


_NAMES = st.integers(0, 3).map(lambda n: f"N{n}")
_PRIMITIVES = st.sampled_from(["null", "boolean", "int", "long", "float", "double", "bytes", "string", "N0", "N1"])
_TYPES = st.recursive(
    _PRIMITIVES | st.fixed_dictionaries({"type": st.just("fixed"), "name": _NAMES, "size": st.integers(0, 3)}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({"type": st.just("array"), "items": inner})
        | st.fixed_dictionaries({"type": st.just("map"), "values": inner})
        | st.fixed_dictionaries(
            {
                "type": st.sampled_from(["record", "error"]),
                "name": _NAMES,
                "fields": st.lists(inner, max_size=3).map(
                    lambda kinds: [{"name": f"f{n}", "type": kind} for n, kind in enumerate(kinds)]
                ),
            }
        )
        | st.fixed_dictionaries({"type": st.just("enum"), "name": _NAMES, "symbols": st.just(["A", "B"])})
    ),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=60)
@given(kind=_TYPES, tails=st.lists(st.binary(max_size=12), max_size=3), last=st.booleans())
def test_any_schema_with_any_values(kind: Any, tails: list[bytes], last: bool) -> None:
    """A writer's schema with a field of a random type: either no value is an event, or every fitting value is one.

    Zeros are a value of every type: false, 0, empty, the first branch of a union, no more items. The exception is a
    type that contains itself without end, which has no value.
    """
    schema = json.loads(OWN_SCHEMA)
    schema["fields"].insert(5 if last else 0, {"name": "extra", "type": kind})
    good = _GOOD["avro"] + bytes(64) if last else None
    values = [good or b"", *(_GOOD["avro"] + tail if last else tail + _GOOD["avro"] for tail in tails)]
    parsed = parse_avro(pa.array(values, pa.binary()), json.dumps(schema))
    assert len(parsed.events) == len(values)
    assert {problem.reason for problem in parsed.errors.values()} <= {Reason.UNDECODABLE}
    if good and 0 not in parsed.errors:
        assert parsed.events["event_id"][0].as_py() == "good"
    for row, value in enumerate(values):
        single = parse_avro(pa.array([value], pa.binary()), json.dumps(schema))
        assert (0 in single.errors) == (row in parsed.errors)
        if row not in parsed.errors:
            assert single.events.to_pylist() == parsed.events.slice(row, 1).to_pylist()


@given(schema=st.text(max_size=30) | damaged(OWN_SCHEMA.encode()).map(lambda text: text.decode(errors="replace")))
def test_any_text_for_a_schema(schema: str) -> None:
    """Values of a damaged schema, or of text that is not a schema, are dead letters or decoded; nothing is raised."""
    parsed = parse_avro(pa.array([_GOOD["avro"], b""], pa.binary()), schema)
    assert len(parsed.events) == 2


def _with(column: pa.ChunkedArray, row: int, value: datetime) -> pa.Array:
    values = column.to_pylist()
    values[row] = value
    return pa.array(values, column.type)


def _records(values: list[bytes | None], bus_time: datetime | None) -> pa.Table:
    places = {"topic_id": "id", "topic": "events", "topic_partition": 0, "bus_time": bus_time, "key": b"u"}
    rows = [places | {"offset": n, "value": value, "headers": None} for n, value in enumerate(values)]
    return pa.Table.from_pylist(rows, RECORD)
