"""Sources of Avro and Protobuf: by a schema file, and by schema ids of a registry with references."""

import json
import struct
import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from google.protobuf.message_factory import GetMessageClass

from pipelines.errors import ConfigurationError
from pipelines.mapping import sandbox
from pipelines.mapping.proto_files import message_type
from pipelines.mapping.source_files import read_source, required_extras
from tests.contract.fake_registry import running_registry
from tests.mapping.sources import events, mapping, reasons, records

_ITEM = {"type": "record", "name": "Item", "fields": [{"name": "sku", "type": "string"}]}
_AVRO = {
    "type": "record",
    "name": "Rating",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "key", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "stars", "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["GOOD", "BAD"]}},
        {"name": "note", "type": ["null", "string", "long"]},
        {"name": "items", "type": {"type": "array", "items": _ITEM}},
    ],
}  # fmt: skip
_ROW = {
    "id": "6f1c2c9e-0000-4000-8000-000000000001",
    "key": "u1",
    "at": 1769860800123,
    "stars": Decimal("4.50"),
    "kind": "GOOD",
    "note": 7,
    "items": [{"sku": "a"}, {"sku": "b"}],
}
_PROTO = """syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "common/kind.proto";
message Other { string x = 1; }
message Rating {
  message Inner { string id = 1; }
  string id = 1;
  shop.Kind kind = 2;
  google.protobuf.Timestamp at = 3;
  oneof who { string driver = 4; int64 rider = 5; }
  map<string, string> tags = 6;
}
"""
_KIND = 'syntax = "proto3";\npackage shop;\nenum Kind { NONE = 0; GOOD = 1; }\n'
_AVRO_SELECT = """
select = '''SELECT id AS event_id, value.key AS user_id, kind AS action_type, "at" AS timestamp,
  MAP {'stars': CAST(stars AS VARCHAR), 'sku': items[1].sku, 'note': note} AS metadata FROM record'''
"""


def _avro(schema: Any, row: dict[str, Any]) -> bytes:
    out = BytesIO()
    schemaless_writer(out, parse_schema(schema), row)
    return out.getvalue()


def _proto_message(message: str = "shop.Rating") -> Any:
    return GetMessageClass(message_type(_PROTO, message, [("common/kind.proto", _KIND)]))


def _rating(**fields: Any) -> bytes:
    message = _proto_message()(id="r1", kind=1, driver="d1", **fields)
    message.at.FromJsonString("2026-01-31T12:00:00.5Z")
    return message.SerializeToString()


@pytest.mark.slow
def test_avro_by_a_schema_file(tmp_path: Path) -> None:
    """Logical types have theirs, a decimal its digits, an array is a list; a field named like `key` is `value.key`."""
    (tmp_path / "rating.avsc").write_text(json.dumps(_AVRO))
    head = 'topic = "rides"\nformat = "avro"\nschema = "rating.avsc"\n'
    with mapping(tmp_path, head + _AVRO_SELECT) as decode:
        good = _avro(_AVRO, _ROW)
        found = decode(records([good, good[:-3], b"", None, good + b"x"]))
    assert events(found) == [(_ROW["id"], "u1", "GOOD", {"stars": "4.50", "sku": "a", "note": "7"})]
    assert reasons(found) == {1: "undecodable", 2: "undecodable", 3: "missing_event_id", 4: "undecodable"}


