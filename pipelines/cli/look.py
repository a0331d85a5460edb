"""The commands that only look: show, scores, sql, doctor."""

import sys
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import current_settings, instant
from pipelines.cli.output import fail, out, say, warn
from pipelines.errors import UsageError

if TYPE_CHECKING:
    import polars as pl


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    """A line a row (NDJSON)."""
    PARQUET = "parquet"


def show(user: Annotated[str, typer.Argument(help="The user_id.")]) -> None:
    """Print the document that Redis serves for a user. Exits 1 when there is none."""
    from pipelines.serving.read import published, read_reputation  # noqa: PLC0415

    settings = current_settings()
    document = read_reputation(user, settings)
    info = published(settings)
    if document is None:
        fail(f"no document for {user!r}" + ("" if info else ": nothing is published yet, run `karmalake publish`"))
        raise typer.Exit(1)
    out.print_json(data=document)
    if info is not None and info.staleness_seconds > settings.reputation.max_staleness_seconds:
        warn(f"what is served is {info.staleness_seconds:,.0f} s old: is `karmalake stream` running?")


def scores(
    as_of: Annotated[str | None, typer.Option(help="As of this time instead of now, ISO 8601.")] = None,
    known_at: Annotated[
        str | None,
        typer.Option(help="Only what was committed before this time; without --as-of, as of this time too."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A shipped policy or a file, instead of the settings'.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = Format.CSV,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Compute the scores of all users from the lake, at any time and by any policy; publishes nothing."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from pipelines.lake.history import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation import scores as engine  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    settings = current_settings()
    rules = load_policy(policy or settings.reputation.policy)
    known = instant(known_at)
    moment = instant(as_of) or known or datetime.now(UTC)
    write(engine.scores(take_snapshot(open_lake(settings.lake_dir)), rules, moment, known), form, output)


def sql(
    query: Annotated[str, typer.Argument(help="A query, or - to read it from standard input.")],
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Query the warehouse, read-only: reputation, user_days, trends_*, events, commits, dead_letters, ..."""
    import duckdb  # noqa: PLC0415

    from pipelines.reputation.warehouse import Warehouse  # noqa: PLC0415

    text = sys.stdin.read() if query == "-" else query
    with Warehouse(current_settings().warehouse_path) as warehouse:
        try:
            rows = warehouse.sql(text)
        except duckdb.Error as error:
            raise UsageError(f"the query failed: {error}") from None
    write(rows, form, output)


def write(rows: "pl.DataFrame", form: Format, output: Path | None) -> None:
    """Write rows as `form` to a file or to standard output. Raises UsageError when that cannot be."""
    if form is Format.PARQUET and output is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: name a file with --output, or redirect")
    if output is None:
        sys.stdout.buffer.write(_encode(rows, form))
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(_encode(rows, form))
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error}") from None
    say(f"{rows.height:,} rows written to {output}")


def doctor() -> None:
    """Look at the set-up and say what is wrong with it, and how to mend it. Exits 1 if something is."""
    from pipelines.doctor import examine  # noqa: PLC0415

    failed = 0
    for finding in examine(current_settings()):
        mark = "[green]ok[/green]  " if finding.good else "[bold red]bad[/bold red] "
        out.print(mark, end=" ")
        say(f"{finding.subject}: {finding.sentence}")
        failed += not finding.good
    if failed:
        raise typer.Exit(1)


def _encode(rows: "pl.DataFrame", form: Format) -> bytes:
    buffer = BytesIO()
    match form:
        case Format.CSV:
            rows.write_csv(buffer)
        case Format.JSON:
            rows.write_ndjson(buffer)
        case Format.PARQUET:
            rows.write_parquet(buffer)
        case Format.TABLE:
            buffer.write(_draw(rows).encode())
    return buffer.getvalue()


def _draw(rows: "pl.DataFrame") -> str:
    import polars as pl  # noqa: PLC0415

    with pl.Config(
        tbl_rows=40,
        tbl_cols=-1,
        tbl_hide_dataframe_shape=rows.height <= 40,
        tbl_hide_column_data_types=True,
        fmt_str_lengths=60,
        tbl_width_chars=max(out.width, 80),
    ):
        return f"{rows}\n"
