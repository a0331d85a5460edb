"""Schema ids in headers: a value is decoded with the schema that its record refers to, never with another one."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.parsing import Parsed
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import HEADERS
from pipelines.contract.schema_ids import schema_reference, schema_references
from pipelines.contract.values import parse_values
from pipelines.operate.audit_values import ReadEvent, read_event
from pipelines.settings import ContractSettings
from tests.contract.encoding import framed, to_avro, to_json, to_protobuf
from tests.contract.fake_registry import running_registry

_SECONDS = 1_772_366_400
_GUID = UUID("01234567-89ab-cdef-0123-456789abcdef")
_ROW: dict[str, Any] = {
    "event_id": "ride-1",
    "user_id": "ann",
    "action_type": "A",
    "timestamp": _SECONDS * 1_000_000,
    "metadata": {},
}
Headers = list[tuple[str, bytes | None]]


def _swapped() -> str:
    """Return our schema with user_id before event_id: our reader schema would decode its bare values incorrectly."""
    schema = json.loads(OWN_SCHEMA)
    schema["fields"][:2] = reversed(schema["fields"][:2])
    return json.dumps(schema)


def _to_swapped(row: dict[str, Any]) -> bytes:
    out = BytesIO()
    schemaless_writer(out, parse_schema(json.loads(_swapped())), row)
    return out.getvalue()


_VALUE = _to_swapped(_ROW)
_BY_ID = b"\x00" + (9).to_bytes(4, "big")
_BY_GUID = b"\x01" + _GUID.bytes
_BY_NUMBER = (9).to_bytes(8, "big")
_READABLE: list[Headers] = [
    [("__value_schema_id", _BY_ID)],
    [("__value_schema_id", _BY_GUID)],
    [("apicurio.value.contentId", _BY_NUMBER)],
    [("apicurio.value.globalId", _BY_NUMBER)],
    [("trace", b"1"), ("__key_schema_id", b"\x01" + bytes(16)), ("__value_schema_id", _BY_ID), ("trace", None)],
    [("__value_schema_id", _BY_ID), ("__value_schema_id", _BY_ID)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the swapped schema under its id and its GUID, and Protobuf and JSON under ids."""
    folder = tmp_path_factory.mktemp("schemas")
    for name in ("9", str(_GUID)):
        (folder / f"{name}.avsc").write_text(_swapped())
    (folder / "7.proto").write_text('syntax = "proto3"; message Event {}')
    (folder / "8.json").write_text("{}")
    return folder


def _parse(records: list[tuple[bytes, Headers]], **settings: Any) -> Parsed:
    contract = ContractSettings.model_validate(settings)
    headers = [[{"key": key, "value": value} for key, value in headers] for _, headers in records]
    values = pa.array([value for value, _ in records], pa.binary())
    return parse_values(values, contract, pa.array(headers, HEADERS))


@pytest.mark.parametrize("headers", _READABLE)
@pytest.mark.parametrize("form", ["avro", "protobuf"])
def test_the_id_in_a_header_is_read(folder: Path, headers: Headers, form: str) -> None:
    """The writer's order of fields counts, whatever the format of bare values; the audit agrees."""
    parsed = _parse([(_VALUE, headers)], format=form, schemas_dir=folder)
    assert parsed.errors == {}
    (event,) = parsed.events.to_pylist()
    assert (event["event_id"], event["user_id"]) == ("ride-1", "ann")
    contract = ContractSettings.model_validate({"format": form, "schemas_dir": folder})
    read = read_event(_VALUE, headers, contract)
    assert isinstance(read, ReadEvent)
    assert (read.event_id, read.user_id) == ("ride-1", "ann")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([("__value_schema_id", b"\x01" + bytes(16))], "header __value_schema_id names it"),
        ([("__value_schema_id", b"\x00\xff\xff\xff\xff")], "schema 4294967295"),
        ([("__value_schema_id", b"")], "neither an id nor a GUID"),
        ([("__value_schema_id", None)], "neither an id nor a GUID"),
        ([("__value_schema_id", b"\x02" + bytes(16))], "neither an id nor a GUID"),
        ([("apicurio.value.globalId", b"9")], "not a number of 8 bytes"),
        ([("apicurio.value.contentId", b"\xff" * 8)], "schema 18446744073709551615"),
        ([("value.schema.version.id", b"\x03\x00\x00\x00\x01")], "value.schema.version.id is an id of Cloudera's"),
        ([("content-type", b"avro/binary+0123456789abcdef")], "content-type is an id of Azure's registry"),
        ([("contentType", b'"application/vnd.event.v1+avro"')], "contentType is a version as Spring writes it"),
        ([("__value_schema_id", _BY_ID), ("apicurio.value.globalId", bytes(8))], "names a different schema"),
        ([("__value_schema_id", _BY_ID), ("__value_schema_id", _BY_GUID)], "names a different schema"),
        ([("__value_schema_id", _BY_ID + b"\x02\x02")], "not the first message"),
    ],
)
@pytest.mark.parametrize("has_folder", [True, False])
def test_avro_is_never_read_by_a_schema_that_is_not_its_own(
    folder: Path, headers: Headers, message: str, has_folder: bool
) -> None:
    """A header that cannot be resolved makes a dead letter that names it: our schema would swap user and event."""
    parsed = _parse([(_VALUE, headers)], format="avro", schemas_dir=folder if has_folder else None)
    assert parsed.errors[0].reason in {Reason.UNKNOWN_SCHEMA, Reason.UNDECODABLE}
    assert message in parsed.errors[0].detail or not has_folder
    contract = ContractSettings.model_validate({"format": "avro", "schemas_dir": folder if has_folder else None})
    assert not isinstance(read_event(_VALUE, headers, contract), ReadEvent)


