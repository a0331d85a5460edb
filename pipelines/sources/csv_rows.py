"""CSV to rows of text, exactly: RFC 4180 in UTF-8, quotes doubled within quotes.

pyarrow takes apart the blocks without a quote, Python's csv the others: pyarrow loses the LF of a quoted CR LF at a
block's end, and lets a quote that is never closed swallow the rest. Blocks end with a record. Where that cannot be told
at once, or something is wrong, records are read one by one, which names the row.
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
"""What separates values where a comma does not, and how to say so in a command."""


def read_csv(path: Path, delimiter: str) -> Iterator[tuple[int, pa.Table]]:
    """Yield chunks of rows as columns of strings, with the number of their first row, from 1; empty lines are no rows.

    Raises UsageError naming row and line of the first row that is not as wide as the header, has an open quote, is
    longer than MAX_ROW_BYTES or is not UTF-8.
    """
    with pa.input_stream(str(path)) as stream:
        lines = _Lines(path, stream)
        records = _Records(path, lines, delimiter)
        header = next(filter(None, records), None)
        if header is None:
            raise UsageError(f"{path}: Empty CSV file: its first line has to name the columns")
        records.header = _checked(path, header)
        while lines.refill():
            row = records.row
            for table in _rows_of_a_block(lines, records):
                yield row, table
                row += len(table)


class _TooLongError(Exception):
    """The lines of one record are longer than MAX_ROW_BYTES."""


@dataclass(slots=True)
class _Lines:
    """Blocks of whole lines. A record that goes on beyond its block pulls the next one."""

    path: Path
    stream: Any
    block: bytes = b""
    """What is not yet divided into lines."""
    waiting: deque[bytes] = field(default_factory=deque[bytes])
    rest: bytes = b""
    number: int = 0
    """Of the line taken last, from 1."""
    taken_bytes: int = 0
    """Since it was last set to 0."""
    is_first: bool = True

    def refill(self) -> bool:
        """Take the next block if nothing is left of this one; return whether there is anything left."""
        while not self.block and not self.waiting:
            read = self.stream.read(_BLOCK_BYTES)
            self.block, self.rest = _whole_lines(self._unmarked(read)) if not self.rest else self._joined(read)
            if not read:
                self.block, self.rest = self.block + self.rest, b""
                return bool(self.block)
        return True

    def take_block(self) -> bytes:
        """Return what is left of the block, whole lines, as one piece."""
        taken = b"".join([*self.waiting, self.block])
        self.waiting.clear()
        self.block = b""
        return taken

    def __iter__(self) -> Iterator[str]:
        """Yield the lines, decoded, with their ends."""
        while self.refill():
            if not self.waiting:
                self.waiting.extend(self.block.splitlines(keepends=True))
                self.block = b""
            line = self.waiting.popleft()
            self.number += 1
            self.taken_bytes += len(line)
            if self.taken_bytes > MAX_ROW_BYTES:
                raise _TooLongError
            yield line.decode()

    def _unmarked(self, read: bytes) -> bytes:
        if self.is_first and read.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            raise UsageError(f"{self.path}: is UTF-16: save it as UTF-8, or run iconv -f UTF-16 -t UTF-8")
        unmarked = read.removeprefix(BOM_UTF8) if self.is_first else read
        self.is_first = False
        return unmarked

    def _joined(self, read: bytes) -> tuple[bytes, bytes]:
        if len(self.rest) > MAX_ROW_BYTES:
            raise UsageError(f"{self.path}: a line after line {self.number:,} {_too_long()}")
        return _whole_lines(self.rest + read)


@dataclass(slots=True)
class _Records:
    """Records of lines, one by one, by Python's csv."""

    path: Path
    lines: _Lines
    delimiter: str
    header: Sequence[str] = ()
    row: int = 1
    """Number of the row that comes next."""
    reader: Any = None

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        if self.reader is None:
            csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_ROW_BYTES))
            self.reader = csv.reader(iter(self.lines), delimiter=self.delimiter, strict=True)
        line, self.lines.taken_bytes = self.lines.number + 1, 0
        try:
            record = next(self.reader)
        except UnicodeDecodeError:
            raise UsageError(f"{self._place(line)}: is not UTF-8: save the file as UTF-8, or run iconv on it") from None
        except _TooLongError:
            told = f"{_too_long()}, or a quote is opened in it and never closed"
            raise UsageError(f"{self._place(line)}: {told}") from None
        except csv.Error as error:
            raise UsageError(f"{self._place(line)}: {_said(error)}") from None
        if record and self.header and len(record) != len(self.header):
            raise UsageError(f"{self._place(line)}: {_ragged(record, self.header)}")
        self.row += 1 if record and self.header else 0
        return record

    def _place(self, line: int) -> str:
        row = f"row {self.row} (line {line})" if self.header else f"the header (line {line})"
        return f"{self.path}: {row}"


