"""Exact CSV parsing into rows of text: RFC 4180 in UTF-8, quotes doubled within quotes.

pyarrow parses blocks without quotes, Python's csv the others: pyarrow loses the LF of a quoted CR LF at the end of a
block, and an unclosed quote swallows the rest of the file. Blocks end with a record. If the end of a record is unclear,
or a block is invalid, records are parsed one by one, which finds the row.
"""

import csv
import io
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as bulk

from pipelines.errors import UsageError
from pipelines.sources.bounds import CHUNK_ROWS, MAX_COLUMNS, MAX_NAME_BYTES, MAX_ROW_BYTES, mebibytes

_BLOCK_BYTES = 2 * 1024 * 1024
SEPARATORS = {";": "';'", "\t": "tab", "|": "'|'"}
"""Delimiters other than the comma, and how to write them on the command line."""


def read_csv(path: Path, delimiter: str) -> Iterator[tuple[int, pa.Table]]:
    """Yield chunks of rows as string columns, with the number of their first row, from 1; skip empty lines.

    Raises UsageError naming row and line of the first row that differs in width from the header, has an unclosed
    quote, is longer than MAX_ROW_BYTES or is not UTF-8.
    """
    with pa.input_stream(str(path)) as stream:
        lines = _Lines(path, stream)
        records = _Records(path, lines, delimiter)
        header = next(filter(None, records), None)
        if header is None:
            raise UsageError(f"{path}: Empty CSV file: the first line must name the columns")
        records.header = _check_header(path, header)
        while lines.refill():
            row = records.row
            for table in _rows_of_block(lines, records):
                yield row, table
                row += len(table)


class _TooLongError(Exception):
    """A record is longer than MAX_ROW_BYTES."""


@dataclass(slots=True)
class _Lines:
    """Blocks of whole lines. A record that continues after its block reads the next one."""

    path: Path
    stream: Any
    block: bytes = b""
    """Whole lines, not split yet."""
    pending: deque[bytes] = field(default_factory=deque[bytes])
    """Split lines of the block."""
    rest: bytes = b""
    """The incomplete line after the block."""
    number: int = 0
    """Of the last line taken, from 1."""
    record_bytes: int = 0
    """Of the current record."""
    is_first: bool = True

    def refill(self) -> bool:
        """Read the next block if this one is used up; return whether there are more lines."""
        while not self.block and not self.pending:
            read = self.stream.read(_BLOCK_BYTES)
            self.block, self.rest = _whole_lines(self._strip_bom(read)) if not self.rest else self._append(read)
            if not read:
                self.block, self.rest = self.block + self.rest, b""
                return bool(self.block)
        return True

    def take_block(self) -> bytes:
        """Return the remaining lines of the block, joined."""
        taken = b"".join([*self.pending, self.block])
        self.pending.clear()
        self.block = b""
        return taken

    def __iter__(self) -> Iterator[str]:
        """Yield the lines, decoded, with their line endings."""
        while self.refill():
            if not self.pending:
                self.pending.extend(self.block.splitlines(keepends=True))
                self.block = b""
            line = self.pending.popleft()
            self.number += 1
            self.record_bytes += len(line)
            if self.record_bytes > MAX_ROW_BYTES:
                raise _TooLongError
            yield line.decode()

    def _strip_bom(self, read: bytes) -> bytes:
        if self.is_first and read.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            raise UsageError(f"{self.path}: is UTF-16: save it as UTF-8, or run iconv -f UTF-16 -t UTF-8")
        stripped = read.removeprefix(BOM_UTF8) if self.is_first else read
        self.is_first = False
        return stripped

    def _append(self, read: bytes) -> tuple[bytes, bytes]:
        if len(self.rest) > MAX_ROW_BYTES:
            raise UsageError(f"{self.path}: a line after line {self.number:,} {_too_long()}")
        return _whole_lines(self.rest + read)


