"""Values with a schema id: each is decoded with its own schema; values with an unknown schema can be requeued."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.rejection import Reason
from pipelines.contract.values import parse_values
from pipelines.settings import ContractSettings
from tests.contract.encoding import avro_schema, framed, to_avro, to_protobuf

_SECONDS = 1_772_366_400
_PROTOBUF, _AVRO, _JSON, _UNKNOWN = 7, 8, 9, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a schema of each format."""
    folder = tmp_path_factory.mktemp("schemas")
    (folder / f"{_PROTOBUF}.proto").write_text('syntax = "proto3"; message Event {}')
    (folder / f"{_AVRO}.avsc").write_text(avro_schema(1))
    (folder / f"{_JSON}.json").write_text('{"type": "object"}')
    return folder


def _value(kind: str, event_id: str) -> bytes:
    row = {"event_id": event_id, "user_id": "u", "action_type": "A", "metadata": {"rating": "5"}}
    match kind:
        case "bare":
            return to_protobuf(1, event_id, _SECONDS)
        case "protobuf":
            return framed(_PROTOBUF, b"\x00" + to_protobuf(1, event_id, _SECONDS))
        case "protobuf in full":
            return framed(_PROTOBUF, b"\x02\x00" + to_protobuf(2, event_id, _SECONDS))
        case "avro":
            return framed(_AVRO, to_avro(avro_schema(1), row | {"timestamp": _SECONDS * 1_000_000}))
        case _:
            return framed(_JSON, json.dumps(row | {"timestamp": "2026-03-01T12:00:00Z"}).encode())


_GOOD = ["bare", "protobuf", "protobuf in full", "avro", "json"]
_BAD = {
    "another message": (framed(_PROTOBUF, b"\x02\x02\x0a\x01e"), Reason.UNDECODABLE, "not the first message"),
    "no message": (framed(_PROTOBUF, b""), Reason.UNDECODABLE, "not the first message"),
    "bad protobuf": (framed(_PROTOBUF, b"\x00\xff"), Reason.UNDECODABLE, "is not a karmalake.v1.Event"),
    "bad avro": (framed(_AVRO, b"\xff"), Reason.UNDECODABLE, "is not an event by its writer's Avro schema"),
    "bad json": (framed(_JSON, b"["), Reason.UNDECODABLE, "not a JSON object"),
    "unknown": (framed(_UNKNOWN, b"\x00"), Reason.UNKNOWN_SCHEMA, "was written by schema 10"),
    "cut off": (b"\x00\x00\x00\x00", Reason.UNDECODABLE, "is not a karmalake.v1.Event"),
    "zero": (b"\x00", Reason.UNDECODABLE, "is not a karmalake.v1.Event"),
}


@pytest.mark.slow
@given(kinds=st.lists(st.sampled_from([*_GOOD, *_BAD]), max_size=30))
def test_each_value_by_its_own_schema(folder: Path, kinds: list[str]) -> None:
    """In any mixture each value has the outcome that it has alone, in its row (`not-blocked`)."""
    values = [_BAD[kind][0] if kind in _BAD else _value(kind, f"e-{row}") for row, kind in enumerate(kinds)]
    parsed = parse_values(pa.array(values, pa.binary()), ContractSettings(schemas_dir=folder))
    rows = parsed.events.to_pylist()
    assert len(rows) == len(kinds)
    for row, kind in enumerate(kinds):
        if kind in _BAD:
            _, reason, sentence = _BAD[kind]
            assert parsed.errors[row].reason is reason
            assert sentence in parsed.errors[row].detail
        else:
            assert row not in parsed.errors
            assert (rows[row]["event_id"], rows[row]["event_time"].timestamp()) == (f"e-{row}", _SECONDS)
            assert rows[row]["metadata"] == [("rating", "5")]


@pytest.mark.parametrize(("kind", "form"), [("protobuf", "protobuf"), ("avro", "avro"), ("json", "json")])
def test_bare_values_are_in_the_format_of_the_settings(kind: str, form: str) -> None:
    """A value without an id has the format in `contract.format`; nulls are handled elsewhere."""
    value = _value(kind, "e")[5:]
    value = value[1:] if kind == "protobuf" else value
    contract = ContractSettings.model_validate({"format": form})
    parsed = parse_values(pa.array([value, value], pa.binary()), contract)
    assert parsed.errors == {}
    assert parsed.events["event_id"].to_pylist() == ["e", "e"]
    assert len(parse_values(pa.array([None, value, None], pa.binary()), contract).events) == 3
