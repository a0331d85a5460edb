"""Schemas that may crash or stall a decoder: in the sandbox, a bad value affects only itself (`not-blocked`)."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from pipelines.contract import avro_sandbox
from pipelines.contract.avro import OWN_SCHEMA, parse_avro
from pipelines.contract.avro_sandbox import decode_sandboxed
from pipelines.contract.avro_schema import MAX_SCHEMA_BYTES, bulk_cells_per_row, inline_references, strip_annotations
from pipelines.contract.rejection import Reason
from pipelines.errors import TransientError
from tests.contract.encoding import to_avro
from tests.services.process import ended
from tests.services.waiting import wait_for

_ROW: dict[str, Any] = {
    "event_id": "e",
    "user_id": "u",
    "action_type": "A",
    "timestamp": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "metadata": {"rating": "5"},
}
_READ = {
    "event_id": "e",
    "user_id": "u",
    "action_type": "A",
    "event_time": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "metadata": [("rating", "5")],
}
_NODE = {
    "type": "record",
    "name": "Node",
    "fields": [{"name": "v", "type": "bytes"}, {"name": "next", "type": ["null", "Node"]}],
}
_EMPTY = {"type": "record", "name": "Z", "fields": []}
_MANY_NULLS = {"type": "array", "items": "null"}
_OWN = to_avro(OWN_SCHEMA, _ROW)
_HUGE = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"
"""A count or a length of 2^62 - 1."""


def _schema(**types: Any) -> str:
    schema = json.loads(OWN_SCHEMA)
    schema["fields"] += [{"name": name, "type": kind} for name, kind in types.items()]
    return json.dumps(schema)


def _record(name: str, **types: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in types.items()]}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (["null", _NODE], {"v": b"x", "next": {"v": b"y", "next": None}}),
        (_EMPTY, {}),
        ({"type": "array", "items": _EMPTY}, [{}, {}]),
        ({"type": "error", "name": "Er", "fields": [{"name": "m", "type": "string"}]}, {"m": "x"}),
        (_MANY_NULLS, [None, None]),
        (["null"], None),
        ({"type": "array", "items": ["null", _record("Wide", **dict.fromkeys("abcdefghijkl", "long"))]}, [None]),
        ({"type": "fixed", "name": "Seal", "size": 3}, b"abc"),
        ([_record(f"R{n}", a="long") for n in range(20)], {"a": 1}),
    ],
    ids=["recursive", "empty", "empties", "error", "nulls", "only-null", "wide", "fixed", "branches"],
)
def test_a_field_of_any_type_is_passed_over(kind: Any, value: Any) -> None:
    """Fields that a newer writer added are ignored, even if Arrow has no type for them."""
    schema = _schema(extra=kind)
    assert bulk_cells_per_row(strip_annotations(json.loads(schema))) is None
    parsed = parse_avro(pa.array([to_avro(schema, _ROW | {"extra": value})] * 2, pa.binary()), schema)
    assert parsed.errors == {}
    assert parsed.events.to_pylist() == [_READ, _READ]


_POISON = [
    pytest.param(["null", _NODE], None, b"\x02" + b"\x00\x02" * 300_000 + b"\x00\x00", "SIGSEGV", id="deep"),
    pytest.param(_MANY_NULLS, [None], _HUGE + b"\x00", "exceeds the CPU time limit", id="nulls-without-end"),
    pytest.param({"type": "map", "values": "bytes"}, {}, b"\x02\x00" + _HUGE, "Expected 46116860184273", id="long"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "good", "bad", "message"), _POISON)
def test_a_value_that_ends_or_stalls_its_decoder(kind: Any, good: Any, bad: bytes, message: str) -> None:
    """It is a dead letter whose detail names the effect; every other value of its schema is an event."""
    schema = _schema(extra=kind)
    value = to_avro(schema, _ROW | {"extra": good})
    values = [value, _OWN + bad, value, value, _OWN + bad, _OWN + bad, value]
    parsed = parse_avro(pa.array(values, pa.binary()), schema)
    assert sorted(parsed.errors) == [1, 4, 5]
    assert {problem.reason for problem in parsed.errors.values()} == {Reason.UNDECODABLE}
    assert all(message in problem.detail for problem in parsed.errors.values())
    found = parsed.events.to_pylist()
    assert [found[row] for row in (0, 2, 3, 6)] == [_READ] * 4


@pytest.mark.slow
def test_a_value_that_expands_beyond_the_memory_is_a_dead_letter() -> None:
    """The process has a limit of memory, which a value reaches long before that of its CPU time."""
    kind = _record("Padded", pad="bytes", items={"type": "array", "items": _EMPTY})
    schema = _schema(extra=kind)
    good = to_avro(schema, _ROW | {"extra": {"pad": bytes(16 * 1024 * 1024), "items": []}})
    parsed = parse_avro(pa.array([good, good[:-1] + _HUGE, good], pa.binary()), schema)
    assert [problem.detail for problem in parsed.errors.values()] == [
        "The value is not an event by its writer's Avro schema: MemoryError."
    ]
    assert list(parsed.errors) == [1]


def test_a_process_that_is_killed_from_outside_costs_no_event() -> None:
    """If the process is killed from outside while it decodes a value, the next process decodes that value."""
    schema = _schema(extra="bytes")
    value = to_avro(schema, _ROW | {"extra": b"x"})
    assert parse_avro(pa.array([value], pa.binary()), schema).errors == {}
    os.kill(avro_sandbox._running[0].process.pid, signal.SIGKILL)
    parsed = parse_avro(pa.array([value] * 3, pa.binary()), schema)
    assert (parsed.errors, len(parsed.events)) == ({}, 3)


def test_the_process_stays_between_batches() -> None:
    """The process is started once, not for every batch."""
    schema = _schema(extra="bytes")
    values = pa.array([to_avro(schema, _ROW | {"extra": b"x"})], pa.binary())
    parse_avro(values, schema)
    first = avro_sandbox._running[0].process.pid
    parse_avro(values, schema)
    assert avro_sandbox._running[0].process.pid == first


def test_a_call_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a batch of bad values has used up its time, the remaining values are rejected and can be requeued."""
    schema = _schema(extra=_MANY_NULLS)
    good, bad = to_avro(schema, _ROW | {"extra": []}), _OWN + _HUGE + b"\x00"
    monkeypatch.setattr(avro_sandbox, "_CALL_SECONDS", 0.2)
    monkeypatch.setattr(avro_sandbox, "_MAX_VALUES_PER_REQUEST", 1)
    parsed = parse_avro(pa.array([good, bad, good, bad], pa.binary()), schema)
    assert sorted(parsed.errors) == [1, 2, 3]
    assert "was not tried: 1 earlier values of its schema" in parsed.errors[2].detail
    assert "requeue it" in parsed.errors[2].detail
    assert parse_avro(pa.array([good], pa.binary()), schema).errors == {}


