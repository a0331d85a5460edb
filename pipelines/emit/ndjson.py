"""Lines of NDJSON to columns of text; numbers keep the digits that they are written with.

Lines that have the members of the first line, in its order and with plain values, are taken apart in bulk by a regular
expression that accepts no other line. Every other line goes through Python's parser, which says the same about those.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import compute

from pipelines.errors import UsageError

pc: Any = compute  # its functions are made at import, where pyright does not see them
_BLOCK_BYTES = 8 * 1024 * 1024
_MOST_MEMBERS = 50
"""Of a line that is taken apart in bulk: with more of them the expression is the slower way."""
_NO_LINE = "(?P<none>a^)"
_SPACE = r"[ \t\r\n]*"
_PLAIN = r'"[^"\\\x00-\x1f]*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null'


def read_ndjson(path: Path) -> Iterator[tuple[int, pa.Table]]:
    """Yield chunks of lines as columns of strings without nulls, with the number of their first line.

    A value that is missing or null is an empty text, one that is no text its JSON. The file is read twice: objects need
    not have the same members, and a chunk has every column. Raises UsageError for the first line that is no object.
    """
    first = next(_lines(path), None)
    if first is None:
        return
    members = list(_object(path, 1, first[1][0].as_py()))
    pattern = _pattern(members)
    names = dict.fromkeys(members)
    for number, lines in _lines(path):
        is_odd = pc.invert(pc.match_substring_regex(lines, pattern))
        names |= dict.fromkeys(name for row in _objects(path, number, lines, is_odd) for name in row)
    for number, lines in _lines(path):
        parts = pc.extract_regex(lines, pattern)  # null where a line is another
        is_odd = pc.is_null(parts)
        odd = _objects(path, number, lines, is_odd)
        plain = {name: _text(parts.field(f"v{n}")) for n, name in enumerate(members) if f"v{n}" in parts.type.names}
        columns: list[pa.Array] = []
        for name in names:
            values = pa.array([row.get(name, "") for row in odd], pa.string())
            columns.append(pc.replace_with_mask(plain.get(name, pa.repeat("", len(lines))), is_odd, values))
        yield number, pa.table(columns, [*names])


def _pattern(members: Sequence[str]) -> str:
    """Return an expression for a whole line with these members; its group v{n} is the value of the n-th as written."""
    if len(members) > _MOST_MEMBERS:
        return _NO_LINE
    pairs = (
        f"{re.escape(json.dumps(name, ensure_ascii=False))}{_SPACE}:{_SPACE}(?P<v{n}>{_PLAIN})"
        for n, name in enumerate(members)
    )
    return rf"^(?P<open>{_SPACE}\{{){_SPACE}{f'{_SPACE},{_SPACE}'.join(pairs)}{_SPACE}\}}{_SPACE}$"


def _text(written: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(written, "null"), "", pc.ascii_trim(written, '"'))


def _lines(path: Path) -> Iterator[tuple[int, pa.Array]]:
    """Yield blocks of lines, each with the number of its first line; Python is slow with single ones."""
    number, rest = 1, b""
    with pa.input_stream(str(path)) as stream:
        while block := stream.read(_BLOCK_BYTES):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                lines = _split(whole, is_first=number == 1)
                yield number, lines
                number += len(lines)
    if rest:
        yield number, _split(rest, is_first=number == 1)


def _split(whole: bytes, *, is_first: bool) -> pa.Array:
    text = pa.array([whole.removeprefix(BOM_UTF8) if is_first else whole]).cast(pa.string())
    return pc.split_pattern(text, "\n").flatten()


def _objects(path: Path, number: int, lines: pa.Array, chosen: Any) -> list[dict[str, str]]:
    """Return the chosen lines of a chunk as objects."""
    places: Iterable[int] = pc.indices_nonzero(chosen).to_pylist()
    return [_object(path, number + place, lines[place].as_py()) for place in places]


def _object(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        values = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        row = {name: _json_text(value) for name, value in values.items()}
        "".join([*row, *row.values()]).encode()  # an escaped half of a surrogate pair is no text
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: line {number} is not one JSON object in UTF-8: {error}") from None
    return row


def _json_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case _:
            return json.dumps(value, sort_keys=True, ensure_ascii=False)
