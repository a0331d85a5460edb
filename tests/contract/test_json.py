"""JSON: types are not coerced, and no value affects another one (`not-blocked`)."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.json import parse_json
from pipelines.contract.json_grammar import MAX_JSON_DEPTH
from pipelines.contract.rejection import Reason

_EVENT = {
    "event_id": "e-ü",
    "user_id": "u",
    "action_type": "A",
    "timestamp": "2026-03-01T12:00:00.123456Z",
    "metadata": {"rating": "5", "": "empty key", "a.b": "*"},
}
_READ = {
    "event_id": "e-ü",
    "user_id": "u",
    "action_type": "A",
    "event_time": datetime(2026, 3, 1, 12, 0, 0, 123_456, UTC),
    "metadata": [("rating", "5"), ("", "empty key"), ("a.b", "*")],
}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def _text(**changes: object) -> bytes:
    return json.dumps(_EVENT | changes).encode()


def _with(member: bytes) -> bytes:
    """Return the event with one more member."""
    return _text()[:-1] + b", " + member + b"}"


def _values(*values: bytes | None) -> pa.Array:
    return pa.array(values, pa.binary())


def test_fields_are_found_by_name() -> None:
    """In any order and layout, also with fields of a newer writer between them."""
    pretty = json.dumps(dict(reversed(_EVENT.items())) | {"source": [1]}, indent=2, ensure_ascii=False).encode()
    parsed = parse_json(_values(_text(), pretty))
    assert parsed.errors == {}
    assert parsed.events.to_pylist() == [_READ, _READ]


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("2026-03-01T13:00:00+01:00", 0),
        ("2026-03-01T12:00:00.1Z", 100_000),
        ("2026-03-01T12:00:00.123456789Z", 123_456),
    ],
)
def test_rfc_3339_times(text: str, micro: int) -> None:
    """Any offset and any number of digits are accepted; times are truncated to microseconds."""
    parsed = parse_json(_values(_text(timestamp=text)))
    assert parsed.events["event_time"].to_pylist() == [datetime(2026, 3, 1, 12, 0, 0, micro, UTC)]


def test_absent_fields_are_empty() -> None:
    """An absent field and a null are the same."""
    absent = parse_json(_values(b"{}"))
    null = parse_json(_values(json.dumps(dict.fromkeys(_EVENT)).encode()))
    assert absent.errors == null.errors == {}
    blank = {"event_id": "", "user_id": "", "action_type": "", "event_time": None, "metadata": []}
    assert absent.events.to_pylist() == null.events.to_pylist() == [blank]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff{}", "not UTF-8"),
        (b"", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b" []", "it is another value, at byte 1"),
        (b"[] []", "data follows it, at byte 3"),
        (b"{} {}", "not a JSON object"),
        (b"[" * 100_000, "over 512 levels deep, at byte 512"),
        (_text()[:-1] + b",}", "a comma stands before the end of an object or array"),
        (_with(b'"x": [1,]'), "a comma stands before the end of an object or array"),
        (_with(b'"x": [,1]'), "a value is expected"),
        (_with(b'"x": NaN'), "a value is expected"),
        (_with(b'"x": -Infinity'), "a value is expected"),
        (_with(b'"x": inf'), "a value is expected"),
        (_with(b'"x": 01'), "a comma or the end"),
        (_with(b'"x": 1.'), "a value is expected"),
        (_with(b'"x": /* no */ 1'), "a value is expected"),
        (_with(b'"x": "\\x41"'), "an invalid escape"),
        (_with(b'"x": "\t"'), "a control character"),
        (_with(b'"x": "\\udc00"'), "a lone surrogate"),
        (_with(b"x: 1"), "the name of a field is expected"),
        (_with(b'"x" 1'), "a colon is expected"),
        (b"\xef\xbb\xbf" + _text(), "a value is expected, at byte 0"),
        (_text().decode().encode("utf-16-le"), "the name of a field is expected"),
        (_text() + b"1", "data follows it"),
        (_text(event_id=5), "event_id is not a string"),
        (_text(user_id={"a": 1}), "user_id is not a string"),
        (_text(timestamp=1_772_366_400), "timestamp is not a string"),
        (_text(timestamp="yesterday"), "timestamp: 'yesterday' is not an ISO 8601 time"),
        (_text(metadata=[]), "metadata is not an object of strings"),
        (_text(metadata={"rating": 5}), "metadata is not an object of strings"),
        (b'{"event_id": "a", "event_id": "b"}', "a field twice"),
        (_with(b'"x": 1, "y": 2, "x": 3'), "a field twice"),
        (b'{"metadata": {"a": "1", "a": "2"}}', "metadata has a key twice"),
        (b'{"metadata": {' + b", ".join(b'"%d": ""' % (key % 30) for key in range(31)) + b"}}", "has a key twice"),
    ],
)
def test_an_invalid_value_has_a_detail(value: bytes, message: str) -> None:
    """An invalid value gets a detail; all others are decoded."""
    parsed = parse_json(_values(_text(), value, _text()))
    assert list(parsed.errors) == [1]
    assert parsed.errors[1].reason is Reason.UNDECODABLE
    assert message in parsed.errors[1].detail
    assert [parsed.events.to_pylist()[row] for row in (0, 2)] == [_READ, _READ]


_DEEP, _TOO_DEEP = (b"[" * depth + b"]" * depth for depth in (MAX_JSON_DEPTH - 1, MAX_JSON_DEPTH))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "event"),
    [
        (_with(b'"x": ' + _DEEP), True),
        (_with(b'"x": ' + _TOO_DEEP), False),
        (_with(b'"x": ' + b"9" * 1_000_000), True),
        (_with(b'"x": 1e999999999'), True),
        (_with(b'"x": "' + b"a" * 50_000_000 + b'"'), True),
        (_with(b'"a\\u0000b": "\\u0000"'), True),
        (_with(b'"user\\u005fid": "another"'), False),
        (_with(b'"x": "\xff"'), False),
        (_with(b'"x": "\xed\xa0\x80"'), False),
        (_with(b'"x": "\\ud800"'), False),
        (_with(b'"x": "\x00"'), False),
        (_with(b'"x": 1') + b"\x00", False),
        (_with(b'"x": ' + b"[" * 8_000_000 + b"]" * 8_000_000), False),
        (b"[" * 1_000_000, False),
        (_with(b'"x": [' + b"1," * 8_000_000 + b"1]"), True),
    ],
    ids=[
        "deep", "too-deep", "long-number", "large-number", "50MB", "nul-escaped", "field-twice", "not-utf8",
        "surrogate-in-utf8", "lone-surrogate", "nul", "nul-behind", "16MB-of-brackets", "brackets", "8M-numbers",
    ],
)  # fmt: skip
def test_hostile_values_have_one_outcome(value: bytes, event: bool) -> None:
    """Depth, size, numbers, surrogates, NUL: an event or an error, in bounded memory; other values are unaffected."""
    parsed = parse_json(_values(_text(), value, _text()))
    assert list(parsed.errors) == ([] if event else [1])
    rows = parsed.events.select(["event_id"]).to_pylist()
    assert [rows[0], rows[2]] == [{"event_id": "e-ü"}] * 2


@pytest.mark.parametrize("text", ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_times_beyond_the_calendar(text: str) -> None:
    """A time outside years 1 to 9999, also because of its offset, is an error in any batch."""
    for values in ([_text(timestamp=text)], [_text(timestamp=text), _text(), _text(timestamp="no")]):
        assert 0 in parse_json(_values(*values)).errors


def test_a_long_time_gives_a_short_sentence() -> None:
    """The quoted text is truncated to one line without control characters."""
    (problem,) = parse_json(_values(_text(timestamp="\x1b[31m\n" + "a" * 10_000_000))).errors.values()
    assert "is not an ISO 8601 time" in problem.detail
    assert problem.detail.isprintable()


@given(st.lists(st.none() | st.binary(max_size=12) | _JSON.map(lambda value: json.dumps(value).encode()), max_size=6))
def test_any_values_have_an_outcome(values: list[bytes | None]) -> None:
    """Random bytes and random JSON each give a row, and nothing is raised."""
    assert len(parse_json(_values(*values)).events) == len(values)


@given(st.dictionaries(st.sampled_from([*_EVENT, "other"]), _JSON))
def test_only_strings_are_taken(fields: dict[str, object]) -> None:
    """An object with random fields is an event if, and only if, all fields of the contract are strings or absent."""
    parsed = parse_json(_values(json.dumps(fields).encode()))
    texts = [fields.get(name) for name in ("event_id", "user_id", "action_type")]
    strings = all(value is None or isinstance(value, str) for value in texts)
    metadata = fields.get("metadata")
    texts_only = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if "timestamp" not in fields:
        assert (not parsed.errors) == (strings and (metadata is None or texts_only))