@pytest.mark.slow
def test_what_avro_has_in_bytes_is_not_the_text_of_pythons_bytes(tmp_path: Path) -> None:
    """A UUID of 16 bytes is an id; in unions, bytes have a character each, numbers their plain digits."""
    fixed = {"type": "fixed", "size": 16, "name": "Uuid", "logicalType": "uuid"}
    kinds = {"id": fixed, "key": ["null", "bytes", "string"], "stars": ["null", "float", "string"]}
    kinds["tip"] = ["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 7}, "string"]
    schema = {"type": "record", "name": "R", "fields": [{"name": name, "type": kind} for name, kind in kinds.items()]}
    (tmp_path / "r.avsc").write_text(json.dumps(schema))
    select = """SELECT id AS event_id, 'u' AS user_id, 'A' AS action_type, bus_time AS timestamp,
      {'key': CAST(value.key AS JSON)->>'$', 'stars': stars,
      'tip': CAST(tip AS JSON)->>'$'} AS metadata FROM record"""
    with mapping(tmp_path, f"topic = 't'\nformat = 'avro'\nschema = 'r.avsc'\nselect = '''{select}'''\n") as decode:
        found = decode(
            records([_avro(schema, {"id": bytes(range(16)), "key": b"\xe9a", "stars": 4.1, "tip": Decimal("0E-7")})])
        )
    assert events(found) == [
        ("00010203-0405-0607-0809-0a0b0c0d0e0f", "u", "A", {"key": "éa", "stars": "4.1", "tip": "0.0000000"})
    ]


@pytest.mark.slow
def test_protobuf_by_a_schema_file(tmp_path: Path) -> None:
    """The .proto and what it imports are compiled; enums are their names, unset fields of a oneof are null."""
    (tmp_path / "rating.proto").write_text(_PROTO)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "kind.proto").write_text(_KIND)
    text = """
topic = "rides"
format = "protobuf"
schema = "rating.proto"
message = "shop.Rating"
event_id = "id"
user_id = "driver"
action_type_column = "kind"
time = "at"
metadata = { rider = "rider" }
"""
    with mapping(tmp_path, text) as decode:
        found = decode(records([_rating(), b"\xff\xff", _rating(tags={"a": "b"})]))
    assert events(found) == [("r1", "d1", "GOOD", {})] * 2
    assert found.events["event_time"][0].as_py().isoformat() == "2026-01-31T12:00:00.500000+00:00"
    assert reasons(found) == {1: "undecodable"}


@pytest.mark.slow
def test_a_missing_message_is_said(tmp_path: Path) -> None:
    """The message lists those that the file has."""
    (tmp_path / "r.proto").write_text(_KIND + "message A { string id = 1; }\n")
    text = 'topic = "t"\nformat = "protobuf"\nschema = "r.proto"\nmessage = "shop.B"\n'
    text += 'user_id = "id"\ntime = "id"\naction_type = "A"\n'
    with pytest.raises(ConfigurationError, match=r"no message shop\.B; the file has shop\.A"), mapping(tmp_path, text):
        pass


def _framed(schema_id: int, value: bytes) -> bytes:
    return b"\0" + struct.pack(">I", schema_id) + value


@pytest.mark.slow
def test_confluent_framed_avro_with_references(tmp_path: Path) -> None:
    """A registry that does not resolve references is asked for each; two versions of a schema are read side by side."""
    kind = {"type": "enum", "name": "Kind", "namespace": "shop", "symbols": ["GOOD", "BAD"]}
    outer = json.loads(json.dumps(_AVRO))
    outer["fields"][4]["type"] = "shop.Kind"
    newer = json.loads(json.dumps(_AVRO))
    newer["fields"].append({"name": "extra", "type": "string"})
    reference = {"name": "shop.Kind", "subject": "shop.Kind", "version": 3}
    with running_registry() as registry:
        registry.schemas = {
            1: {"schema": json.dumps(outer), "references": [reference]},
            2: {"schema": json.dumps(newer)},
        }
        registry.subjects = {("shop.Kind", 3): {"schema": json.dumps(kind), "id": 9}}
        registry.unresolved_response = (422, {}, b"{}")
        values = [_framed(1, _avro(_AVRO, _ROW)), _framed(2, _avro(newer, _ROW | {"extra": "x"}))]
        head = 'topic = "rides"\nformat = "avro"\nregistry = true\n'
        with mapping(tmp_path, head + _AVRO_SELECT, schema_registry_url=registry.url) as decode:
            found = decode(records([*values, _avro(_AVRO, _ROW), _framed(77, b"x"), None]))
    assert len(found.events) == 2
    assert reasons(found) == {2: "unknown_schema", 3: "unknown_schema"}
    assert found.filtered["offset"].to_pylist() == [4]


