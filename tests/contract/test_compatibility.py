"""Compatibility of schema changes: breaking changes are reported, and the contract is compatible with its releases."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.contract.compatibility.compare import Comparison, compare_schemas
from pipelines.errors import UsageError
from tests.conftest import REPOSITORY

_CONTRACT = REPOSITORY / "pipelines" / "contract"
_RELEASES = sorted((_CONTRACT / "releases").glob("*/*.*"))
_PROTO = """syntax = "proto3";
message Event {
  string event_id = 1;
  string user_id = 2;
  string action_type = 3;
  int64 timestamp = 4;
  repeated string tags = 5;
  message Place { double x = 1; }
  reserved 9, 20 to max;
}
"""
_AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": "event_id", "type": "string"}, {"name": "count", "type": "int"}],
}
_JSON: dict[str, Any] = {
    "type": "object",
    "properties": {"event_id": {"type": "string"}, "count": {"type": "number"}},
    "required": ["event_id"],
}


@pytest.mark.parametrize("release", _RELEASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_contract_is_fully_compatible_with_its_releases(release: Path) -> None:
    """Readers and writers of any release continue to work."""
    assert compare_schemas(release, _CONTRACT / release.name) == Comparison("full", [])  # type: ignore[arg-type]


def test_every_format_has_been_released() -> None:
    """Without a release of each format the previous test would compare nothing."""
    suffixes = (".proto", ".avsc", ".json")
    assert {path.name for path in _RELEASES} == {path.name for path in _CONTRACT.iterdir() if path.suffix in suffixes}


def _compare(tmp_path: Path, ending: str, old: str, new: str) -> Comparison:
    (tmp_path / f"old{ending}").write_text(old)
    (tmp_path / f"new{ending}").write_text(new)
    return compare_schemas(tmp_path / f"old{ending}", tmp_path / f"new{ending}")


@pytest.mark.parametrize(
    ("before", "after", "outcome", "message"),
    [
        ("reserved 9", "string source = 6; reserved 9", "full", None),
        ("string user_id", "string whom", "full", None),
        ("int64 timestamp", "uint64 timestamp", "full", None),
        ("int64 timestamp", "sint64 timestamp", "none", "Event.timestamp: field 4 was int64 and is sint64"),
        ("repeated string tags", "string tags", "none", "Event.tags: field 5 was repeated string and is string"),
        ("repeated string tags = 5;", "", "none", "Event.tags: field 5 is gone and free to be used again"),
        ("repeated string tags = 5;", "reserved 5;", "full", None),
        ("repeated string tags = 5;", "oneof o { string a = 9; } reserved 5;", "none", "Event.a: field 9 was reserved"),
        ("repeated string tags = 5;", "string z = 4000; reserved 5;", "none", "Event.z: field 4000 was reserved"),
        ("message Place { double x = 1; }", "", "none", "Event.Place: the message is gone"),
        ("string user_id = 2;", "reserved 2;", "backward", "user_id: field 2 is required for an event"),
    ],
)
def test_protobuf(tmp_path: Path, before: str, after: str, outcome: str, message: str | None) -> None:
    """A field is identified by number and type; names matter only for the fields of an event."""
    assert before in _PROTO
    _assert_comparison(_compare(tmp_path, ".proto", _PROTO, _PROTO.replace(before, after)), outcome, message)


def test_protobuf_is_compared_in_both_directions(tmp_path: Path) -> None:
    """A required field that is added breaks new readers of old data, but not old readers of new data."""
    old = _PROTO.replace("string user_id = 2;", "")
    _assert_comparison(_compare(tmp_path, ".proto", old, _PROTO), "forward", "user_id")


@pytest.mark.parametrize(
    ("fields", "outcome", "message"),
    [
        ([{"name": "source", "type": ["null", "string"], "default": None}], "full", None),
        ([{"name": "source", "type": "string"}], "forward", "source"),
        ([{"name": "count", "type": "long"}], "backward", "/fields/1"),
        ([{"name": "count", "type": "string"}], "none", "type mismatch"),
    ],
)
def test_avro(tmp_path: Path, fields: list[dict[str, Any]], outcome: str, message: str | None) -> None:
    """By Avro's own resolution rules: defaults and promotions count."""
    by_name = {field["name"]: field for field in [*_AVRO["fields"], *fields]}
    new = _AVRO | {"fields": list(by_name.values())}
    _assert_comparison(_compare(tmp_path, ".avsc", json.dumps(_AVRO), json.dumps(new)), outcome, message)


@pytest.mark.parametrize(
    ("changes", "outcome", "message"),
    [
        ({"properties": _JSON["properties"] | {"source": {"type": "string"}}}, "full", None),
        ({"description": "words"}, "full", None),
        ({"required": ["event_id", "count"]}, "forward", "count: is required by the new schema only"),
        ({"required": []}, "backward", "event_id: is required by the old schema only"),
        ({"additionalProperties": False, "properties": {"event_id": {"type": "string"}}}, "forward", "count: is gone"),
        ({"properties": {"event_id": {"type": ["string", "null"]}}}, "backward", "event_id: type was string"),
        ({"properties": {"count": {"type": "integer"}}}, "forward", "count: type was integer or number"),
        ({"properties": {"event_id": {"type": "string", "enum": ["a"]}}}, "forward", "enum was anything"),
        ({"properties": {"event_id": {"type": "string", "maxLength": 3}}}, "none", "maxLength changed"),
        ({"additionalProperties": {"type": "string"}}, "none", "additionalProperties changed"),
    ],
)
def test_json_schema(tmp_path: Path, changes: dict[str, Any], outcome: str, message: str | None) -> None:
    """A wider schema is safe for new readers, a narrower one for old ones; an unsupported keyword may not change."""
    _assert_comparison(_compare(tmp_path, ".json", json.dumps(_JSON), json.dumps(_JSON | changes)), outcome, message)


@pytest.mark.parametrize(
    ("ending", "text", "message"),
    [
        (".proto", "message {{", "line 1, column 9"),
        (".proto", "", "has no message"),
        (".avsc", "{}", "not an Avro schema"),
        (".json", "{", "not JSON"),
        (".json", "[]", "not a JSON Schema"),
        (".txt", "", "compare two files that both end in"),
        (".json", '{"properties":{"a":' * 5_000, "nested too deep"),
        (".json", "[" * 100_000, "nested too deep"),
        (".proto", "message M {" * 5_000 + "}" * 5_000, "nested too deep"),
        (".avsc", '{"type":"array","items":' * 5_000 + '"int"' + "}" * 5_000, "not an Avro schema"),
    ],
)
def test_an_invalid_schema(tmp_path: Path, ending: str, text: str, message: str) -> None:
    """The error names the file and the problem."""
    with pytest.raises(UsageError, match=message) as error:
        _compare(tmp_path, ending, text, text)
    assert f"old{ending}" in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    """The error is that of any other missing file."""
    with pytest.raises(UsageError, match="No such file"):
        compare_schemas(tmp_path / "a.proto", tmp_path / "b.proto")


def _assert_comparison(found: Comparison, outcome: str, message: str | None) -> None:
    sentences = [f"{item.place}: {item.sentence}" for item in found.breaks]
    assert found.compatibility == outcome, sentences
    assert bool(sentences) == (message is not None)
    if message:
        assert any(message in sentence for sentence in sentences), sentences
