"""Bounded reading of TOML files, with the line number of each key.

All TOML files of karmalake (settings, policies, rules) have the same limits on size, encoding, depth, numbers and
strings. Error messages need line numbers, which tomllib does not return.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.errors import KarmalakeError

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_TEXT_CHARS = 65_536
MAX_PROBLEMS = 20
"""Mistakes reported per file: one bug of a generator causes thousands."""
_MAX_INTEGER = 2**63
_MAX_EXPONENT = 400
_MAX_NUMBER_CHARS = 100
_MAX_LINE_CHARS = 1_000
_MAX_QUOTED_CHARS = 80
_MIN_ABBREVIATION = 3
_TWICE = re.compile(r"Cannot (overwrite a value|declare \(.*\) twice)|Duplicate inline table key '.*'")
"""What tomllib says of a repeated key, or of a repeated table."""
_DEEP_KEY = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")
"""Refused before parsing: the time of tomllib is quadratic in the number of parts of a dotted key."""

_PART = r"""(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_KEY = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)[ \t]*({_KEY})[ \t]*\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEY})\s*=")
_DOTTED = re.compile(r"(?<![\w.\"-])([A-Za-z0-9_-]+(?:[ \t]*\.[ \t]*[A-Za-z0-9_-]+)+)[ \t]*=")
_TEXT_OR_COMMENT = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}.*?'{3}|#[^\n]*|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""",
    re.DOTALL,
)
"""A text or a comment: what begins one within another is part of it."""


class _OutOfBoundsError(ValueError):
    """A value beyond the limits of this module; `path` is its key path."""

    def __init__(self, path: tuple[str, ...], problem: str) -> None:
        super().__init__(problem)
        self.path = path


def read_toml(path: Path, error_type: type[KarmalakeError]) -> str:
    """Return the text of a TOML file without a byte order mark.

    Raises `error_type` for a file that cannot be read, is larger than MAX_BYTES or is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may be endless
            raise error_type(f"{path} cannot be read: it is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise error_type(f"{path} is larger than {MAX_BYTES:,} bytes, the most that is read of a TOML file: shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise error_type(f"{path}:{line}: is not UTF-8: save it as UTF-8") from None


def exists(path: Path) -> bool:
    """Return whether a path exists; False for a path that is too long for the system."""
    try:
        return path.exists()
    except OSError:
        return False


def parse_toml(
    text: str, source: str, error_type: type[KarmalakeError], number: Callable[[str], Any] = Decimal
) -> dict[str, Any]:
    """Parse TOML text. `number` converts floats from their text; `source` names the file in messages.

    Raises `error_type` with source and line for invalid TOML, and for a value beyond the limits of this module.
    """
    if deep := _DEEP_KEY.search(text):
        raise error_type(f"{source}:{_line_at(text, deep.start())}: a key has over {MAX_DEPTH} parts: shorten it")
    try:
        values = tomllib.loads(text, parse_float=_bounded(number))
        _check(values)
    except tomllib.TOMLDecodeError as error:
        problem, is_twice = _TWICE.subn("a key or table is there twice", str(error))
        remedy = _quoting(text) if is_twice else ""
        raise error_type(f"{source} is not TOML: {abbreviate(problem)}{remedy}") from None
    except _OutOfBoundsError as error:
        key = ".".join(map(abbreviate, error.path))
        raise error_type(f"{source}:{_line_of(error, text)}: {key}: {error}") from None
    except RecursionError:
        raise error_type(f"{source}: values are nested over {MAX_DEPTH} deep: flatten them") from None
    except ValueError as error:  # an integer of thousands of digits
        raise error_type(f"{source}: holds a number that is too long: {abbreviate(error)}") from None
    return values


def abbreviate(value: object) -> str:
    """Return at most 80 characters of a value, for a message that quotes it."""
    text = str(value)
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Return the end of a message that asks for the known name most like a name; empty if none is.

    A name that it abbreviates, by three letters or more, is most like it.
    likeness: from 0 to 1, the least ratio of difflib's SequenceMatcher.
    """
    names = list(known)
    longer = [each for each in names if each.startswith(name)] if len(name) >= _MIN_ABBREVIATION else []
    close = longer or difflib.get_close_matches(name, names, n=1, cutoff=likeness)
    return f": did you mean {close[0]!r}?" if close else ""


def format_problems(messages: Iterable[str], count: int) -> str:
    """Return the first MAX_PROBLEMS of `count` messages about a file, one per line, each of bounded length."""
    lines = [message[:_MAX_LINE_CHARS] for message in islice(messages, MAX_PROBLEMS)]
    return "\n".join([*lines, *([f"and {count - MAX_PROBLEMS:,} more"] if count > MAX_PROBLEMS else [])])