@pytest.mark.slow
def test_confluent_framed_protobuf_with_references_and_message_indexes(tmp_path: Path) -> None:
    """The imports of a .proto are followed, and the message indexes before a value say which message it is."""
    with running_registry() as registry:
        imported = {"name": "common/kind.proto", "subject": "kind", "version": 1}
        registry.schemas = {5: {"schema": _PROTO, "schemaType": "PROTOBUF", "references": [imported]}}
        registry.subjects = {("kind", 1): {"schema": _KIND, "schemaType": "PROTOBUF"}}
        text = """
topic = "rides"
format = "protobuf"
registry = true
event_id = "id"
user_id = "driver"
action_type = "DriverRated"
time = "at"
"""
        values = [_framed(5, b"\x02\x02" + _rating()), _framed(5, b"\x00" + b"\x0a\x01x")]
        with mapping(tmp_path, text, schema_registry_url=registry.url) as decode:
            found = decode(records(values))
    assert events(found) == [("r1", "d1", "DriverRated", {})]
    assert reasons(found) == {1: "unmappable"}


@pytest.mark.slow
def test_a_registry_that_refuses_to_answer_makes_no_dead_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a reference that it lacks is a fault of the record's schema, until it is added (`nothing-lost`)."""
    text = 'topic = "t"\nformat = "protobuf"\nregistry = true\nuser_id = "driver"\ntime = "at"\naction_type = "A"\n'
    value = records([_framed(5, b"\x02\x02" + _rating())])
    with running_registry() as registry:
        imported = {"name": "common/kind.proto", "subject": "kind", "version": 1}
        registry.schemas = {5: {"schema": _PROTO, "schemaType": "PROTOBUF", "references": [imported]}}
        answer = registry.answer
        with mapping(tmp_path, text, schema_registry_url=registry.url) as decode:
            assert reasons(decode(value)) == {0: "unknown_schema"}
            denied = (401, {"Content-Type": "text/plain"}, b"who are you?")
            monkeypatch.setattr(registry, "answer", lambda path: denied if "/versions/" in path else answer(path))
            with pytest.raises(ConfigurationError, match="refuses to answer: HTTP 401"):
                decode(value)
            monkeypatch.setattr(registry, "answer", answer)
            registry.subjects = {("kind", 1): {"schema": _KIND, "schemaType": "PROTOBUF"}}
            assert len(decode(value).events) == 1


@pytest.mark.slow
def test_bytes_of_every_kind_end_nothing(tmp_path: Path) -> None:
    """Random bytes and deep nesting are dead letters, and valid neighbours are events (`not-blocked`)."""
    (tmp_path / "rating.avsc").write_text(json.dumps(_AVRO))
    head = 'topic = "rides"\nformat = "avro"\nschema = "rating.avsc"\n'
    good = _avro(_AVRO, _ROW)
    bad = [good[:n] for n in range(1, len(good), 7)] + [b"\xff" * 40, b"\x00" * 9, bytes(range(256))]
    with mapping(tmp_path, head + _AVRO_SELECT) as decode:
        found = decode(records([good, *bad, good]))
    assert [row[1] for row in events(found)][:1] == ["u1"]
    assert len(found.events) >= 2
    assert len(found.events) + len(found.rejected) == len(bad) + 2


@pytest.mark.slow
def test_a_descriptor_set_is_a_schema(tmp_path: Path) -> None:
    """What protoc writes, with the imports, needs no compiler here."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "kind.proto").write_text(_KIND)
    (tmp_path / "rating.proto").write_text(_PROTO)
    options = ["-I.", "--include_imports", "--descriptor_set_out=rating.desc", "rating.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], cwd=tmp_path, check=True)
    text = """
