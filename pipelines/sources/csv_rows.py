"""Exact CSV parsing into rows of text, in any dialect (`dialect.py`).

pyarrow parses blocks without quotes, Python's csv the others. Neither pyarrow nor DuckDB can be trusted with quotes:
pyarrow loses the LF of a quoted CR LF at the end of a block, and an unclosed quote swallows the rest of the file;
DuckDB drops the rows after an unclosed quote without an error, also in its strict mode (2.0.0). Blocks end with a
record. If its end is unclear, or a block is invalid, records are parsed one by one, which finds the row.
"""

import csv
import io
from codecs import BOM_UTF8
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import compute
from pyarrow import csv as bulk

from pipelines.boundary.text import amount
from pipelines.errors import UsageError
from pipelines.sources.bounds import CHUNK_ROWS, MAX_COLUMNS, MAX_NAME_BYTES, MAX_ROW_BYTES, mebibytes
from pipelines.sources.dialect import UNIT_SEPARATOR, Dialect, find_dialect
from pipelines.sources.options import ReadOptions
from pipelines.sources.streams import TextStream

pc: Any = compute  # its functions are generated at import, invisible to pyright
_BLOCK_BYTES = 2 * 1024 * 1024


def read_csv(path: Path, dialect: Dialect) -> Iterator[tuple[int, pa.Table]]:
    """Yield chunks of rows as string columns, with the number of their first row, from 1; skip empty lines.

    Raises UsageError naming row and line of the first row that differs in width from the header, has an unclosed
    quote, is longer than MAX_ROW_BYTES or is not in the encoding.
    """
    with TextStream(path, dialect.encoding) as stream:
        lines = _Lines(path, stream, dialect)
        records = _Records(path, lines, dialect)
        lines.skip(dialect.lines_above_header)
        header = dialect.columns or next(filter(None, records), None)
        if header is None:
            raise UsageError(f"{path}: it is empty: the first line must name the columns")
        records.header = _check_header(path, list(header))
        if not lines.refill():
            yield 1, _no_rows(records)  # so that it is checked
        while lines.refill():
            row = records.row
            for table in _rows_of_block(lines, records):
                yield row, _with_delimiters(table, dialect.delimiter)
                row += len(table)


def csv_dialect(path: Path, options: ReadOptions, extension: str, names: Collection[str]) -> Dialect:
    """Return the dialect of a file; `names` are the columns that its header must have."""
    with TextStream(path, options.encoding) as stream:
        return find_dialect(stream, options, extension, names)


def _with_delimiters(table: pa.Table, delimiter: str) -> pa.Table:
    """Return rows with the delimiters of several characters that are part of a quoted value."""
    if len(delimiter) == 1:
        return table
    columns = [pc.replace_substring(column, UNIT_SEPARATOR, delimiter) for column in table.columns]
    return pa.table(columns, table.column_names)


class _TooLongError(Exception):
    """A record is longer than MAX_ROW_BYTES."""


@dataclass(slots=True)
class _Lines:
    """Blocks of whole lines. A record that continues after its block reads the next one."""

    path: Path
    stream: TextStream
    dialect: Dialect
    block: bytes = b""
    """Whole lines, not split yet."""
    pending: deque[bytes] = field(default_factory=deque[bytes])
    """Split lines of the block."""
    rest: bytes = b""
    """The incomplete line after the block."""
    number: int = 0
    """Of the last line taken, from 1."""
    begin: int = 0
    """The first line of the current record."""
    record_bytes: int = 0
    """Of the current record."""

    @property
    def comment(self) -> bytes:
        """What begins a line that is not a row; empty if nothing does."""
        return (self.dialect.comment or "").encode()

    def skip(self, count: int) -> None:
        """Drop the next lines that are not comments."""
        for _ in range(count):
            self.record_bytes = 0
            next(iter(self), None)

    def refill(self) -> bool:
        """Read the next block if this one is used up; return whether there are more lines."""
        while not self.block and not self.pending:
            read = self.stream.read(_BLOCK_BYTES)
            self.block, self.rest = _whole_lines(read) if not self.rest else self._append(read)
            if not read:
                self.block, self.rest = self.block + self.rest, b""
            self.block = self._prepare(self.block)
            if not read:
                return bool(self.block)
        return True

    def take_block(self) -> bytes:
        """Return the remaining lines of the block, joined."""
        taken = b"".join([*self.pending, self.block])
        self.pending.clear()
        self.block = b""
        return taken

    def __iter__(self) -> Iterator[str]:
        """Yield the lines, decoded, with their line endings; where a record begins, without comments before it."""
        while self.refill():
            if not self.pending:
                self.pending.extend(self.block.splitlines(keepends=True))
                self.block = b""
            line = self.pending.popleft()
            self.number += 1
            if self.comment and not self.record_bytes and line.startswith(self.comment):
                continue
            self.begin = self.begin if self.record_bytes else self.number
            self.record_bytes += len(line)
            if self.record_bytes > MAX_ROW_BYTES:
                raise _TooLongError
            yield line.decode()

    def _prepare(self, block: bytes) -> bytes:
        """Return whole lines as they are parsed, with a delimiter of one character."""
        if len(self.dialect.delimiter) > 1:
            if UNIT_SEPARATOR.encode() in block:
                raise UsageError(f"{self.path}: it contains the character 0x1F, so a delimiter must be one character")
            block = block.replace(self.dialect.delimiter.encode(), UNIT_SEPARATOR.encode())
        return block

    def _append(self, read: bytes) -> tuple[bytes, bytes]:
        if len(self.rest) > MAX_ROW_BYTES:
            raise UsageError(f"{self.path}: a line after line {self.number:,} {_too_long()}")
        return _whole_lines(self.rest + read)


