"""The compiled scan of JSON agrees with Python's `json`, and with the audit's reader, on any value (`nothing-lost`)."""

import json
from typing import Any

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.contract.iso_times import parse_common_times
from pipelines.contract.json import parse_json
from pipelines.contract.json_text import copy_strings
from pipelines.contract.parsing import Problem
from pipelines.settings import ContractSettings
from tests.verdicts import of_audit, of_ingest

_CONTRACT = ContractSettings(format="json")
_RICH = (
    b' {"event_id": "e\\u00e9\\n\xc3\xa9\\ud83d\\ude00", "x": [1, {"y": [-0.5e+3, true, null, {}]}, ""],'
    b'\n"user_id" : "u", "action\\u005ftype":"A\\\\", "timestamp":"2026-03-01T10:00:00.5+01:00",'
    b' "metadata": {"k": "\\"", "": "v"} }\t'
)
_SPACES = st.sampled_from(["", "", "", " ", "\n", "\t\r "])
_ESCAPES = ['\\"', "\\\\", "\\/", *(f"\\{letter}" for letter in "bfnrt"), "\\u0000", "\\u0041", "\\u00E9", "\\u20ac"]
_CHARS = [*"abc {}[]:,é€😀\x7f/", *_ESCAPES, "\\ud83d\\ude00", "\\uDBFF\\uDFFF"]
_BROKEN = ["\\x41", "\\u12", "\\u12g4", "\\ud800", "\\udc00", "\\ud800\\u0041", "\\", '"', "\t", "\x00", "\ud800"]
_NUMBERS = ["0", "-0", "-1.5", "1e5", "1E-7", "1e+400", "9" * 500, "01", "1.", ".5", "-", "+1", "1e", "0x1", "NaN"]
_LITERALS = ["true", "false", "null", "nul", "True", "", "Infinity", "{}", "[]", "[ ]", "{,}", "[,]", "//"]
_TIMES = [
    *("2026-03-01T10:00:00Z", "2026-03-01 10:00:00.123456789+01", "2026-03-01", "1969-12-31T23:59:59.9999999Z", "now"),
    *("2023-02-29T00:00:00Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-0001", "", " 20260301T10Z"),
]


def _quoted(chars: list[str], most: int = 6) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(chars), max_size=most).map(lambda found: f'"{"".join(found)}"')


_STRINGS = _quoted(_CHARS)
_SCALARS = _STRINGS | _quoted(_CHARS + _BROKEN) | st.sampled_from(_NUMBERS + _LITERALS)


@st.composite
def _joined(draw: st.DrawFn, brackets: str, items: st.SearchStrategy[str]) -> str:
    """Return items in brackets with commas, now and then one too many."""
    comma = f"{draw(_SPACES)},{draw(_SPACES)}"
    trailing = draw(st.sampled_from([*[""] * 15, ","]))
    return f"{brackets[0]}{draw(_SPACES)}{comma.join(draw(st.lists(items, max_size=4)))}{trailing}{brackets[1]}"


_VALUES = st.recursive(
    _SCALARS, lambda inner: _joined("[]", inner) | _joined("{}", st.tuples(_STRINGS, inner).map(":".join)), max_leaves=6
)


@st.composite
def _members(draw: st.DrawFn) -> str:
    """Return a member of an event: its name may be escaped, its value of another type."""
    name = draw(st.sampled_from(["event_id", "user_id", "action_type", "timestamp", "metadata", "event_ix", "x", ""]))
    written = f"\\u{ord(name[0]):04x}{name[1:]}" if name and draw(st.integers(0, 9)) == 0 else name
    typical = {"timestamp": st.sampled_from(_TIMES).map(json.dumps), "metadata": _metadata()}.get(name, _STRINGS)
    value = draw(_VALUES if draw(st.integers(0, 7)) == 0 else typical)
    return f'"{written}"{draw(_SPACES)}:{draw(_SPACES)}{value}'


def _metadata() -> st.SearchStrategy[str]:
    keys = _STRINGS | st.sampled_from(['"a"', '"\\u0061"'])
    values = st.integers(0, 15).flatmap(lambda odd: _STRINGS if odd else _SCALARS)
    return _joined("{}", st.tuples(keys, values).map(":".join))


