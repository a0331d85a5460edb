"""Rows as a table, CSV, JSON or Parquet, on standard output or in a file, independent of their content.

DuckDB formats all of them, since it can write each of its types in each format, including lists and bytes. Control
characters are escaped in a table always, and in the other formats on a terminal only.
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

from pipelines.boundary.text import escape_text
from pipelines.cli.output import on_terminal, out, print_file, print_line
from pipelines.errors import UsageError

if TYPE_CHECKING:
    import duckdb
    import polars as pl
    import pyarrow as pa

_SHOWN_ROWS = 40
_SHOWN_CHARACTERS = 60
"""Characters shown of a cell on a terminal."""
_UNLIMITED = 1_000_000
_FORMULA = "^[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
"""Matches text that a spreadsheet evaluates: it starts with = + - @, full-width or not, or with ignored whitespace."""
_ESCAPED_FORMULA = r"'\0"
_NUMERIC_TYPES = re.compile(r"(BOOLEAN|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL|DATE|TIME)")


class Format(StrEnum):
    """The output format of rows."""

    TABLE = "table"
    CSV = "csv"
    SPREADSHEET = "spreadsheet"
    """CSV in which no cell is evaluated as a formula."""
    JSON = "json"
    """One JSON object per line (NDJSON)."""
    PARQUET = "parquet"


@contextlib.contextmanager
def rows_file() -> Generator[Path]:
    """Yield the path of a private temporary file for rows, and delete it afterwards."""
    with TemporaryDirectory(prefix="karmalake-") as folder:
        yield Path(folder, "rows")


def write(frame: "pl.DataFrame", form: Format, output: Path | None) -> None:
    """Write a frame in a format to a file or standard output. Raises UsageError if that is not possible."""
    from pipelines.boundary.database import connect  # noqa: PLC0415 - loads DuckDB

    with rows_file() as path, connect() as connection:
        write_relation(connection.from_arrow(frame.to_arrow()), form, path, output)


def write_file(rows: "pa.Table", form: Format, output: Path) -> None:
    """Write rows to a file that only this account can read, and print nothing. Raises OSError."""
    from pipelines.boundary.database import connect  # noqa: PLC0415 - loads DuckDB

    output.touch(mode=0o600)
    with rows_file() as path, connect() as connection:
        _format(connection.from_arrow(rows), form, path)
        shutil.copyfile(path, output)


def write_relation(rows: "duckdb.DuckDBPyRelation", form: Format, path: Path, output: Path | None) -> None:
    """Write the rows of a query like `write`, through the temporary file `path`, which its connection may write.

    Raises duckdb.Error if the query fails.
    """
    if form is Format.PARQUET and output is None and on_terminal():
        raise UsageError("Parquet is binary and cannot be shown on a terminal: use --output FILE, or redirect")
    if form is Format.TABLE:
        path.write_text(_render(rows, fit=output is None and on_terminal()), encoding="utf-8")
    else:
        _format(rows, form, path)
    _deliver(path, form, output)


def _format(rows: "duckdb.DuckDBPyRelation", form: Format, path: Path) -> None:
    """Write rows to a file in a format for programs."""
    from pipelines.boundary.locked_sql import literal  # noqa: PLC0415

    if form is Format.SPREADSHEET:
        columns = ", ".join(map(_no_formula, rows.columns, map(str, rows.types)))
        options = "FORMAT csv, FORCE_QUOTE *"  # quoted, so that a cell stays one whatever delimiter is assumed
        rows.project(columns).query("result", f"COPY (FROM result) TO {literal(str(path))} ({options})")
    else:
        rows.query("result", f"COPY (FROM result) TO {literal(str(path))} (FORMAT {form})")


def _no_formula(column: str, kind: str) -> str:
    """Return the SQL of a column: numbers and times unchanged, anything else as text that is not evaluated."""
    from pipelines.boundary.locked_sql import identifier, literal  # noqa: PLC0415

    name, safe = identifier(column), identifier(re.sub(_FORMULA, r"'\g<0>", column))
    if _NUMERIC_TYPES.match(kind):
        return f"{name} AS {safe}"
    return f"regexp_replace(CAST({name} AS VARCHAR), {literal(_FORMULA)}, {literal(_ESCAPED_FORMULA)}) AS {safe}"


def _deliver(path: Path, form: Format, output: Path | None) -> None:
    if output is None:
        print_file(path, is_json=form is Format.JSON)
        return
    try:
        shutil.copyfile(path, output)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    print_line(f"written to {output}")


def _render(rows: "duckdb.DuckDBPyRelation", *, fit: bool) -> str:
    """Return a table; to fit a terminal, only as many rows and columns as it has room for, with their number."""
    rendered = io.StringIO()
    with contextlib.redirect_stdout(rendered):
        if fit:
            rows.show(max_width=out.width, max_rows=_SHOWN_ROWS, max_col_width=_SHOWN_CHARACTERS)
        else:
            rows.show(max_width=_UNLIMITED, max_rows=_UNLIMITED, max_col_width=_UNLIMITED)
    return "\n".join(map(escape_text, rendered.getvalue().rstrip("\n").split("\n"))) + "\n"