@dataclass(slots=True)
class _Records:
    """Records, parsed one by one by Python's csv."""

    path: Path
    lines: _Lines
    dialect: Dialect
    header: Sequence[str] = ()
    row: int = 1
    """Number of the next row."""
    reader: Any = None

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        if self.reader is None:
            csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_ROW_BYTES))
            self.reader = self.dialect.parse(iter(self.lines))
        self.lines.record_bytes = 0
        try:
            record = next(self.reader)
        except UnicodeDecodeError:
            raise UsageError(
                f"{self._place()}: is not UTF-8: give --encoding, such as cp1252 (Western European)"
            ) from None
        except _TooLongError:
            problem = f"{_too_long()}, or it has an unclosed quote"
            raise UsageError(f"{self._place()}: {problem}") from None
        except csv.Error as error:
            raise UsageError(f"{self._place()}: {_describe(error, self.dialect)}") from None
        if record and self.header and len(record) != len(self.header):
            raise UsageError(f"{self._place()}: {_ragged(record, self.header)}")
        self.row += 1 if record and self.header else 0
        return record

    def _place(self) -> str:
        line = self.lines.begin
        row = f"row {self.row} (line {line})" if self.header else f"the header (line {line})"
        return f"{self.path}: {row}"


def _rows_of_block(lines: _Lines, records: _Records) -> Iterator[pa.Table]:
    """Yield the remaining rows of a block; if its last record continues, include the lines up to its end."""
    whole = lines.take_block()
    escape = (records.dialect.escape or "").encode()
    is_quoted = bool(records.dialect.quote) and records.dialect.quote.encode() in whole
    if (escape and escape in whole) or (is_quoted and _may_have_comments(whole, lines.comment)):
        found = None
    elif is_quoted:
        end = _record_end(whole, records.dialect.quote.encode())
        whole, lines.block = (whole[:end], whole[end:]) if end else (whole, b"")
        found = _parse_quoted(whole, records) if end else None
    else:
        found = _parse_unquoted(whole, records)
    if found is not None:
        table, line_count = found
        lines.number += line_count
        records.row += len(table)
        yield table
        return
    last = lines.number + len(split := whole.splitlines(keepends=True))
    lines.pending.extend(split)
    while lines.number < last:
        yield from _parse_one_by_one(lines, records, last)


def _may_have_comments(whole: bytes, comment: bytes) -> bool:
    """Return whether a line begins like a comment, which within a quoted value it is not."""
    return bool(comment) and (whole.startswith(comment) or any(end + comment in whole for end in (b"\n", b"\r")))


def _record_end(whole: bytes, quote: bytes) -> int:
    """Return the end of the last line up to which quotes are balanced: a record ends there, if quoting is valid."""
    end, quotes = len(whole), whole.count(quote)
    while end and quotes % 2:
        start = max(whole.rfind(b"\n", 0, end - 1), whole.rfind(b"\r", 0, end - 1)) + 1
        quotes -= whole.count(quote, start, end)
        end = start
    return end


