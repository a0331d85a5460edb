"""NDJSON parsing into columns of text; numbers keep their digits as written.

Lines with the members of the first line, in the same order and with plain values, are parsed in bulk by a regular
expression that accepts no other line. Every other line goes through Python's parser, which gives the same result.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.errors import UsageError
from pipelines.sources.bounds import CHUNK_BYTES, CHUNK_ROWS, MAX_COLUMNS, MAX_NAME_BYTES, MAX_ROW_BYTES, mebibytes

pc: Any = compute  # its functions are generated at import, invisible to pyright
_BLOCK_BYTES = 8 * 1024 * 1024
_CELL_BYTES = 8
_TOO_LONG = f"is longer than {mebibytes(MAX_ROW_BYTES)}, the limit for a line"
_MAX_BULK_MEMBERS = 50
"""Members of a line that is parsed in bulk: with more, the regular expression is slower."""
_NEVER_MATCHES = "(?P<none>a^)"
_SPACE = r"[ \t\r\n]*"
_PLAIN_VALUE = r'"[^"\\\x00-\x1f]*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null'


@dataclass(frozen=True, slots=True)
class Lines:
    """A chunk of lines as string columns without nulls."""

    columns: pa.Table
    numbers: pa.Array
    """Line numbers in the file, from 1."""
    problems: dict[int, str]
    """By index in the chunk, the problem of an invalid value in an id column."""


def read_ndjson(path: Path, ids: Collection[str] = ()) -> Iterator[Lines]:
    """Yield chunks of lines, skipping blank ones. `ids` are the members that hold ids.

    A missing value or null becomes an empty string, a value that is not text becomes its JSON. The file is read twice:
    objects may have different members, and every chunk has all columns. Raises UsageError for the first line that is
    not an object, and for a file that exceeds a limit of `bounds.py`.
    """
    first = next(_lines(path), None)
    if first is None:
        return
    members = list(_object(path, first[0][0].as_py(), first[1][0].as_py()))
    pattern = _pattern(members)
    names = dict.fromkeys(members)
    for numbers, lines in _lines(path):
        is_odd = pc.invert(pc.match_substring_regex(lines, pattern))
        for place, row in _objects(path, numbers, lines, is_odd):
            names |= dict.fromkeys(row)
            _check_names(path, place, names, row)
    _check_names(path, first[0][0].as_py(), names, members)
    max_lines = max(1, CHUNK_BYTES // (len(names) * _CELL_BYTES + sum(map(len, names)) + 1))
    for numbers, lines in _lines(path):
        for start in range(0, len(lines), max_lines):
            part = numbers.slice(start, max_lines), lines.slice(start, max_lines)
            yield _columns(path, *part, pattern, members, names, ids)


def _columns(
    path: Path,
    numbers: pa.Array,
    lines: pa.Array,
    pattern: str,
    members: Sequence[str],
    names: Iterable[str],
    ids: Collection[str],
) -> Lines:
    parts = pc.extract_regex(lines, pattern)  # null for lines of another shape
    is_odd = pc.is_null(parts)
    odd = [row for _, row in _objects(path, numbers, lines, is_odd)]
    places = pc.indices_nonzero(is_odd).to_pylist()
    written = {name: parts.field(f"v{n}") for n, name in enumerate(members) if f"v{n}" in parts.type.names}
    columns: list[pa.Array] = []
    problems: dict[int, str] = {}
    for name in names:
        values = pa.array([row.get(name, "") for row in odd], pa.string())
        plain = _text(written[name]) if name in written else pa.repeat("", len(lines))
        columns.append(pc.replace_with_mask(plain, is_odd, values))
        if name in ids:
            flags = pc.is_in(written[name], pa.array(["true", "false"])) if name in written else pa.array([False])
            wrong = [place for place, row in zip(places, odd, strict=True) if isinstance(row.get(name), NonText)]
            problem = f"column {name!r}: an object, an array or a boolean is not an id"
            problems |= dict.fromkeys([*pc.indices_nonzero(flags).to_pylist(), *wrong], problem)
    return Lines(pa.table(columns, [*names]), numbers, problems)


def _check_names(path: Path, line: int, names: Collection[str], row: Iterable[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise UsageError(
            f"{path}: up to line {line}, objects have {len(names):,} members; at most {MAX_COLUMNS:,} are read: "
            "put what differs from line to line into one member, as an object"
        )
    if long := next((name for name in row if len(name.encode()) > MAX_NAME_BYTES), None):
        raise UsageError(
            f"{path}: line {line} has a member with a name of over {MAX_NAME_BYTES:,} bytes: {long[:80]}..."
        )


def _pattern(members: Sequence[str]) -> str:
    """Return a regular expression for a line with these members; group v{n} is the n-th value as written."""
    if len(members) > _MAX_BULK_MEMBERS or sum(map(len, members)) > _MAX_BULK_MEMBERS * 100:
        return _NEVER_MATCHES
    pairs = (
        f"{re.escape(json.dumps(name, ensure_ascii=False))}{_SPACE}:{_SPACE}(?P<v{n}>{_PLAIN_VALUE})"
        for n, name in enumerate(members)
    )
    return rf"^(?P<open>{_SPACE}\{{){_SPACE}{f'{_SPACE},{_SPACE}'.join(pairs)}{_SPACE}\}}{_SPACE}$"


def _text(written: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(written, "null"), "", pc.ascii_trim(written, '"'))


def _lines(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield batches of non-blank lines with their numbers, from 1; Python is slow with single lines."""
    number = 1
    for block in _blocks(path):
        lines = (
            pc.split_pattern(pa.array([block], pa.large_binary()).cast(pa.large_string()), "\n")
            .flatten()
            .cast(pa.string())
        )
        numbers = pa.array(np.arange(number, number + len(lines)))
        number += len(lines)
        is_blank = pc.equal(pc.binary_length(pc.ascii_trim_whitespace(lines)), 0)
        if pc.any(is_blank).as_py():
            lines, numbers = lines.filter(pc.invert(is_blank)), numbers.filter(pc.invert(is_blank))
        _check_lengths(path, numbers, lines)
        for start in range(0, len(lines), CHUNK_ROWS):
            yield numbers.slice(start, CHUNK_ROWS), lines.slice(start, CHUNK_ROWS)


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield blocks of whole lines, without the last line ending."""
    number, rest = 1, b""
    with pa.input_stream(str(path)) as stream:
        start = stream.read(len(BOM_UTF8)).removeprefix(BOM_UTF8)
        while block := start + stream.read(_BLOCK_BYTES):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            start = b""
            if newline:
                yield whole
                number += whole.count(b"\n") + 1
            elif len(rest) > MAX_ROW_BYTES:
                raise UsageError(f"{path}: line {number} {_TOO_LONG}")
    if rest:
        yield rest


def _check_lengths(path: Path, numbers: pa.Array, lines: pa.Array) -> None:
    too_long = pc.indices_nonzero(pc.greater(pc.binary_length(lines), MAX_ROW_BYTES))
    if len(too_long):
        raise UsageError(f"{path}: line {numbers[too_long[0].as_py()]} {_TOO_LONG}")


def _objects(path: Path, numbers: pa.Array, lines: pa.Array, mask: Any) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the lines selected by `mask` as objects, with their numbers."""
    for place in pc.indices_nonzero(mask).to_pylist():
        number = numbers[place].as_py()
        yield number, _object(path, number, lines[place].as_py())


def _object(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        values = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        row = {name: _json_text(value) for name, value in values.items()}
        "".join([*row, *row.values()]).encode()  # raises for a lone surrogate
    except RecursionError:
        raise UsageError(f"{path}: line {number} is nested too deeply: flatten it") from None
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}: line {number} is not one JSON object in UTF-8: {_remedy(line, error)}") from None
    return row


def _remedy(line: str, error: Exception) -> str:
    """Return the remedy for a common mistake, else the parser's message."""
    if line.lstrip().startswith("["):
        return "it starts an array; write one object per line: jq -c '.[]' array.json > lines.ndjson"
    if line.lstrip().startswith("{'"):
        return "it is a Python dict; write it with json.dumps"
    if line.strip() == "{":
        return "an object spans several lines; write one per line: jq -c . objects.json > lines.ndjson"
    return str(error)


class NonText(str):
    """The JSON of a value that cannot be an id: an object, an array or a boolean."""

    __slots__ = ()


def _json_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return NonText("true" if value else "false")
        case _:
            return NonText(json.dumps(value, sort_keys=True, ensure_ascii=False))