@st.composite
def _documents(draw: st.DrawFn) -> bytes:
    """Return an event, or what is nearly one: with other members, of another type, damaged, cut, or with a mark."""
    members = draw(st.lists(_members(), min_size=3, max_size=8, unique_by=lambda member: member.split(":")[0]))
    members += draw(st.lists(st.sampled_from(members), max_size=1)) if draw(st.integers(0, 4)) == 0 else []
    text = draw(_VALUES if draw(st.integers(0, 9)) == 0 else st.just(f"{{{','.join(members)}}}"))
    value = f"{draw(_SPACES)}{text}{draw(_SPACES)}".encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 9)):
        case 0:
            return value[: draw(st.integers(0, len(value)))]
        case 1:
            at = draw(st.integers(0, len(value)))
            return value[:at] + draw(st.binary(max_size=3)) + value[at + draw(st.integers(0, 3)) :]
        case 2:
            return draw(st.sampled_from([b"\xef\xbb\xbf" + value, value + b"\x00", value * 2, value + b"//"]))
        case _:
            return value


@example([_RICH])
@given(st.lists(_documents(), min_size=1, max_size=6))
def test_json_is_what_python_reads(values: list[bytes]) -> None:
    """A value has no fault of syntax if, and only if, Python's `json` reads it as UTF-8 without its extensions."""
    errors = parse_json(pa.array(values, pa.binary())).errors
    judged = [_is_json(errors.get(row)) for row in range(len(values))]
    assert judged == [_python_reads(value) for value in values]


@example([_RICH, b"{}", _RICH])
@given(st.lists(_documents(), min_size=1, max_size=6))
def test_the_audit_reads_the_same(values: list[bytes]) -> None:
    """Together or alone, each value is the event that the audit reads, or no event for both."""
    together = of_ingest(values, _CONTRACT)
    assert together == [of_audit(value, _CONTRACT) for value in values]
    assert together == [verdict for value in values for verdict in of_ingest([value], _CONTRACT)]


def test_a_value_cut_at_any_byte() -> None:
    """Only the complete value is an event; each shorter one has a fault at its end, or within its cut character."""
    values = [_RICH[:size] for size in range(len(_RICH) + 1)]
    events = [verdict is not None for verdict in of_ingest(values, _CONTRACT)]
    assert events == [_python_reads(value) for value in values]
    assert sum(events) == 2  # with and without the white space after it


def test_what_a_value_is_does_not_depend_on_its_place() -> None:
    """A slice of a batch is decoded as the batch is, from any row on."""
    values = pa.array([_RICH, b"", None, _RICH[:9], b"[]", _RICH], pa.binary())
    whole = parse_json(values)
    for start in range(len(values) + 1):
        part = parse_json(values.slice(start))
        assert part.errors == {row - start: error for row, error in whole.errors.items() if row >= start}
        rows = [row for row in range(start, len(values)) if row not in whole.errors]
        assert [part.events.to_pylist()[row - start] for row in rows] == [whole.events.to_pylist()[row] for row in rows]


def test_no_batch_compiles_a_loop_again() -> None:
    """Empty batches, and those without text, metadata or valid values, have the array types of others."""
    for values in ([_RICH], [], [None], [b""], [b"{}"], [b"[]", _RICH], [b'{"timestamp": ""}'], [b'{"metadata": {}}']):
        parse_json(pa.array(values, pa.binary()))
    assert len(copy_strings.signatures) == len(parse_common_times.signatures) == 1


def _is_json(problem: Problem | None) -> bool:
    """Return whether a value has no fault, or one of the contract."""
    faults = ("it is not UTF-8", "it is not a JSON object: ")
    return problem is None or "another value" in problem.detail or not any(fault in problem.detail for fault in faults)


def _python_reads(value: bytes) -> bool:
    try:
        read = json.loads(
            value.decode(), object_pairs_hook=list, parse_int=str, parse_float=str, parse_constant=_refuse
        )
        json.dumps(read, ensure_ascii=False).encode()  # raises for a lone surrogate
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
