"""Rows as a table, CSV, JSON or Parquet, on standard output or into a file. Knows nothing of what they say.

DuckDB writes all of them: it knows how each of its types looks in each format, lists and bytes included.
"""

import contextlib
import io
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines.cli.output import out, say
from pipelines.errors import UsageError

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_SHOWN_ROWS = 40
_SHOWN_CHARACTERS = 60
"""Of a cell, on a terminal."""
_ALL = 1_000_000


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    """A line a row (NDJSON)."""
    PARQUET = "parquet"


def write(frame: "pl.DataFrame", form: Format, output: Path | None) -> None:
    """Write a frame as `form` to a file or to standard output. Raises UsageError when that cannot be."""
    import duckdb  # noqa: PLC0415

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        write_relation(connection.from_arrow(frame.to_arrow()), form, output)


def write_relation(rows: "duckdb.DuckDBPyRelation", form: Format, output: Path | None) -> None:
    """Write the rows of a query, like `write`. Raises duckdb.Error when the query fails while it runs."""
    from pipelines.reputation.sql import literal  # noqa: PLC0415

    if form is Format.PARQUET and output is None and out.is_terminal:
        raise UsageError("Parquet is not for a terminal: name a file with --output, or redirect")
    with TemporaryDirectory(prefix="karmalake-") as folder:
        made = Path(folder, "rows")
        if form is Format.TABLE:
            made.write_text(_draw(rows, fit=output is None and out.is_terminal), encoding="utf-8")
        else:
            rows.query("made", f"COPY (FROM made) TO {literal(str(made))} (FORMAT {form})")
        _hand_over(made, output)


def _hand_over(made: Path, output: Path | None) -> None:
    if output is None:
        with made.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    try:
        shutil.copyfile(made, output)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    say(f"written to {output}")


def _draw(rows: "duckdb.DuckDBPyRelation", *, fit: bool) -> str:
    """Return a table; if it has to fit the terminal, as many rows and columns as do, and how many there are."""
    drawn = io.StringIO()
    with contextlib.redirect_stdout(drawn):
        if fit:
            rows.show(max_width=out.width, max_rows=_SHOWN_ROWS, max_col_width=_SHOWN_CHARACTERS)
        else:
            rows.show(max_width=_ALL, max_rows=_ALL, max_col_width=_ALL)
    return drawn.getvalue().rstrip("\n") + "\n"
