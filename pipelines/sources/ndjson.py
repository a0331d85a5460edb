"""JSON parsing into columns of text: one object a line, an array, or objects over several lines.

DuckDB finds the objects of an array. Their values are not read by DuckDB, polars or pyarrow, since all three round
numbers (1.10 becomes 1.1): here they keep their digits as written.

Lines with the members of the first line, in the same order and with plain values, are parsed in bulk
(`ndjson_scan.py`). Every other line goes through Python's parser, which gives the same result.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.boundary.database import connect
from pipelines.boundary.toml import abbreviate
from pipelines.errors import UsageError
from pipelines.sources.bounds import CHUNK_BYTES, CHUNK_ROWS, MAX_COLUMNS, MAX_NAME_BYTES, MAX_ROW_BYTES, mebibytes
from pipelines.sources.ndjson_scan import scan_lines
from pipelines.sources.nested import UnclearError, parse_json, to_json
from pipelines.sources.streams import TextStream, spooled

pc: Any = compute  # its functions are generated at import, invisible to pyright
_BLOCK_BYTES = 8 * 1024 * 1024
_CELL_BYTES = 8
_TOO_LONG = f"is longer than {mebibytes(MAX_ROW_BYTES)}, the limit for an object"
_CONVERT = (
    "python -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(row))) for row in sys.stdin]' "
    "< IN > OUT.ndjson"
)
_IN_ARRAY = """
SELECT json
FROM read_json_objects($path, format = 'auto', compression = 'none', maximum_object_size = $most)
"""
_MAX_BULK_MEMBERS = 50
"""Members of a line that is parsed in bulk: the places of all values of a block are in memory."""


_Texts = Callable[[], Iterator[tuple[pa.Array, pa.Array]]]
"""Yields batches of row numbers and objects, from the start each time."""


@dataclass(frozen=True, slots=True)
class Lines:
    """A chunk of objects as string columns without nulls."""

    columns: pa.Table
    numbers: pa.Array
    """Of the objects in the file, from 1; blank lines do not count."""
    problems: dict[int, str]
    """By index in the chunk, the problem of an invalid value in an id column."""


def read_json(path: Path, encoding: str | None = None, ids: Collection[str] = ()) -> Iterator[Lines]:
    """Yield chunks of objects. `ids` are the members that hold ids.

    A missing value or null becomes an empty string, a value that is not text becomes its JSON. The file is read twice:
    objects may have different members, and every chunk has all columns. Raises UsageError for the first row that is
    not an object, and for a file that exceeds a limit of `bounds.py`.
    """
    with TextStream(path, encoding) as stream:
        is_array = _is_array(stream.sample)

    def texts() -> Iterator[tuple[pa.Array, pa.Array]]:
        return _in_array(path, encoding) if is_array else _lines(path, encoding)

    yield from _read(path, texts, ids)


def _is_array(sample: bytes) -> bool:
    """Return whether objects are not one a line: an array, or an object that goes on in the next line."""
    first, *more = sample.lstrip().split(b"\n", 1)
    return first.startswith(b"[") or (bool(more) and first.strip() == b"{")


def _read(path: Path, texts: _Texts, ids: Collection[str]) -> Iterator[Lines]:
    first = next(texts(), None)
    if first is None:
        return
    members = list(_object(path, first[0][0].as_py(), first[1][0].as_py()))
    usual = members if len(members) <= _MAX_BULK_MEMBERS else []
    names = dict.fromkeys(members)
    for numbers, lines in texts():
        is_odd = scan_lines(lines, usual).is_odd
        for place, row in _objects(path, numbers, lines, pa.array(is_odd)):
            names |= dict.fromkeys(row)
            _check_names(path, place, names, row)
    _check_names(path, first[0][0].as_py(), names, members)
    max_lines = max(1, CHUNK_BYTES // (len(names) * _CELL_BYTES + sum(map(len, names)) + 1))
    for numbers, lines in texts():
        for start in range(0, len(lines), max_lines):
            part = numbers.slice(start, max_lines), lines.slice(start, max_lines)
            yield _columns(path, *part, usual, names, ids)


def _columns(
    path: Path, numbers: pa.Array, lines: pa.Array, usual: Sequence[str], names: Iterable[str], ids: Collection[str]
) -> Lines:
    """Return lines as columns; those with the members `usual` are parsed in bulk."""
    found = scan_lines(lines, usual)
    is_odd = pa.array(found.is_odd)
    odd = [row for _, row in _objects(path, numbers, lines, is_odd)]
    places = np.flatnonzero(found.is_odd).tolist()
    columns: list[pa.Array] = []
    problems: dict[int, str] = {}
    for name in names:
        member = usual.index(name) if name in usual else None
        plain = pa.repeat("", len(lines)) if member is None else found.text(member)
        values = [row.get(name, "") for row in odd]
        columns.append(pc.replace_with_mask(plain, is_odd, pa.array(values, pa.string())) if odd else plain)
        if name in ids:
            wrong = [place for place, value in zip(places, values, strict=True) if isinstance(value, NonText)]
            booleans = [] if member is None else np.flatnonzero(found.is_boolean(member)).tolist()
            problem = f"column {name!r}: an object, an array or a boolean is not an id"
            problems |= dict.fromkeys([*booleans, *wrong], problem)
    return Lines(pa.table(columns, [*names]), numbers, problems)


def _check_names(path: Path, row_number: int, names: Collection[str], row: Iterable[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise UsageError(
            f"{path}: up to row {row_number}, objects have {len(names):,} members; at most {MAX_COLUMNS:,} are read: "
            "put what differs from row to row into one member, as an object"
        )
    if long := next((name for name in row if len(name.encode()) > MAX_NAME_BYTES), None):
        raise UsageError(
            f"{path}: row {row_number} has a member with a name of over {MAX_NAME_BYTES:,} bytes: {long[:80]}..."
        )


def _lines(path: Path, encoding: str | None) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield batches of non-blank lines with their numbers, from 1; Python is slow with single lines."""
    number = 1
    for block in _blocks(path, encoding):
        lines = pc.split_pattern(pa.array([block], pa.large_binary()).cast(pa.large_string()), "\n")
        lines = lines.flatten().cast(pa.string())
        is_blank = pc.equal(pc.binary_length(pc.ascii_trim_whitespace(lines)), 0)
        if pc.any(is_blank).as_py():
            lines = lines.filter(pc.invert(is_blank))
        numbers = pa.array(np.arange(number, number + len(lines)))
        number += len(lines)
        _check_lengths(path, numbers, lines)
        for start in range(0, len(lines), CHUNK_ROWS):
            yield numbers.slice(start, CHUNK_ROWS), lines.slice(start, CHUNK_ROWS)


