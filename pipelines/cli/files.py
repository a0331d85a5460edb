"""The commands that read files of events: emit, backfill."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import bare_settings, current_settings
from pipelines.cli.output import ProgressBar, print_error, print_line, print_table, print_warning, progress
from pipelines.cli.pipeline import show_drained
from pipelines.errors import KarmalakeError, RejectedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from pipelines.backfill import FileSummary
    from pipelines.lake.commit import CommitRecord
    from pipelines.sources.files import ColumnMapping


_MANY_FILES = 1_000
"""If a load writes more files than this beyond one per day, it advises to sort the rows."""


class TimeUnit(StrEnum):
    """The format of a time column."""

    S = "s"
    MS = "ms"
    US = "us"
    ISO = "iso"


_UserId = Annotated[str, typer.Option(metavar="COL", help="The column of the user whose reputation the event affects.")]
_Time = Annotated[str, typer.Option(metavar="COL", help="The column of the event time.")]
_Unit = Annotated[TimeUnit, typer.Option(help="The format of the time column: s, ms or us since 1970, or ISO 8601.")]
_Action = Annotated[str | None, typer.Option(metavar="NAME", help="The action_type of every row.")]
_ActionColumn = Annotated[
    str | None, typer.Option(metavar="COL", help="The column of the action_type, instead of --action-type.")
]
_Metadata = Annotated[
    list[str] | None, typer.Option(metavar="NAME=COL", help="A metadata entry and its column. Repeatable.")
]
_EventId = Annotated[
    str | None, typer.Option(metavar="COL", help="The column of the event_id; a digest of the row by default.")
]
_Delimiter = Annotated[
    str | None, typer.Option(metavar="CHAR", help="The delimiter of CSV, such as ';' or tab; a comma by default.")
]


def emit(  # noqa: PLR0913, PLR0917 - options of the command line
    file: Annotated[Path, typer.Argument(help="A CSV, Parquet or NDJSON file.")],
    user_id: _UserId,
    time: _Time,
    time_unit: _Unit = TimeUnit.ISO,
    action_type: _Action = None,
    action_type_column: _ActionColumn = None,
    metadata: _Metadata = None,
    event_id: _EventId = None,
    delimiter: _Delimiter = None,
) -> None:
    """Publish the rows of a file as events. Sending a file again is harmless: its event_ids are the same.

    Example: `karmalake emit ratings.csv --user-id to --time time --time-unit s --action-type UserRated
    --metadata rating=feature --metadata rater_id=from`
    """
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from pipelines.emit.producer import produce  # noqa: PLC0415
    from pipelines.sources.files import read_events  # noqa: PLC0415

    mapping = _mapping(user_id, time, time_unit, action_type, action_type_column, metadata, event_id, delimiter)
    kafka = current_settings().kafka
    ensure_topic(kafka)
    with progress(f"emitting {file.name}") as advance:
        sent = produce(kafka, _counted(read_events(file, mapping), advance))
    print_line(f"{sent.records:,} events sent to {kafka.topic} in {sent.seconds:.1f} s")


def backfill(  # noqa: PLR0913, PLR0917 - options of the command line
    files: Annotated[list[Path], typer.Argument(help="CSV, Parquet or NDJSON files of history.")],
    user_id: _UserId,
    time: _Time,
    time_unit: _Unit = TimeUnit.ISO,
    action_type: _Action = None,
    action_type_column: _ActionColumn = None,
    metadata: _Metadata = None,
    event_id: _EventId = None,
    delimiter: _Delimiter = None,
) -> None:
    """Load files of history into the lake without the bus: same events, dedup and dead letters as with `emit`.

    Safe to kill: the same command continues from the last commit, and skips files that are already loaded. A refused
    file does not stop the others. Exits 0 if every file is loaded and has at least one event.
    The next `karmalake refresh` updates the scores.
    """
    from pipelines.backfill import backfill as load  # noqa: PLC0415
    from pipelines.backfill import summarize_commits  # noqa: PLC0415

    mapping = _mapping(user_id, time, time_unit, action_type, action_type_column, metadata, event_id, delimiter)
    settings = bare_settings()
    records: list[CommitRecord] = []
    refused: dict[Path, KarmalakeError] = {}
    for file in files:
        with progress(f"loading {file.name}") as advance:

            def report(record: "CommitRecord", advance: ProgressBar = advance) -> None:
                records.append(record)
                advance(record.total("read"))

            try:
                load(settings, file, mapping, report)
            except (UsageError, RejectedError) as error:
                refused[file] = error
    show_drained(records)
    _warn_if_unsorted(records)
    loaded = [file for file in files if file not in refused]
    accounts = summarize_commits(settings, loaded, mapping) if loaded else []
    _show_outcomes(accounts, mapping)
    refused |= {
        account.path: _without_events(account) for account in accounts if 0 < account.rows == account.dead_letters
    }
    for file, error in refused.items():
        print_error(f"{file}: {str(error).removeprefix(f'{file.resolve()}: ')}", error.code)
    if refused:
        print_line(f"{len(files) - len(refused)} of {len(files)} files loaded")
        raise typer.Exit(next(iter(refused.values())).exit_code)


def _warn_if_unsorted(records: "list[CommitRecord]") -> None:
    """Print advice if commits share so many days that sorting the rows by time would save many files."""
    days = {day for record in records for day in record.days}
    files = sum(len(record.days) for record in records)
    if files - len(days) > _MANY_FILES:
        print_warning(
            f"{files:,} files were written for {len(days):,} days, since the rows are not in order of time: "
            "karmalake compact merges them; sort further files by time before loading them"
        )


def _show_outcomes(accounts: "list[FileSummary]", mapping: "ColumnMapping") -> None:
    """Print the outcome of each file over all attempts, and the next step for rows that were not accepted."""
    names = ("rows", "accepted", "duplicates", "conflicts", "dead_letters", "erased")
    if len(accounts) > 1:
        columns = ["file", *(name.replace("_", " ") for name in names)]
        print_table(columns, [(account.path, *(getattr(account, name) for name in names)) for account in accounts])
    elif accounts:
        print_line(
            f"{accounts[0].path} over all attempts: {accounts[0].rows:,} rows, {accounts[0].accepted:,} accepted"
        )
    for account in accounts:
        for step in next_steps(account, mapping):
            print_warning(f"{account.path}: {step}")


def _without_events(account: "FileSummary") -> RejectedError:
    return RejectedError(
        f"none of its {account.rows:,} rows is a valid event: check the options. `karmalake dead-letters list` has the "
        "reasons, `karmalake dead-letters discard` discards the rows"
    )


def next_steps(account: "FileSummary", mapping: "ColumnMapping") -> "Iterator[str]":
    """Yield the next step for the rows of a file that were not accepted, by outcome."""
    if account.duplicates:
        why = "the lake already holds their event_id with the same content"
        if mapping.event_id is None:
            why = (
                "they equal an earlier row of the file, or one loaded before. If equal rows are distinct events, "
                "name the column that distinguishes them with --event-id"
            )
        yield f"{account.duplicates:,} rows are duplicates: {why}"
    if account.conflicts:
        yield (
            f"{account.conflicts:,} rows are conflicts: the lake holds their event_id with other content, and the "
            "first one counts; the view conflicts shows both: karmalake sql"
        )
    if account.dead_letters:
        reasons = ", ".join(f"{reason}: {rows:,}" for reason, rows in account.reasons.items())
        yield (
            f"{account.dead_letters:,} rows are dead letters ({reasons or 'discarded or requeued since'}): "
            "karmalake dead-letters list shows them; fix the file and load it again: each event counts once"
        )
    if account.erased:
        yield f"{account.erased:,} rows are of erased users, and were dropped"


def _mapping(
    user_id: str,
    time: str,
    time_unit: TimeUnit,
    action_type: str | None,
    action_type_column: str | None,
    metadata: list[str] | None,
    event_id: str | None,
    delimiter: str | None,
) -> "ColumnMapping":
    from pipelines.sources.files import ColumnMapping  # noqa: PLC0415

    pairs = tuple(_pair(entry) for entry in metadata or [])
    separator = "\t" if delimiter == "tab" else delimiter
    return ColumnMapping(user_id, time, time_unit.value, action_type, action_type_column, pairs, event_id, separator)


def _pair(entry: str) -> tuple[str, str]:
    name, equals, column = entry.partition("=")
    if not equals or not name or not column:
        raise UsageError(f"--metadata {entry!r} is not NAME=COL")
    return name, column


def _counted(tables: "Iterable[pa.Table]", advance: ProgressBar) -> "Iterator[pa.Table]":
    for rows in tables:
        yield rows
        advance(rows.num_rows)