def _rows_of_a_block(lines: _Lines, records: _Records) -> Iterator[pa.Table]:
    """Yield the rows of what is left of a block; if its last record goes on, with the lines that end it."""
    whole = lines.take_block()
    if b'"' in whole:
        end = _even_end(whole)
        whole, lines.block = (whole[:end], whole[end:]) if end else (whole, b"")
        found = _quoted(whole, records) if end else None
    else:
        found = _in_bulk(whole, records)
    if found is not None:
        table, line_count = found
        lines.number += line_count
        records.row += len(table)
        yield table
        return
    last = lines.number + len(split := whole.splitlines(keepends=True))
    lines.waiting.extend(split)
    while lines.number < last:
        yield from _one_by_one(lines, records, last)


def _even_end(whole: bytes) -> int:
    """Return the end of the last line up to which quotes are even: a record ends there, if quotes are by the rule."""
    end, quotes = len(whole), whole.count(b'"')
    while end and quotes % 2:
        start = max(whole.rfind(b"\n", 0, end - 1), whole.rfind(b"\r", 0, end - 1)) + 1
        quotes -= whole.count(b'"', start, end)
        end = start
    return end


def _quoted(whole: bytes, records: _Records) -> tuple[pa.Table, int] | None:
    """Return rows with quotes, and the number of their lines; None where something is wrong, or a record goes on."""
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


def _in_bulk(whole: bytes, records: _Records) -> tuple[pa.Table, int] | None:
    """Return rows without quotes, and the number of their lines; None where something is wrong with one."""
    names = list(records.header)
    try:
        table = bulk.read_csv(
            pa.BufferReader(whole),
            bulk.ReadOptions(column_names=names, use_threads=False, block_size=len(whole) + 1),
            bulk.ParseOptions(delimiter=records.delimiter, quote_char=False),
            bulk.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    return None if _is_too_long(whole) else (table, whole.count(b"\n") or whole.count(b"\r"))


def _is_too_long(whole: bytes) -> bool:
    """Return whether a row may be longer than MAX_ROW_BYTES."""
    return len(whole) > MAX_ROW_BYTES and max(map(len, whole.splitlines())) > MAX_ROW_BYTES


def _one_by_one(lines: _Lines, records: _Records, last: int) -> Iterator[pa.Table]:
    rows: list[list[str]] = []
    while lines.number < last and len(rows) < CHUNK_ROWS:
        record = next(records, None)
        if record:
            rows.append(record)
    if rows:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        yield pa.table(columns, list(records.header))


def _whole_lines(text: bytes) -> tuple[bytes, bytes]:
    """Return the whole lines of a text and the rest; a CR at its end may be half of a line's end."""
    end = max(text.rfind(b"\n"), text.rfind(b"\r", 0, -1)) + 1
    return text[:end], text[end:]


def _checked(path: Path, header: list[str]) -> list[str]:
    if len(header) > MAX_COLUMNS:
        raise UsageError(f"{path}: has {len(header):,} columns, and {MAX_COLUMNS:,} are read: leave some out")
    for name, count in Counter(header).items():
        if count > 1:
            hint = " (the first line has to name the columns: remove a title above it)" if not name.strip() else ""
            raise UsageError(f"{path}: several columns are called {name!r}: rename one{hint}")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UsageError(f"{path}: a column's name is longer than {MAX_NAME_BYTES:,} bytes: {name[:80]!r}...")
    return header


def _ragged(record: Sequence[str], header: Sequence[str]) -> str:
    said = f"has {len(record)} values, and the header names {len(header)} columns"
    if header[0].startswith("#"):
        return f"{said}: remove the comments above the header (grep -v '^#')"
    if header[0].startswith("sep="):
        return f"{said}: remove the line above the header (tail -n +2)"
    other = next((character for character in SEPARATORS if len(header) == 1 and character in header[0]), None)
    return f"{said}: give --delimiter {SEPARATORS[other]}" if other else said


def _said(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote is opened in it and never closed: close it, or double it where it is part of a value"
    return (
        'a value goes on behind its closing quote: a quote within a quoted value is written twice, "" (not \\"), '
        "and a quoted value ends at the separator"
    )


def _too_long() -> str:
    return f"is longer than {mebibytes(MAX_ROW_BYTES)}, the most that is read of a row"
