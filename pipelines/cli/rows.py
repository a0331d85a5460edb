"""Rows as a table, CSV, JSON or Parquet, on standard output or into a file. Knows nothing of what they say.

DuckDB writes all of them: it knows how each of its types looks in each format, lists and bytes included. A table is for
people: what would steer a terminal is made visible in it. The other formats hold the values as they are; only on a
terminal they are made visible, too.
"""

import contextlib
import io
import re
import shutil
from collections.abc import Generator
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines.boundary.text import visible
from pipelines.cli.output import on_terminal, out, say, say_file
from pipelines.errors import UsageError

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_SHOWN_ROWS = 40
_SHOWN_CHARACTERS = 60
"""Of a cell, on a terminal."""
_ALL = 1_000_000
_FORMULA = "^[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
"""How a text begins that a spreadsheet computes: = + - @, in full width too, and what it skips before them."""
_GUARDED = r"'\0"
_COMPUTED = re.compile(r"(BOOLEAN|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL|DATE|TIME)")


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    SPREADSHEET = "spreadsheet"
    """CSV in which no text is a formula."""
    JSON = "json"
    """A line a row (NDJSON)."""
    PARQUET = "parquet"


@contextlib.contextmanager
def rows_file() -> Generator[Path]:
    """Yield a private file that rows can be written to, and remove it afterwards."""
    with TemporaryDirectory(prefix="karmalake-") as folder:
        yield Path(folder, "rows")


def write(frame: "pl.DataFrame", form: Format, output: Path | None) -> None:
    """Write a frame as `form` to a file or to standard output. Raises UsageError when that cannot be."""
    import duckdb  # noqa: PLC0415

    with rows_file() as made, duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        write_relation(connection.from_arrow(frame.to_arrow()), form, made, output)


def write_relation(rows: "duckdb.DuckDBPyRelation", form: Format, made: Path, output: Path | None) -> None:
    """Write the rows of a query, like `write`, by way of the file `made`, which its connection may write.

    Raises duckdb.Error when the query fails while it runs.
    """
    from pipelines.reputation.sql import literal  # noqa: PLC0415

    if form is Format.PARQUET and output is None and on_terminal():
        raise UsageError("Parquet is not for a terminal: name a file with --output, or redirect")
    if form is Format.TABLE:
        made.write_text(_draw(rows, fit=output is None and on_terminal()), encoding="utf-8")
    elif form is Format.SPREADSHEET:
        columns = ", ".join(map(_no_formula, rows.columns, map(str, rows.types)))
        options = "FORMAT csv, FORCE_QUOTE *"  # where another character than the comma separates, a text is one cell
        rows.project(columns).query("made", f"COPY (FROM made) TO {literal(str(made))} ({options})")
    else:
        rows.query("made", f"COPY (FROM made) TO {literal(str(made))} (FORMAT {form})")
    _hand_over(made, form, output)


def _no_formula(column: str, kind: str) -> str:
    """Return a column of numbers or times as it is, any other as text that no spreadsheet computes."""
    from pipelines.reputation.sql import identifier, literal  # noqa: PLC0415

    name, safe = identifier(column), identifier(re.sub(_FORMULA, r"'\g<0>", column))
    if _COMPUTED.match(kind):
        return f"{name} AS {safe}"
    return f"regexp_replace(CAST({name} AS VARCHAR), {literal(_FORMULA)}, {literal(_GUARDED)}) AS {safe}"


def _hand_over(made: Path, form: Format, output: Path | None) -> None:
    if output is None:
        say_file(made, is_json=form is Format.JSON)
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
    return "\n".join(map(visible, drawn.getvalue().rstrip("\n").split("\n"))) + "\n"
