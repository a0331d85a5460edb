"""The one door for TOML files: reads one within bounds, and says where in it a key stands.

Owns what every such file is refused for, whoever it is for: size, encoding, depth, numbers and texts that no setting,
policy or rule can mean. Where a key stands is what tomllib forgets, and a mistake has to be told by.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipelines.errors import KarmalakeError

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_TEXT_CHARS = 65_536
MAX_PROBLEMS = 20
"""Mistakes that are told of one file; one slip of a generator makes thousands of them."""
_MAX_INTEGER = 2**63
_MAX_EXPONENT = 400
_MAX_NUMBER_CHARS = 100
_MAX_LINE_CHARS = 1_000
_SHOWN_CHARS = 80
_DEEP_KEY = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")
"""Refused before tomllib sees it: its time grows with the square of a dotted key's parts."""

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")


class _RefusedError(ValueError):
    """A value that no key can mean; `path` is where it stands."""

    def __init__(self, path: tuple[str, ...], problem: str) -> None:
        super().__init__(problem)
        self.path = path


def read_toml(path: Path, refused: type[KarmalakeError]) -> str:
    """Return the text of a TOML file; a byte order mark is left out.

    Raises `refused` for a file that cannot be read, is larger than MAX_BYTES or is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise refused(f"{path} cannot be read: it is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refused(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise refused(f"{path} is larger than {MAX_BYTES:,} bytes, the most that is read of a TOML file: shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refused(f"{path}:{line}: is not UTF-8: save it as UTF-8") from None


def exists(path: Path) -> bool:
    """Return whether there is anything at a path; there is nothing at one that is too long for the system."""
    try:
        return path.exists()
    except OSError:
        return False


def parse_toml(
    text: str, place: str, refused: type[KarmalakeError], number: Callable[[str], Any] = Decimal
) -> dict[str, Any]:
    """Return the values of TOML text; `number` makes what has a point or an exponent, `place` stands for the file.

    Raises `refused` naming place and line of what is not TOML, and of a value beyond the bounds of this module.
    """
    if deep := _DEEP_KEY.search(text):
        raise refused(f"{place}:{_line_at(text, deep.start())}: a key has over {MAX_DEPTH} parts: shorten it")
    try:
        values = tomllib.loads(text, parse_float=_bounded(number))
        _check(values)
    except tomllib.TOMLDecodeError as error:
        raise refused(f"{place} is not TOML: {shown(error)}") from None
    except _RefusedError as error:
        raise refused(f"{place}:{_line_of(error, text)}: {'.'.join(map(shown, error.path))}: {error}") from None
    except RecursionError:
        raise refused(f"{place}: values are nested over {MAX_DEPTH} deep: flatten them") from None
    except ValueError as error:  # an integer of thousands of digits
        raise refused(f"{place}: holds a number that is too long: {shown(error)}") from None
    return values


def shown(value: object) -> str:
    """Return what a file says as part of a sentence: its beginning, where it is long."""
    text = str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def all_problems(sentences: Iterable[str], count: int) -> str:
    """Return the sentences of a file's `count` mistakes as lines: the first MAX_PROBLEMS, none of them endless."""
    lines = [sentence[:_MAX_LINE_CHARS] for sentence, _ in zip(sentences, range(MAX_PROBLEMS), strict=False)]
    return "\n".join([*lines, *([f"and {count - MAX_PROBLEMS:,} more"] if count > MAX_PROBLEMS else [])])


def _bounded(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `number`, held to texts that stay small when the number is written out."""

    def read(text: str) -> Any:
        exponent = re.search(r"[eE]([+-]?[0-9_]+)$", text)
        if len(text) > _MAX_NUMBER_CHARS or (exponent and abs(int(exponent[1])) > _MAX_EXPONENT):
            raise _RefusedError((text,), "is not a number that can be meant: give one of fewer digits")
        return number(text)

    return read


def _check(values: dict[str, Any]) -> None:
    """Raise _RefusedError for the first value that is beyond the bounds; not recursive, as the depth is unknown."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), values)]
    while waiting:
        path, value = waiting.pop()
        if problem := next(_problems(path, value), None):
            raise _RefusedError(path[:MAX_DEPTH], problem)
        if isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, str(place)), inner) for place, inner in enumerate(value)]


def _problems(path: tuple[str, ...], value: Any) -> Iterator[str]:
    if len(path) > MAX_DEPTH:
        yield f"is nested over {MAX_DEPTH} deep: flatten it"
    if path and ("\0" in path[-1] or len(path[-1]) > MAX_TEXT_CHARS):
        yield f"is a key with a NUL, or of more than {MAX_TEXT_CHARS:,} characters: shorten it"
    if isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER:
        yield "is not a number that can be meant: an integer of TOML has 64 bits"
    if isinstance(value, str) and ("\0" in value or len(value) > MAX_TEXT_CHARS):
        yield f"has a NUL, or more than {MAX_TEXT_CHARS:,} characters: shorten it"
    if isinstance(value, datetime) and value.tzinfo and not _in_utc(value):
        yield "is not within the years 1 to 9999 in UTC"


def _in_utc(moment: datetime) -> bool:
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _line_of(error: _RefusedError, text: str) -> int:
    """Return the line of the key that a value stands at, or of the number itself."""
    lines = key_lines(text)
    known = (lines[error.path[:end]] for end in range(len(error.path), 0, -1) if error.path[:end] in lines)
    return next(known, _line_at(text, max(0, text.find(error.path[0] if error.path else ""))))


def _line_at(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line (from 1) of every table header and key that starts a line, by its path.

    Elements of an array of tables are counted from "0". Keys within inline tables are found by their parent.
    """
    lines: dict[tuple[str, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _split(header[2])
            if header[1] == "[[":
                array = _counted(table[:-1], counts) + table[-1:]
                counts[array] = counts.get(array, -1) + 1
            table = _counted(table, counts)
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault(table + _split(assignment[1]), number)
    return lines


def _counted(table: tuple[str, ...], counts: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """Return the path of a table with the current place in each array of tables on its way."""
    path: tuple[str, ...] = ()
    for part in table:
        path += (part,)
        if path in counts:
            path += (str(counts[path]),)
    return path


def _split(dotted: str) -> tuple[str, ...]:
    parts = re.findall(r"\"([^\"]*)\"|'([^']*)'|([^.\s\"']+)", dotted)
    return tuple(next(filter(None, part), "") for part in parts)
