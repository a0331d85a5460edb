"""Failures of SQL that a reader wrote, as errors of the tree: what is wrong, and the place in the statement.

Owns the texts. `query_guard.py` decides what is a query; `warehouse_session.py` runs it.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb

from pipelines.boundary.text import amount, escape_lines
from pipelines.errors import KarmalakeError, TransientError, UsageError, is_transient, one_line

Parameters = Sequence[Any] | Mapping[str, Any] | None
"""Values for `?` in order, or for `$name` by name."""
_NOT_OURS = (duckdb.InterruptException, duckdb.InternalException, duckdb.FatalException)
"""A time limit handles the first; the others are defects."""
_PREFIX = "EXPLAIN "
_PLACE_AFTER_PREFIX = re.compile(rf"^LINE 1: {_PREFIX}(.*)\n {{{len(_PREFIX)}}}", re.MULTILINE)
_MAX_COUNT = 1_000_000_000
_MAX_LINES = 6
"""DuckDB lists every form of a function, which buries the place."""
_GONE = re.compile(r'^Permission Error: Cannot access file "(?P<file>[^"]+)/\*\*/')
"""A file of a view that is not there: DuckDB takes its name for a folder, which the connection may not access."""
_USED = re.compile(r"[\d.]+ \w+/[\d.]+ \w+(?= used)")
_A_FILE = re.compile(r"^Permission Error|Table with name \S*[./]\S* does not exist")
_NO_TABLE = re.compile(r"^Catalog Error: Table with name (?P<name>\w+) does not exist")
_NO_FILES = """
a warehouse reads no other files: load yours into a data frame and pass it by tables={...}, or open the warehouse with
allow_files=True"""


@contextmanager
def explained(
    connection: duckdb.DuckDBPyConnection | None = None, query: str = "", params: Parameters = None
) -> Generator[None]:
    """Raise the DuckDB errors of the block as errors that say what to do; with a query that a reader wrote, also where.

    Raises UsageError for a mistake in the query or its values and for a closed connection, TransientError where a retry
    may succeed. An interruption and defects of DuckDB pass.
    """
    try:
        yield
    except _NOT_OURS:
        raise
    except duckdb.Error as error:
        message = str(error) if connection is None else _with_place(str(error), connection, query, params)
        raise query_error(error, message, query) from None


def query_error(error: duckdb.Error, message: str, query: str = "") -> KarmalakeError:
    """Return the error of the tree for a failure of a query; `message` is its text, with the place if it is known."""
    if isinstance(error, duckdb.ConnectionException):
        return UsageError("this warehouse is closed: open it again with open_warehouse()")
    if isinstance(error, duckdb.OutOfMemoryException):
        return UsageError(_describe_limit(message))
    gone = _GONE.search(message)
    if gone and gone["file"] not in query:
        return TransientError(
            f"{gone['file']} is gone, a file of the lake: call warehouse.refresh() and try again; a copy of a "
            "warehouse needs the lake beside it"
        )
    if is_transient(error):
        return TransientError(f"the lake could not be read, try again: {one_line(error)}")
    return UsageError(f"the query failed: {escape_lines(_shorten(message))}{_table_hint(message)}")


def _describe_limit(message: str) -> str:
    """Return which limit a query reached, and its setting."""
    used = f" ({found[0]} used)" if (found := _USED.search(message)) else ""
    if "max_temp_directory_size" in message:
        return f"the query needs more disk than queries.max_spill_bytes allows{used}: narrow it down, or raise it"
    return (
        f"the query needs more memory than queries.max_memory_share allows{used}: select fewer rows or columns, or "
        "raise it"
    )


def _table_hint(message: str) -> str:
    """Return how to read a file, or a frame of one's own, if that may have been meant; else an empty string."""
    if _A_FILE.search(message):
        return _NO_FILES
    name = found["name"] if (found := _NO_TABLE.search(message)) else ""
    return f"\na data frame of yours is passed in Python by tables={{'{name}': {name}}}" if name else ""


def check_parameters(query: str, params: Parameters) -> None:
    """Raise UsageError unless `params` has a value for each `?` or `$name` of a query, and no other."""
    # a notebook has no type checker
    if isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"params={params!r} is neither a list, for each ? in order, nor a dictionary, by $name")
    needed = {name for part in duckdb.extract_statements(query) for name in part.named_parameters}
    given = set(params) if isinstance(params, Mapping) else {str(place) for place in range(1, 1 + len(params or ()))}
    if needed != given:
        raise UsageError(_describe_misfit(sorted(needed - given), sorted(map(str, given - needed)), needed, len(given)))


def check_count(argument: str, value: int) -> None:
    """Raise UsageError unless the value of an argument is a whole number from 0 to _MAX_COUNT; none is rounded."""
    # a notebook has no type checker
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"{argument}={value!r} is not a whole number from 0 to {_MAX_COUNT:,}")


def check_types(rows: duckdb.DuckDBPyRelation) -> None:
    """Raise UsageError if a result has a column that polars cannot hold: a difference of moments, an INTERVAL."""
    if intervals := [name for name, kind in zip(rows.columns, rows.types, strict=True) if str(kind) == "INTERVAL"]:
        raise UsageError(
            f"the column {intervals[0]!r} is an INTERVAL, which a frame of polars cannot hold: select its seconds by "
            "epoch(...), or take .arrow() instead"
        )


def _describe_misfit(missing: list[str], excess: list[str], needed: set[str], given: int) -> str:
    """Return which parameter lacks a value, or which value a parameter; the name of a `?` is its place."""
    if (missing or excess)[0].isdecimal():
        values = amount(given, "value")
        return f"the query has {len(needed)} ? and params {values}: give a list with one for each, in order"
    if missing:
        return f"${missing[0]} has no value: pass params={{'{missing[0]}': ...}}"
    uses = ", ".join("?" if name.isdecimal() else f"${name}" for name in sorted(needed)) or "none"
    return f"the query has no parameter {excess[0]!r}, for which params has a value: it has {uses}"


def _with_place(message: str, connection: duckdb.DuckDBPyConnection, query: str, params: Parameters) -> str:
    """Return a message with the line and a mark under the place: EXPLAIN reports it where a relation does not."""
    if "\nLINE " in message or not query.strip():
        return message
    try:
        connection.execute(_PREFIX + query, params)
    except duckdb.Error as error:
        placed = str(error)
        return _PLACE_AFTER_PREFIX.sub(r"LINE 1: \1\n", placed) if "\nLINE " in placed else message
    return message


def _shorten(message: str) -> str:
    """Return a message of DuckDB with at most _MAX_LINES lines before the place."""
    text, mark, place = message.partition("\n\nLINE ")
    lines = text.rstrip().expandtabs(4).splitlines()
    cut = [*lines[:_MAX_LINES], "..."] if len(lines) > _MAX_LINES else lines
    return "\n".join(cut) + mark + place
