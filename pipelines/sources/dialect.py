"""The dialect of a CSV file: what the caller says of it, and what its first lines show.

The line that has the names of the mapped columns is the header. That is exact where a sniffer guesses: it also tells
the delimiter, and which lines above it are comments or a title.
"""

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.sources.options import ReadOptions
from pipelines.sources.streams import TextStream

DELIMITERS = (",", ";", "\t", "|", "::")
_MAX_LINES_ABOVE_HEADER = 50
_MAX_SAMPLE_LINES = 1_000
_DECIMAL = re.compile(r"-?(?:[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+),[0-9]+")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the rows of a CSV file are written."""

    delimiter: str = ","
    quote: str = '"'
    """Empty: no value is quoted."""
    escape: str | None = None
    encoding: str = "utf-8"
    lines_above_header: int = 0
    comment: str | None = None
    columns: tuple[str, ...] = ()
    """The names of the columns if no line has them."""
    strips_spaces: bool = False
    """Whether spaces after a delimiter are not part of a value."""
    decimal_comma: bool = False
    comma_columns: frozenset[int] = frozenset()
    """The places of the columns with decimal commas in the first lines: there, a point alone groups digits."""

    def __str__(self) -> str:
        """Describe what differs from RFC 4180 in UTF-8; empty if nothing does."""
        says = {
            f"delimiter {self.delimiter!r}": self.delimiter != ",",
            f"quote {self.quote!r}": self.quote != '"',
            f"escape {self.escape!r}": self.escape is not None,
            f"encoding {self.encoding}": self.encoding != "utf-8",
            f"lines above the header: {self.lines_above_header}": self.lines_above_header > 0,
            f"lines after {self.comment!r} are comments": self.comment is not None,
            "no header": bool(self.columns),
            "spaces after delimiters are dropped": self.strips_spaces,
            "decimal commas": self.decimal_comma,
        }
        return ", ".join(text for text, applies in says.items() if applies)

    def parse(self, lines: Iterator[str]) -> "Iterator[list[str]]":
        """Yield the cells of each record. Raises csv.Error for an invalid one."""
        return csv.reader(
            lines,
            delimiter=self.delimiter if len(self.delimiter) == 1 else UNIT_SEPARATOR,
            quotechar=self.quote or None,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar=self.escape,
            skipinitialspace=self.strips_spaces,
            strict=True,
        )


UNIT_SEPARATOR = "\x1f"
"""Stands for a delimiter of several characters while a row is parsed."""


def find_dialect(stream: TextStream, options: ReadOptions, extension: str, names: Collection[str]) -> Dialect:
    """Return the dialect of a file; `names` are the columns that are mapped, which its header must have."""
    lines = _lines(stream.sample, options.comment)
    told = Dialect(
        _first_delimiter(options, extension, lines),
        '"' if options.quote is None else options.quote,
        options.escape,
        stream.encoding,
        comment=options.comment or None,
        columns=options.columns,
    )
    found = told if options.columns else _at_header(told, options, lines, names)
    if found.quote and options.escape is None and _escapes_with_backslash(found, lines):
        found = replace(found, escape="\\")
    decimals = _decimal_columns(found, options, lines)
    return replace(found, decimal_comma=bool(options.decimal_comma or decimals), comma_columns=decimals)


def _lines(sample: bytes, comment: str | None) -> list[str]:
    """Return the first lines, without comments; the last one may be cut off."""
    lines = [line.decode(errors="replace") for line in sample.splitlines()[:_MAX_SAMPLE_LINES]]
    return [line for line in lines if not comment or not line.startswith(comment)]


def cells(dialect: Dialect, line: str) -> list[str]:
    """Return the cells of one line; none if it is not a record."""
    if len(dialect.delimiter) > 1:
        line = line.replace(dialect.delimiter, UNIT_SEPARATOR)
    try:
        return next(dialect.parse(iter([line])), [])
    except csv.Error:
        return []


def _first_delimiter(options: ReadOptions, extension: str, lines: Sequence[str]) -> str:
    """Return the delimiter that is given, that the extension says, or that splits the first line into most cells."""
    if options.delimiter:
        return options.delimiter
    if extension in {".tsv", ".tab"}:
        return "\t"
    first = next(filter(None, lines), "")
    return max(DELIMITERS, key=first.count)


def _at_header(told: Dialect, options: ReadOptions, lines: Sequence[str], names: Collection[str]) -> Dialect:
    """Return the dialect in which one of the first lines has the mapped names; `told` if none has."""
    delimiters = dict.fromkeys([told.delimiter, *([] if options.delimiter else DELIMITERS)])
    quotes = dict.fromkeys([told.quote, *([] if options.quote is not None else ["'"])])
    candidates = [
        replace(told, delimiter=delimiter, quote=quote, strips_spaces=strips)
        for quote in quotes
        for strips in (False, True)
        for delimiter in delimiters
    ]
    for number, line in enumerate(lines[:_MAX_LINES_ABOVE_HEADER] if names else ()):
        if told.quote and "".join(lines[:number]).count(told.quote) % 2:
            continue  # within a quoted value
        for candidate in candidates:
            if has_names(cells(candidate, line), names):
                return replace(candidate, lines_above_header=number)
    return told


def has_names(header: Sequence[str], names: Collection[str]) -> bool:
    """Return whether a header has all names; a dotted name may be a member of a column with JSON."""
    return all(any(name == column or name.startswith(f"{column}.") for column in header if column) for name in names)


def _escapes_with_backslash(dialect: Dialect, lines: Sequence[str]) -> bool:
    r"""Return whether a quoted value goes on after \": then the backslash can only be an escape."""
    quote, delimiter = re.escape(dialect.quote), re.escape(dialect.delimiter)
    pattern = re.compile(rf"\\{quote}(?!\s*$|{quote}|{delimiter})")
    return any(pattern.search(line) for line in lines if dialect.quote in line)


def _decimal_columns(dialect: Dialect, options: ReadOptions, lines: Sequence[str]) -> frozenset[int]:
    """Return the places of columns with decimal commas: spreadsheets delimit by semicolons only where these are used.

    There are none where the options say that no number has one.
    """
    if options.decimal_comma is False or not (options.decimal_comma or dialect.delimiter == ";"):
        return frozenset()
    rows = (cells(dialect, line) for line in lines)
    return frozenset(place for row in rows for place, cell in enumerate(row) if _DECIMAL.fullmatch(cell))