def _parse_quoted(whole: bytes, records: _Records) -> tuple[pa.Table, int] | None:
    """Return rows and their number of lines; None if one is invalid or continues after the block."""
    try:
        reader: Any = records.dialect.parse(io.StringIO(whole.decode(), newline=""))
        rows = [row for row in reader if row]
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    except ValueError:
        return None
    except csv.Error:
        return None
    if (rows and len(columns) != len(records.header)) or _is_too_long(whole):
        return None
    return (pa.table(columns, list(records.header)) if rows else _no_rows(records)), reader.line_num


def _no_rows(records: _Records) -> pa.Table:
    return pa.schema([(name, pa.string()) for name in records.header]).empty_table()


def _parse_unquoted(whole: bytes, records: _Records) -> tuple[pa.Table, int] | None:
    """Return rows without quotes and their number of lines; None if one is invalid."""
    names, line_count = list(records.header), whole.count(b"\n") or whole.count(b"\r")
    if _may_have_comments(whole, records.lines.comment):
        lines = whole.splitlines(keepends=True)
        whole = b"".join(line for line in lines if not line.startswith(records.lines.comment))
    if not whole:
        return _no_rows(records), line_count
    # The reader drops a byte order mark, which within a file is part of a cell.
    data = BOM_UTF8 + whole if whole.startswith(BOM_UTF8) else whole
    try:
        table = bulk.read_csv(
            pa.BufferReader(data),
            bulk.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
            bulk.ParseOptions(delimiter=_one_character(records.dialect), quote_char=False),
            bulk.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    if _is_too_long(whole):
        return None
    if records.dialect.strips_spaces:
        table = pa.table([pc.ascii_ltrim(column, " ") for column in table.columns], names)
    return table, line_count


def _one_character(dialect: Dialect) -> str:
    return dialect.delimiter if len(dialect.delimiter) == 1 else UNIT_SEPARATOR


def _is_too_long(whole: bytes) -> bool:
    """Return whether a line is longer than MAX_ROW_BYTES."""
    return len(whole) > MAX_ROW_BYTES and max(map(len, whole.splitlines())) > MAX_ROW_BYTES


def _parse_one_by_one(lines: _Lines, records: _Records, last: int) -> Iterator[pa.Table]:
    rows: list[list[str]] = []
    while lines.number < last and len(rows) < CHUNK_ROWS:
        record = next(records, None)
        if record:
            rows.append(record)
    if rows:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        yield pa.table(columns, list(records.header))


def _whole_lines(text: bytes) -> tuple[bytes, bytes]:
    """Split a text into its whole lines and the rest; a CR at the end may be half of a CR LF."""
    end = max(text.rfind(b"\n"), text.rfind(b"\r", 0, -1)) + 1
    return text[:end], text[end:]


def _check_header(path: Path, header: list[str]) -> list[str]:
    if len(header) > MAX_COLUMNS:
        raise UsageError(f"{path}: has {len(header):,} columns; at most {MAX_COLUMNS:,} are read: remove some")
    for name, count in Counter(header).items():
        if count > 1:
            hint = " (the first line must name the columns: remove a title above it)" if not name.strip() else ""
            raise UsageError(f"{path}: several columns are named {name!r}: rename one{hint}")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UsageError(f"{path}: a column's name is longer than {MAX_NAME_BYTES:,} bytes: {name[:80]!r}...")
    return header


def _ragged(record: Sequence[str], header: Sequence[str]) -> str:
    problem = f"has {amount(len(record), 'value')}, and the header names {amount(len(header), 'column')}"
    if len(header) == 1:
        return f"{problem}: give --delimiter, or remove the lines above the header"
    if len(record) < len(header):
        return f"{problem}: write an empty value for each that is missing"
    return f"{problem}: quote a value that has the delimiter in it, or name all columns"


def _describe(error: csv.Error, dialect: Dialect) -> str:
    quote = dialect.quote
    if "unexpected end" in str(error):
        return f"it has an unclosed quote: close it, or double it within a value; --quote '' reads {quote} as text"
    return (
        f"a value continues after its closing quote: double quotes within a quoted value, {quote * 2} (not \\{quote}, "
        f"unless you give --escape '\\'); a quoted value ends at the delimiter; --quote '' reads {quote} as text"
    )


def _too_long() -> str:
    return f"is longer than {mebibytes(MAX_ROW_BYTES)}, the limit for a row"