@pytest.mark.slow
def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no orphan."""
    code = (
        "import pyarrow as pa, sys, time\n"
        "from pipelines.contract import avro_sandbox\n"
        "avro_sandbox.check_schema_sandboxed('\"long\"')\n"
        "print(avro_sandbox._running[0].process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with ended(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        wait_for("the process to end with its parent", lambda: _has_ended(child))


def _has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, even if the init process of a container leaves it a zombie."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_does_not_start_is_an_outage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If no process can be started, ingest waits for an operator; no value becomes a dead letter."""
    schema = _schema(extra="bytes", another="string")
    avro_sandbox._stop()
    monkeypatch.setattr(avro_sandbox, "_SCRIPT", tmp_path / "missing.py")
    with pytest.raises(TransientError, match=r"does not start: it terminates the decoder process .*exit code 2"):
        parse_avro(pa.array([b""], pa.binary()), schema)
    monkeypatch.undo()
    value = to_avro(schema, _ROW | {"extra": b"", "another": ""})
    assert parse_avro(pa.array([value], pa.binary()), schema).errors == {}


def _nested(levels: int) -> str:
    kind: Any = "long"
    for level in range(levels):
        kind = _record(f"L{level}", inner=kind)
    return _schema(extra=kind)


def _doubling(levels: int) -> Any:
    """Return a type that is 2^levels fields wide once its names are resolved."""
    kind: Any = _record("D0", a="long", b="long")
    for level in range(1, levels):
        kind = _record(f"D{level}", a=kind, b=f"D{level - 1}")
    return kind


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("[" * 100_000, "nested over 128 levels"),
        ("[" * 2_000 + "]" * 2_000, "nested over 128 levels"),  # Python 3.13 parses it, 3.11 does not
        (_nested(50), "nested over 128 levels"),
        (json.dumps(json.loads(OWN_SCHEMA) | {"doc": "x" * MAX_SCHEMA_BYTES}), "longer than 1048576 bytes"),
        ('{"type": "record", "name": "E", "fields": {}}', "not a record with fields"),
        ('{"type": "record", "name": "E", "fields": [5]}', "cannot be read"),
        ('{"type": "record", "name": "E", "fields": [{"name": "x"}]}', "cannot be read"),
        ('{"type": "record", "fields": [{"name": "event_id", "type": "string"}]}', "cannot be read"),
        (_schema(x="com.other.Type"), "cannot be read (com.other.Type)"),
        (_schema(x={"type": "map"}), "cannot be read"),
        ("null", "not a record with fields"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_schema_that_cannot_be_read(schema: str, message: str) -> None:
    """Its values are dead letters with the schema's error as the detail; nothing is raised."""
    parsed = parse_avro(pa.array([_OWN, b"", None], pa.binary()), schema)
    assert [problem.reason for problem in parsed.errors.values()] == [Reason.UNDECODABLE] * 3
    assert message in parsed.errors[0].detail
    assert "\n" not in parsed.errors[0].detail


@pytest.mark.parametrize("depth", [200, 2_000, 100_000])
def test_schemas_with_references_have_the_same_limit_of_depth(depth: int) -> None:
    """Whether the schema or one that it names is too deep, and whatever this release of Python can parse."""
    deep = "[" * depth + '"int"' + "]" * depth
    for text, named in ((deep, {}), ('"other"', {"other": deep})):
        with pytest.raises(ValueError, match="nested over 128 levels"):
            inline_references(text, named)


@pytest.mark.parametrize("schema", [_nested(30), _schema(extra=_doubling(12)), _schema(extra=_doubling(30))])
def test_a_schema_beyond_the_limits_of_bulk_is_decoded_in_the_sandbox(schema: str) -> None:
    """Depth and width are bounded after names are resolved; values of a schema beyond the bounds are still decoded."""
    assert bulk_cells_per_row(strip_annotations(json.loads(schema))) is None
    value = _OWN + b"\x00" * 5_000
    parsed = parse_avro(pa.array([value, _OWN], pa.binary()), schema)
    assert len(parsed.events) == 2
    assert 1 in parsed.errors


def test_large_values_of_any_schema_are_decoded_in_the_sandbox() -> None:
    """A value larger than the limit of decoding in this process is decoded correctly."""
    large = to_avro(OWN_SCHEMA, _ROW | {"metadata": {"rating": "5" * 5_000_000}})
    parsed = parse_avro(pa.array([_OWN, large, _OWN], pa.binary()), OWN_SCHEMA)
    assert parsed.errors == {}
    assert [len(dict(row["metadata"])["rating"]) for row in parsed.events.to_pylist()] == [1, 5_000_000, 1]


@pytest.mark.parametrize("unit", ["millis", "micros", "nanos"])
@pytest.mark.parametrize("extra", ["long", "bytes"])
def test_times_out_of_range_affect_no_other_value(unit: str, extra: str) -> None:
    """Both ends of 64 bits, in every unit and both decoders: an error or a distant time, and nothing is raised."""
    timestamp = {"type": "long", "logicalType": f"timestamp-{unit}"}
    schema = json.loads(_schema(extra=extra))
    schema["fields"][3] = {"name": "timestamp", "type": timestamp}
    plain = json.loads(_schema(extra=extra))
    plain["fields"][3] = {"name": "timestamp", "type": "long"}
    extra_field = {"extra": 1 if extra == "long" else b""}
    values = [
        to_avro(json.dumps(plain), _ROW | extra_field | {"timestamp": count})
        for count in (0, 2**63 - 1, -(2**63), 1_000_000)
    ]
    parsed = parse_avro(pa.array(values, pa.binary()), json.dumps(schema))
    assert set(parsed.errors) <= {1, 2}
    assert (1 in parsed.errors) == (unit == "millis")
    assert parsed.events["event_time"].cast(pa.int64())[0].as_py() == 0


def test_an_interrupted_call_leaves_no_responses_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C between two responses, the next call gets the responses to its own values (`nothing-lost`)."""
    values = [to_avro(OWN_SCHEMA, _row(number)) for number in range(6)]
    answer = avro_sandbox._Process._receive
    answered: list[None] = []

    def interrupting(process: Any) -> dict[str, Any]:
        found = answer(process)
        answered.append(None)
        if len(answered) == 3:
            raise KeyboardInterrupt
        return found

    decode_sandboxed(OWN_SCHEMA, ["event_id"], values[:1])
    with monkeypatch.context() as patch:
        patch.setattr(avro_sandbox._Process, "_receive", interrupting)
        with pytest.raises(KeyboardInterrupt):
            decode_sandboxed(OWN_SCHEMA, ["event_id"], values[:5])
    assert decode_sandboxed(OWN_SCHEMA, ["event_id"], values[5:]) == [["e-5"]]


def _row(number: int) -> dict[str, Any]:
    time = datetime(2026, 3, 1, 12, tzinfo=UTC)
    return {"event_id": f"e-{number}", "user_id": "u", "action_type": "A", "timestamp": time, "metadata": {}}


def test_an_invalid_schema_leaves_no_responses_to_the_next_call() -> None:
    """Its values get no response: the next call would take it for one to its own values (`nothing-lost`)."""
    values = [to_avro(OWN_SCHEMA, _row(number)) for number in range(4)]
    assert decode_sandboxed(OWN_SCHEMA, ["event_id"], values[:1]) == [["e-0"]]
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 9}
    unreadable = {"type": "record", "name": "Event", "fields": [{"name": "x", "type": decimal}]}
    with pytest.raises(ValueError, match="it cannot be read"):
        decode_sandboxed(json.dumps(unreadable), ["x"], values[1:3])
    assert decode_sandboxed(OWN_SCHEMA, ["event_id"], values[3:]) == [["e-3"]]