def _blocks(path: Path, encoding: str | None) -> Iterator[bytes]:
    """Yield blocks of whole lines, without the last line ending."""
    number, rest = 1, b""
    with TextStream(path, encoding) as stream:
        while block := stream.read(_BLOCK_BYTES):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield whole
                number += whole.count(b"\n") + 1
            elif len(rest) > MAX_ROW_BYTES:
                raise UsageError(f"{path}: line {number} {_TOO_LONG}")
    if rest:
        yield rest


def _in_array(path: Path, encoding: str | None) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield batches of the objects in an array, or over several lines, with their numbers, from 1."""
    with spooled(path, encoding) as plain, connect(threads=1, memory_limit="160MB") as connection:
        number = 1
        try:
            found = connection.sql(_IN_ARRAY, params={"path": str(plain), "most": MAX_ROW_BYTES})
            for batch in found.to_arrow_reader(CHUNK_ROWS // 16):
                objects = batch.column(0).cast(pa.string())
                numbers = pa.array(np.arange(number, number + len(objects)))
                _check_lengths(path, numbers, objects)
                yield numbers, objects
                number += len(objects)
        except (duckdb.Error, OSError) as error:
            problem = str(error).split("\n")[0].replace(f'in file "{plain}", ', "")
            raise UsageError(f"{path}: after row {number - 1:,}: {problem}") from None


def _check_lengths(path: Path, numbers: pa.Array, lines: pa.Array) -> None:
    too_long = pc.indices_nonzero(pc.greater(pc.binary_length(lines), MAX_ROW_BYTES))
    if len(too_long):
        raise UsageError(f"{path}: row {numbers[too_long[0].as_py()]} {_TOO_LONG}")


def _objects(path: Path, numbers: pa.Array, lines: pa.Array, mask: Any) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the texts selected by `mask` as objects, with their numbers."""
    for place in pc.indices_nonzero(mask).to_pylist():
        number = numbers[place].as_py()
        yield number, _object(path, number, lines[place].as_py())


def _members(line: str) -> Iterable[tuple[str, Any]]:
    """Return the members of an object. Raises ValueError like `parse_json`, and for another value."""
    values = parse_json(line)
    if not isinstance(values, dict):
        raise ValueError(f"it is another value, {abbreviate(line.strip())}")  # noqa: TRY004 - of the file, not of a call
    return values.items()


def _object(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        row = {name: _json_text(value) for name, value in _members(line)}
        "".join([*row, *row.values()]).encode()  # raises for a lone surrogate
    except UnclearError as error:
        raise UsageError(f"{path}: row {number} {error}") from None
    except ValueError as error:
        raise UsageError(f"{path}: row {number} is not one JSON object in UTF-8: {_remedy(line, error)}") from None
    return row


def _remedy(line: str, error: Exception) -> str:
    """Return the remedy for a common mistake, else the parser's message."""
    if line.startswith("\x1e"):
        return "it is a JSON text sequence (RFC 7464): remove its separators, tr -d '\\036' < IN > OUT.ndjson"
    if line.lstrip().startswith(("//", "#")):
        return "it is a comment, which JSON lacks: remove those lines, grep -vE '^[[:space:]]*(//|#)' IN > OUT.ndjson"
    if line.lstrip().startswith("{'"):
        return "it is a Python dict: write it with json.dumps, or convert the file: " + _CONVERT
    if line.lstrip().startswith("{"):
        return f"{error}; an object on several lines: put each on one, jq -c . IN > OUT.ndjson"
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
            return NonText(to_json(value))