@pytest.mark.parametrize(
    "headers", [[], [("content-type", b"application/json")], [("contentType", b"text/plain")], [("key", None)]]
)
def test_other_headers_name_no_schema(headers: Headers) -> None:
    """A content type alone is not a schema id."""
    value = to_avro(OWN_SCHEMA, _ROW)
    assert _parse([(value, headers)], format="avro").errors == {}


@pytest.mark.parametrize("headers", [*_READABLE, [("content-type", b"avro/binary+00")], [("__value_schema_id", b"")]])
def test_protobuf_and_json_need_no_schema(headers: Headers) -> None:
    """Without a folder or registry, a header does not block values that name their own fields."""
    assert _parse([(to_protobuf(1, "e", _SECONDS), headers)], format="protobuf").errors == {}
    assert _parse([(to_json(1, "e", "2026-03-01T12:00:00Z"), headers)], format="json").errors == {}


@pytest.mark.parametrize(
    ("indexes", "first"), [(b"", True), (b"\x00", True), (b"\x02\x00", True), (b"\x02\x02", False)]
)
@pytest.mark.parametrize("has_folder", [True, False])
def test_a_header_has_the_index_of_a_protobuf_message(
    folder: Path, indexes: bytes, first: bool, has_folder: bool
) -> None:
    """It must be the first message, as in a value with message indexes of its own."""
    headers: Headers = [("__value_schema_id", b"\x00" + (7).to_bytes(4, "big") + indexes)]
    value = to_protobuf(1, "e", _SECONDS)
    parsed = _parse([(value, headers)], schemas_dir=folder if has_folder else None)
    assert (parsed.errors == {}) == first
    assert first or "not the first message" in parsed.errors[0].detail


def test_a_header_comes_before_a_prefix(folder: Path) -> None:
    """As in Confluent's deserializers: with an id in a header, all bytes belong to the value."""
    value = to_json(1, "e", "2026-03-01T12:00:00Z")
    headers: Headers = [("__value_schema_id", b"\x00" + (8).to_bytes(4, "big"))]
    parsed = _parse([(value, headers), (framed(8, value), []), (framed(8, value), headers)], schemas_dir=folder)
    assert parsed.events["event_id"].to_pylist()[:2] == ["e", "e"]
    assert set(parsed.errors) == {2}


def test_aws_glue_is_recognized() -> None:
    """Its values begin with a version and a compression byte; in no format is that an event."""
    value = b"\x03\x00" + _GUID.bytes + _VALUE
    for form in ("avro", "protobuf", "json"):
        parsed = _parse([(to_protobuf(1, "e", _SECONDS), []), (value, [])], format=form)
        assert parsed.errors[1].reason is Reason.UNKNOWN_SCHEMA
        assert "AWS Glue" in parsed.errors[1].detail


def test_a_guid_is_requested_from_the_registry() -> None:
    """At the path for GUIDs. Apicurio's other kind of id is not requested where it would name another schema."""
    with running_registry() as registry:
        registry.schemas = {str(_GUID): {"schema": _swapped()}}
        url = SecretStr(registry.url)
        records: list[tuple[bytes, Headers]] = [(_VALUE, [("__value_schema_id", _BY_GUID)]), (_VALUE, _READABLE[3])]
        parsed = _parse(records, format="avro", schema_registry_url=url)
        assert registry.requests == [f"/api/schemas/guids/{_GUID}"]
    assert parsed.events["user_id"].to_pylist()[0] == "ann"
    assert "9, an Apicurio globalId, which only contract.schemas_dir can hold" in parsed.errors[1].detail


_HEADER = st.tuples(
    st.sampled_from(["__value_schema_id", "apicurio.value.globalId", "content-type", "contentType", "other"]),
    st.none() | st.binary(max_size=20) | st.sampled_from([_BY_ID, _BY_GUID, _BY_NUMBER, b"avro/binary+1"]),
)
_RECORD = st.tuples(st.binary(max_size=8) | st.just(framed(9, b"x")), st.lists(_HEADER, max_size=4))


@given(records=st.lists(_RECORD, max_size=12), skipped=st.integers(0, 3))
def test_references_of_many_records_equal_those_of_each_one(records: list[tuple[bytes, Headers]], skipped: int) -> None:
    """Bulk and single lookups agree, for any slice of a larger array."""
    values = pa.array([value for value, _ in records], pa.binary())
    entries = [[{"key": key, "value": value} for key, value in headers] for _, headers in records]
    places, namings = schema_references(values[skipped:], pa.array(entries, HEADERS)[skipped:])
    found = [namings[place] if place >= 0 else None for place in places.tolist()]
    assert found == [schema_reference(value, headers) for value, headers in records[skipped:]]


@pytest.mark.slow
@given(records=st.lists(_RECORD, max_size=12), form=st.sampled_from(["avro", "protobuf", "json"]))
def test_any_header_has_an_outcome(folder: Path, records: list[tuple[bytes, Headers]], form: str) -> None:
    """Each record is an event or has an error message; nothing is raised (`not-blocked`)."""
    parsed = _parse(records, format=form, schemas_dir=folder)
    assert len(parsed.events) == len(records)
    assert all(problem.detail.endswith(".") for problem in parsed.errors.values())
