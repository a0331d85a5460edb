"""The scan of the wire format and the decoder agree, and no Protobuf value crashes the process (`not-blocked`)."""

import resource
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.contract.event_pb2 import Event
from pipelines.contract.protobuf import parse_protobuf
from pipelines.contract.rejection import Reason
from pipelines.contract.wire import MAX_GROUPS, find_faults

_TIME = 1_700_000_000
_ELEVEN = b"\xff" * 9 + b"\x01"
"""A length of 2^64 - 1: with the byte of the field, the eleven bytes that made `ptars` panic."""
_FIELDS = (0x0A, 0x12, 0x1A, 0x22, 0x2A)
_PIECES = st.sampled_from(
    [bytes([key]) for key in range(0x08, 0x30)]
    + [b"\x00", b"\x01", b"\x02", b"\x05", b"\x80", b"\xff", b"\x9a\x06", b"\x9b\x06", b"\x9c\x06", _ELEVEN]
    + ["ü".encode(), b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf6" + b"\xff" * 9]
)


def _event(event_id: str = "e-ü") -> bytes:
    event = Event(event_id=event_id, user_id="u", action_type="A", metadata={"rä": "5"})
    event.timestamp.seconds = _TIME
    return event.SerializeToString()


@st.composite
def _values(draw: st.DrawFn) -> bytes:
    """Return bytes near the wire format: parts of it, or an event with a part replaced."""
    piece = st.lists(_PIECES | st.binary(max_size=2), max_size=4).map(b"".join)
    if draw(st.booleans()):
        return b"".join(draw(st.lists(piece, max_size=4)))
    value = _event()
    at = draw(st.integers(0, len(value)))
    return value[:at] + draw(piece) + value[at + draw(st.integers(0, 3)) :]


def _decodes(value: bytes) -> bool:
    """Return whether the decoder accepts a value on its own."""
    from pipelines.contract.protobuf import _columns  # noqa: PLC0415 - the decoder without the wall

    try:
        _columns(pa.array([value], pa.binary()))
    except BaseException:  # noqa: BLE001 - a Rust panic is no Exception
        return False
    return True


@given(st.lists(_values(), min_size=1, max_size=8))
@example([b"\x22" + _ELEVEN])
@example([b"\x33\x34", b"\x33\x3c", b"\x33", b"\x34"])
def test_the_scan_finds_what_the_decoder_refuses(values: list[bytes]) -> None:
    """Exactly those values: a false alarm would make an outcome depend on neighbours, and a miss costs calls."""
    faults = find_faults(pa.array(values, pa.binary()))
    assert set(faults) == {row for row, value in enumerate(values) if not _decodes(value)}


@given(st.lists(st.none() | _values(), max_size=12), st.data())
def test_good_events_among_any_values_are_decoded(values: list[bytes | None], data: st.DataObject) -> None:
    """A valid event is decoded in its row among any other values; every value has a row; nothing is raised."""
    at = data.draw(st.integers(0, len(values)))
    parsed = parse_protobuf(pa.array([*values[:at], _event("good"), *values[at:]], pa.binary()))
    assert len(parsed.events) == len(values) + 1
    assert at not in parsed.errors
    assert parsed.events["event_id"][at].as_py() == "good"
    assert {problem.reason for problem in parsed.errors.values()} <= {Reason.UNDECODABLE}


@pytest.mark.parametrize("field", _FIELDS)
def test_eleven_bytes_are_one_dead_letter(field: int) -> None:
    """A length that overflows, in any of the five fields, affects only its own value."""
    eleven = bytes([field]) + _ELEVEN
    parsed = parse_protobuf(pa.array([_event("a"), eleven, _event("b")], pa.binary()))
    assert parsed.errors[1].detail == "The value is not a karmalake.v1.Event: a length runs past the end, at byte 0."
    assert list(parsed.errors) == [1]
    assert [parsed.events["event_id"][row].as_py() for row in (0, 2)] == ["a", "b"]
    assert parsed.events["event_time"][0].as_py() == datetime.fromtimestamp(_TIME, UTC)


def test_groups_as_deep_as_the_stack() -> None:
    """Groups nested a million deep, which crash a recursive decoder, are a dead letter."""
    deep = b"\x33" * 1_000_000 + b"\x34" * 1_000_000
    parsed = parse_protobuf(pa.array([_event("a"), deep, b"\x22\x80\x89\x7a" + deep, _event("b")], pa.binary()))
    assert sorted(parsed.errors) == [1, 2]
    assert f"groups are nested over {MAX_GROUPS} deep" in parsed.errors[1].detail
    assert [parsed.events["event_id"][row].as_py() for row in (0, 3)] == ["a", "b"]


@pytest.mark.slow
def test_groups_at_the_bound_are_passed_over() -> None:
    """The allowed depth of groups is an unknown field like any other, also in a thread with a small stack."""
    code = (
        "import threading, pyarrow as pa\n"
        "from pipelines.contract.protobuf import parse_protobuf\n"
        f"n = {MAX_GROUPS}\n"
        "value = pa.array([b'\\x0a\\x01e' + b'\\x33' * n + b'\\x34' * n], pa.binary())\n"
        "run = lambda: print(parse_protobuf(value).events['event_id'][0], parse_protobuf(value).errors)\n"
        "thread = threading.Thread(target=run)\n"
        "thread.start(), thread.join()\n"
    )
    two_mib = 2 * 1024 * 1024

    def small_stack() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (two_mib, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, preexec_fn=small_stack)
    assert (done.stdout.strip(), done.returncode) == ("e {}", 0)


def test_half_bad_batches_are_decoded_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with 5,000 invalid values costs two calls of the decoder, not one per value."""
    from pipelines.contract import protobuf  # noqa: PLC0415

    calls: list[int] = []
    columns = protobuf._columns
    monkeypatch.setattr(protobuf, "_columns", lambda values: (calls.append(len(values)), columns(values))[1])
    bad = [_event()[:-3], bytes([0x0A]) + _ELEVEN, b"\x0a\x02\xc3\x28", b"\x0f"]
    values = [_event() if row % 2 else bad[row // 2 % len(bad)] for row in range(10_000)]
    parsed = protobuf.parse_protobuf(pa.array(values, pa.binary()))
    assert sorted(parsed.errors) == list(range(0, 10_000, 2))
    assert calls == [5_000]  # where the decoder would panic, the scan goes first
    calls.clear()
    values = [value for value in values if _ELEVEN not in value]
    parsed = protobuf.parse_protobuf(pa.array(values, pa.binary()))
    assert len(parsed.errors) == len(values) - 5_000
    assert calls == [len(values), 5_000]


def test_a_panic_is_prevented(capfd: pytest.CaptureFixture[str]) -> None:
    """A length that overflows never reaches the decoder, so that no producer can cause output on stderr."""
    lengths = [_ELEVEN, b"\xff" * 9 + b"\x7f", b"\xf6" + b"\xff" * 8 + b"\x01", b"\xff\xff\xff\xff\xff" * 2]
    values = [bytes([field]) + length for field in _FIELDS for length in lengths]
    for value in values:
        for array in (pa.array([value], pa.binary()), pa.array([b"", _event(), value], pa.binary()).slice(2)):
            assert list(parse_protobuf(array).errors) == [0]
    assert parse_protobuf(pa.array([_event("ÿÿÿÿ")], pa.binary())).errors == {}
    assert capfd.readouterr().err == ""
