"""Lines parsed in bulk give exactly what Python's parser gives, or the same error."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.sources import ndjson

_NAMES = ["to", "time", "größe", 'quo"te', "a.b*", "v0"]
_PLAIN = [
    '"u"',
    '""',
    '"null"',
    '"zoë 🚗"',
    '"\x7f"',
    "null",
    "true",
    "1",
    "-0",
    "1.50",
    "1E+05",
    "12345678901234567890.1",
]
_ODD = [r'"quo\"te"', r'"\u00e9"', "NaN", "-Infinity", "[1, 2.0]", '{"a": {}}']
_ODD += ["01", "1.", "+1", "True", "'u'", "", r'"\ud800"', '"tab\tin it"', '"\\"', "\v1"]
_USUAL = json.dumps(dict.fromkeys(_NAMES, 1.5), ensure_ascii=False)
_SPACES = st.sampled_from(["", "", " ", "\t", "\r"])


@st.composite
def _objects(draw: st.DrawFn) -> str:
    """Return an object with plain values, or with one other value, in a typical order of members."""
    names = draw(st.sampled_from([_NAMES, _NAMES, _NAMES, _NAMES[:2], _NAMES[::-1], [*_NAMES, "to"], []]))
    values = [draw(st.sampled_from(_PLAIN)) for _ in names]
    if names and draw(st.booleans()):
        values[draw(st.integers(0, len(names) - 1))] = draw(st.sampled_from(_ODD))
    pairs = [
        f"{draw(_SPACES)}{json.dumps(name, ensure_ascii=False)}{draw(_SPACES)}:{draw(_SPACES)}{value}{draw(_SPACES)}"
        for name, value in zip(names, values, strict=True)
    ]
    return f"{draw(_SPACES)}{{{','.join(pairs)}}}{draw(_SPACES)}"


_LINES = st.one_of(_objects(), _objects(), st.sampled_from(["{}", "", "[1]", "{", '{"to":1}x', '{"to":1} {"to":1}']))


def _read(path: Path) -> list[dict[str, str]] | str:
    """Return the rows, or the error."""
    try:
        return [row for lines in ndjson.read_json(path) for row in lines.columns.to_pylist()]
    except UsageError as error:
        return str(error)


def _assert_the_same(path: Path, lines: list[str]) -> None:
    """Assert that lines after a typical one give the same rows, or error, in bulk and one by one."""
    path.write_text("\n".join([_USUAL, *lines]), encoding="utf-8")
    in_bulk = _read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ndjson, "_BLOCK_BYTES", 100)
        assert in_bulk == _read(path), "in other blocks"
        patch.setattr(ndjson, "_MAX_BULK_MEMBERS", -1)
        assert in_bulk == _read(path)


@given(st.lists(_LINES, min_size=1, max_size=3))
def test_in_bulk_or_one_by_one(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    """Every invalid line is reported in the same form."""
    _assert_the_same(tmp_path_factory.mktemp("lines") / "a.ndjson", lines)


@pytest.mark.parametrize("value", _PLAIN + _ODD)
def test_each_value(tmp_path: Path, value: str) -> None:
    """In an otherwise typical line."""
    _assert_the_same(tmp_path / "a.ndjson", [_USUAL.replace("1.5", value, 1)])


def test_plain_lines_are_parsed_in_bulk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first line, and lines of another shape, are parsed one by one; numbers keep their digits."""
    parsed: list[int] = []
    one_by_one = ndjson._object
    monkeypatch.setattr(ndjson, "_object", lambda *where: parsed.append(where[1]) or one_by_one(*where))
    lines = ['{"to": "zoë", "amount": 1.50}', '{"amount": 2e0, "to": "b"}', '{"to": null, "amount": -0.0}']
    path = tmp_path / "a.ndjson"
    path.write_text("\n".join(lines), encoding="utf-8")
    found = _read(path)
    assert found == [
        {"to": "zoë", "amount": "1.50"},
        {"to": "b", "amount": "2e0"},
        {"to": "", "amount": "-0.0"},
    ]
    assert set(parsed) == {1, 2}


@pytest.mark.parametrize("first", ["{}", '{"to": []}', "\ufeff" + '{"to": "u"}'])
def test_an_unusual_first_line(tmp_path: Path, first: str) -> None:
    """Empty, without a plain value, with a byte order mark."""
    path = tmp_path / "a.ndjson"
    path.write_text(f'{first}\n{{"to": "v"}}\n{{}}', encoding="utf-8")
    rows = _read(path)
    assert [row["to"] for row in rows if isinstance(row, dict)][1:] == ["v", ""]


@pytest.mark.parametrize("row", ['{"to": "u", "to": "v"}', '{"to": {"id": 1, "id": 2}}', '{"to": [{"a": 1, "a": 1}]}'])
@pytest.mark.parametrize("before", ["", '{"to": "t"}\n'])
def test_a_member_that_is_there_twice_is_an_error(tmp_path: Path, before: str, row: str) -> None:
    """Readers differ in which of the two they take, so neither is taken silently."""
    path = tmp_path / "a.ndjson"
    path.write_text(before + row, encoding="utf-8")
    found = _read(path)
    number = 2 if before else 1
    assert isinstance(found, str)
    assert f"row {number} has the member" in found
    assert found.endswith("twice: remove one, since readers differ in which one counts")


def test_a_repeated_member_is_found_among_very_many(tmp_path: Path) -> None:
    """In the time that reading the row takes, and its name is shown in part if it is long."""
    path, name = tmp_path / "a.ndjson", "n" * 100_000
    members = ", ".join([*(f'"{number}": 1' for number in range(200_000)), f'"{name}": 1, "{name}": 2'])
    path.write_text(f'{{"to": "u", "in": {{{members}}}}}')
    found = _read(path)
    assert isinstance(found, str)
    assert f"row 1 has the member '{'n' * 100}' twice" in found
