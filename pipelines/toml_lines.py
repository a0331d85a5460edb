"""Where in a TOML file a key stands: what tomllib forgets, and a mistake has to be told by."""

import re

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")


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