def _bounded(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `number`, restricted to texts that stay short when the number is written out."""

    def read(text: str) -> Any:
        exponent = re.search(r"[eE]([+-]?[0-9_]+)$", text)
        if len(text) > _MAX_NUMBER_CHARS or (exponent and abs(int(exponent[1])) > _MAX_EXPONENT):
            raise _OutOfBoundsError((text,), "is out of range: give one of fewer digits")
        return number(text)

    return read


def _check(values: dict[str, Any]) -> None:
    """Raise _OutOfBoundsError for the first value beyond the limits; iterative, since the depth is unknown."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), values)]
    while pending:
        path, value = pending.pop()
        if problem := next(_problems(path, value), None):
            raise _OutOfBoundsError(path[:MAX_DEPTH], problem)
        if isinstance(value, dict):
            pending += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            pending += [((*path, str(index)), inner) for index, inner in enumerate(value)]


def _problems(path: tuple[str, ...], value: Any) -> Iterator[str]:
    if len(path) > MAX_DEPTH:
        yield f"is nested over {MAX_DEPTH} deep: flatten it"
    if path and ("\0" in path[-1] or len(path[-1]) > MAX_TEXT_CHARS):
        yield f"is a key with a NUL, or of more than {MAX_TEXT_CHARS:,} characters: shorten it"
    if isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER:
        yield "is out of range: an integer of TOML has 64 bits"
    if isinstance(value, str) and ("\0" in value or len(value) > MAX_TEXT_CHARS):
        yield f"has a NUL, or more than {MAX_TEXT_CHARS:,} characters: shorten it"
    if isinstance(value, datetime) and value.tzinfo and not _in_utc(value):
        yield "is outside the years 1 to 9999 in UTC"


def _in_utc(moment: datetime) -> bool:
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _line_of(error: _OutOfBoundsError, text: str) -> int:
    """Return the line of the key of a value, or of the number itself."""
    line = line_of(error.path, key_lines(text))
    return line or _line_at(text, max(0, text.find(error.path[0] if error.path else "")))


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line number (from 1) of every table header and key that starts a line, by key path.

    A table without a header of its own has the first line in which it is part of a key or header. Elements of an array
    of tables are numbered from "0". Keys within inline tables have the line of their parent.
    """
    lines: dict[tuple[str, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(_TEXT_OR_COMMENT.sub(_on_one_line, text).split("\n"), start=1):
        if header := _HEADER.match(line):
            table = _split(header[2])
            if header[1] == "[[":
                array = _with_indexes(table[:-1], counts) + table[-1:]
                counts[array] = counts.get(array, -1) + 1
            table = _with_indexes(table, counts)
            path = table
        elif assignment := _ASSIGNMENT.match(line):
            path = table + _split(assignment[1])
        else:
            continue
        for end in range(1, len(path) + 1):
            lines.setdefault(path[:end], number)
    return lines


def _on_one_line(found: re.Match[str]) -> str:
    """Return a text of one line as it is, and of several lines only its ends of lines."""
    return "\n" * found[0].count("\n") or found[0]


def dotted_keys(text: str) -> list[tuple[str, ...]]:
    """Return the parts of each key of several, none in quotes, that a text gives a value."""
    return [_split(found[1]) for found in _DOTTED.finditer(_TEXT_OR_COMMENT.sub('""', text))]


def in_quotes(parts: Iterable[str], table: str = "{}") -> str:
    """Return the end of a message about a key with points that is not in quotes; `table` is the form of a header."""
    name = abbreviate(".".join(parts))
    quoted = table.replace("{}", f'"{name}"')
    return f"if {name} is one name, put it in quotes: {quoted}"


def _quoting(text: str) -> str:
    """Return what to do with the first key with points whose first part has a value of its own; empty if none is."""
    for parts in dotted_keys(text):
        if re.search(rf"(?<![\w.-]){re.escape(parts[0])}[ \t]*=", text):
            return f"; {in_quotes(parts)}"
    return ""


def line_of(path: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> int | None:
    """Return the line of the longest prefix of a key path that `key_lines` has; None if it has none."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)


def _with_indexes(table: tuple[str, ...], counts: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """Return the path of a table, with the current index of each array of tables in it."""
    path: tuple[str, ...] = ()
    for part in table:
        path += (part,)
        if path in counts:
            path += (str(counts[path]),)
    return path


def _split(dotted: str) -> tuple[str, ...]:
    parts = re.findall(r"\"([^\"]*)\"|'([^']*)'|([^.\s\"']+)", dotted)
    return tuple(next(filter(None, part), "") for part in parts)