topic = "rides"
format = "protobuf"
schema = "rating.desc"
message = "shop.Rating"
user_id = "driver"
action_type_column = "kind"
time = "at"
event_id = "id"
"""
    with mapping(tmp_path, text) as decode:
        assert events(decode(records([_rating()]))) == [("r1", "d1", "GOOD", {})]
    assert required_extras(read_source(tmp_path / "rides.toml")) == set()


@pytest.mark.slow
def test_a_select_that_fits_no_schema_is_refused_whole(tmp_path: Path) -> None:
    """Its records say so, for the guard to halt; beside a schema that fits, odd records are unmappable."""
    other = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "string"}]}
    with running_registry() as registry:
        registry.schemas = {1: {"schema": json.dumps(other)}, 2: {"schema": json.dumps(_AVRO)}}
        values = [_framed(1, _avro(other, {"x": "x"})), _framed(2, _avro(_AVRO, _ROW))]
        head = 'topic = "rides"\nformat = "avro"\nregistry = true\n'
        with mapping(tmp_path, head + _AVRO_SELECT, schema_registry_url=registry.url) as decode:
            assert reasons(decode(records(values[:1]))) == {0: "refused_select"}
            assert reasons(decode(records(values))) == {0: "unmappable"}
        wrong = head + _AVRO_SELECT.replace(" FROM record", " FROM record LIMIT 1")
        with (
            pytest.raises(ConfigurationError, match="LIMIT depends on the batch"),
            mapping(tmp_path, wrong, schema_registry_url=registry.url),
        ):
            pass


def test_missing_packages_are_named_by_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, or how to do without."""
    (tmp_path / "r.proto").write_text(_KIND + "message A { string id = 1; }\n")
    monkeypatch.setattr("pipelines.mapping.source_files.is_installed", lambda _: False)
    text = 'topic = "t"\nformat = "protobuf"\nschema = "r.proto"\nuser_id = "id"\ntime = "id"\naction_type = "A"\n'
    with (
        pytest.raises(ConfigurationError, match=r"rides\.toml needs .* 'karmalake\[proto\]'; or name a descriptor set"),
        mapping(tmp_path, text),
    ):
        pass
    avro = 'topic = "t"\nformat = "avro"\nregistry = true\nuser_id = "id"\ntime = "id"\naction_type = "A"\n'
    with pytest.raises(ConfigurationError, match=r"pip install 'karmalake\[avro\]'"), mapping(tmp_path, avro):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("zone", "hour"), [("UTC", 12), ("Europe/Berlin", 11), ("America/New_York", 17)])
def test_times_without_a_zone_are_of_the_one_that_is_named(tmp_path: Path, zone: str, hour: int) -> None:
    """A local-timestamp is a time of `time_zone`; without that key it is refused when the source is opened."""
    local = {"type": "long", "logicalType": "local-timestamp-millis"}
    fields = [{"name": "u", "type": "string"}, {"name": "t", "type": local}]
    schema = {"type": "record", "name": "R", "fields": fields}
    (tmp_path / "r.avsc").write_text(json.dumps(schema))
    head = 'topic = "rides"\nformat = "avro"\nschema = "r.avsc"\nuser_id = "u"\naction_type = "A"\ntime = "t"\n'
    value = _avro(schema, {"u": "u", "t": datetime(2026, 1, 31, 12)})  # noqa: DTZ001 - a local time
    with mapping(tmp_path, f'{head}time_zone = "{zone}"\n') as decode:
        (event,) = decode(records([value])).events.to_pylist()
    assert (event["event_time"].hour, event["event_time"].tzname()) == (hour, "UTC")
    with pytest.raises(ConfigurationError, match="without a zone: add time_zone"), mapping(tmp_path, head):
        pass


@pytest.mark.slow
def test_stalling_values_of_many_schemas_share_one_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer with many schema ids cannot multiply the time; good records that were tried count (`not-blocked`)."""
    monkeypatch.setattr(sandbox, "_BATCH_SECONDS", 1.0)
    schema = {"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]}
    text = """
topic = "rides"
format = "avro"
registry = true
select = '''SELECT 'u' || CAST(list_sum(list_transform(range(n), lambda x: list_sum(range(x % 3000)))) AS VARCHAR)
  AS user_id, 'A' AS action_type, bus_time AS timestamp FROM record'''
"""

    def value(schema_id: int, n: int) -> bytes:
        return b"\0" + struct.pack(">I", schema_id) + _avro(schema, {"n": n})

    stalling = [value(schema_id, 100_000_000) for schema_id in range(2, 42)]
    with running_registry() as registry:
        registry.schemas = {
            number: {"schema": json.dumps(schema | {"name": f"R{number}"}), "id": number} for number in range(1, 42)
        }
        with mapping(tmp_path, text, schema_registry_url=registry.url) as decode:
            found = decode(records([value(1, 2)] * 3 + stalling + [value(1, 3)]))
            again = decode(records([value(9, 2)]))
    assert found.events["offset"].to_pylist() == [0, 1, 2, 43]
    details = found.rejected["detail"].to_pylist()
    assert "exceeds the CPU time of a mapping" in details[0]
    assert [("not tried" in detail, "Requeue it" in detail) for detail in details[1:]] == [(True, True)] * 39
    assert len(again.events) == 1
    assert "rides.toml: a record of rides-0@3 exceeds the CPU time of a mapping" in caplog.text
    assert "the 39 not yet tried are dead letters, to be requeued" in caplog.text