@dataclass(slots=True)
class _Records:
    """Records, parsed one by one by Python's csv."""

    path: Path
    lines: _Lines
    delimiter: str
    header: Sequence[str] = ()
    row: int = 1
    """Number of the next row."""
    reader: Any = None

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        if self.reader is None:
            csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_ROW_BYTES))
            self.reader = csv.reader(iter(self.lines), delimiter=self.delimiter, strict=True)
        line, self.lines.record_bytes = self.lines.number + 1, 0
        try:
            record = next(self.reader)
        except UnicodeDecodeError:
            raise UsageError(f"{self._place(line)}: is not UTF-8: save the file as UTF-8, or run iconv on it") from None
        except _TooLongError:
            problem = f"{_too_long()}, or it has an unclosed quote"
            raise UsageError(f"{self._place(line)}: {problem}") from None
        except csv.Error as error:
            raise UsageError(f"{self._place(line)}: {_describe(error)}") from None
        if record and self.header and len(record) != len(self.header):
            raise UsageError(f"{self._place(line)}: {_ragged(record, self.header)}")
        self.row += 1 if record and self.header else 0
        return record

    def _place(self, line: int) -> str:
        row = f"row {self.row} (line {line})" if self.header else f"the header (line {line})"
        return f"{self.path}: {row}"


def _rows_of_block(lines: _Lines, records: _Records) -> Iterator[pa.Table]:
    """Yield the remaining rows of a block; if its last record continues, include the lines up to its end."""
    whole = lines.take_block()
    if b'"' in whole:
        end = _record_end(whole)
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


def _record_end(whole: bytes) -> int:
    """Return the end of the last line up to which quotes are balanced: a record ends there, if quoting is valid."""
    end, quotes = len(whole), whole.count(b'"')
    while end and quotes % 2:
        start = max(whole.rfind(b"\n", 0, end - 1), whole.rfind(b"\r", 0, end - 1)) + 1
        quotes -= whole.count(b'"', start, end)
        end = start
    return end


def _parse_quoted(whole: bytes, records: _Records) -> tuple[pa.Table, int] | None:
    """Return rows and their number of lines; None if one is invalid or continues after the block."""
    try:
        reader = csv.reader(io.StringIO(whole.decode(), newline=""), delimiter=records.delimiter, strict=True)
        rows = [row for row in reader if row]
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    except ValueError:
        return None
    except csv.Error:
        return None
    if (rows and len(columns) != len(records.header)) or _is_too_long(whole):
        return None
    names = list(records.header)
    empty = pa.schema([(name, pa.string()) for name in names]).empty_table()
    return (pa.table(columns, names) if rows else empty), reader.line_num


def _parse_unquoted(whole: bytes, records: _Records) -> tuple[pa.Table, int] | None:
    """Return rows without quotes and their number of lines; None if one is invalid."""
    names = list(records.header)
    # The reader drops a byte order mark, which within a file is part of a cell.
    data = BOM_UTF8 + whole if whole.startswith(BOM_UTF8) else whole
    try:
        table = bulk.read_csv(
            pa.BufferReader(data),
            bulk.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
            bulk.ParseOptions(delimiter=records.delimiter, quote_char=False),
            bulk.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    return None if _is_too_long(whole) else (table, whole.count(b"\n") or whole.count(b"\r"))


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
    problem = f"has {len(record)} values, and the header names {len(header)} columns"
    if header[0].startswith("#"):
        return f"{problem}: remove the comments above the header (grep -v '^#')"
    if header[0].startswith("sep="):
        return f"{problem}: remove the line above the header (tail -n +2)"
    other = next((character for character in SEPARATORS if len(header) == 1 and character in header[0]), None)
    return f"{problem}: give --delimiter {SEPARATORS[other]}" if other else problem


def _describe(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "it has an unclosed quote: close it, or double it if it is part of a value"
    return (
        'a value continues after its closing quote: double quotes within a quoted value, "" (not \\"); '
        "a quoted value ends at the delimiter"
    )


def _too_long() -> str:
    return f"is longer than {mebibytes(MAX_ROW_BYTES)}, the limit for a row"
