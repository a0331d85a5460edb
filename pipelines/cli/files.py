"""The commands that take files of events: emit, backfill."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.flow import show_drained
from pipelines.cli.options import bare_settings, current_settings
from pipelines.cli.output import Advance, fail, progress, say, table, warn
from pipelines.errors import KarmalakeError, RejectedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from pipelines.backfill import Account
    from pipelines.lake.commit import CommitRecord
    from pipelines.sources.files import Mapping


class TimeUnit(StrEnum):
    """What a time column holds."""

    S = "s"
    MS = "ms"
    US = "us"
    ISO = "iso"


_UserId = Annotated[str, typer.Option(metavar="COL", help="The column of the user whose reputation it is about.")]
_Time = Annotated[str, typer.Option(metavar="COL", help="The column of when it happened.")]
_Unit = Annotated[TimeUnit, typer.Option(help="What the time column holds: an epoch, or ISO 8601.")]
_Action = Annotated[str | None, typer.Option(metavar="NAME", help="The action_type of every row.")]
_ActionColumn = Annotated[str | None, typer.Option(metavar="COL", help="Or the column that holds it.")]
_Metadata = Annotated[
    list[str] | None, typer.Option(metavar="NAME=COL", help="A metadata entry and its column; repeatable.")
]
_EventId = Annotated[
    str | None, typer.Option(metavar="COL", help="The column of event ids; without it, a digest of the row.")
]
_Delimiter = Annotated[
    str | None, typer.Option(metavar="CHAR", help="What separates the values of CSV instead of a comma: ';', tab.")
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
    """Publish the rows of a file as events. Sending a file again is harmless: its event ids stay the same.

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
    say(f"{sent.records:,} events sent to {kafka.topic} in {sent.seconds:.1f} s")


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
    """Load the rows of files into the lake, without the bus: the same events, dedup and dead letters as by `emit`.

    Kill it whenever you like: the same command goes on from the last commit, and a file that is loaded already is
    passed over. A file that is refused does not keep the others from being loaded. Exits 0 if each of them is
    loaded, and has an event.
    Scores follow with the next `karmalake refresh`.
    """
    from pipelines.backfill import backfill as load  # noqa: PLC0415
    from pipelines.backfill import recorded  # noqa: PLC0415

    mapping = _mapping(user_id, time, time_unit, action_type, action_type_column, metadata, event_id, delimiter)
    settings = bare_settings()
    records: list[CommitRecord] = []
    refused: dict[Path, KarmalakeError] = {}
    for file in files:
        with progress(f"loading {file.name}") as advance:

            def report(record: "CommitRecord", advance: Advance = advance) -> None:
                records.append(record)
                advance(record.total("read"))

            try:
                load(settings, file, mapping, report)
            except (UsageError, RejectedError) as error:
                refused[file] = error
    show_drained(records)
    loaded = [file for file in files if file not in refused]
    accounts = recorded(settings, loaded, mapping) if loaded else []
    _show_outcomes(accounts, mapping)
    refused |= {
        account.path: _without_events(account) for account in accounts if 0 < account.rows == account.dead_letters
    }
    for file, error in refused.items():
        fail(f"{file}: {str(error).removeprefix(f'{file.resolve()}: ')}", error.code)
    if refused:
        say(f"{len(files) - len(refused)} of {len(files)} files are loaded")
        raise typer.Exit(next(iter(refused.values())).exit_code)


def _show_outcomes(accounts: "list[Account]", mapping: "Mapping") -> None:
    """Print what became of each file over all attempts, and the next step for every fate but accepted."""
    names = ("rows", "accepted", "duplicates", "conflicts", "dead_letters", "erased")
    if len(accounts) > 1:
        columns = ["file", *(name.replace("_", " ") for name in names)]
        table(columns, [(account.path, *(getattr(account, name) for name in names)) for account in accounts])
    elif accounts:
        say(f"{accounts[0].path} by the lake's records: {accounts[0].rows:,} rows, {accounts[0].accepted:,} accepted")
    for account in accounts:
        for step in next_steps(account, mapping):
            warn(f"{account.path}: {step}")


def _without_events(account: "Account") -> RejectedError:
    return RejectedError(
        f"none of its {account.rows:,} rows is an event: check the options; karmalake dead-letters list says why, and "
        "dead-letters discard clears them away"
    )


def next_steps(account: "Account", mapping: "Mapping") -> "Iterator[str]":
    """Yield what a person can do about each fate of a file's rows but accepted."""
    if account.duplicates:
        why = "their event_id is in the lake already, with the same content"
        if mapping.event_id is None:
            why = (
                "they equal an earlier row of the file, or one that was loaded before. If equal rows are events of "
                "their own, give the column that tells them apart with --event-id"
            )
        yield f"{account.duplicates:,} rows are duplicates: {why}"
    if account.conflicts:
        yield (
            f"{account.conflicts:,} rows are conflicts: their event_id is in the lake with other content, and the "
            "first stands; the view conflicts has both: karmalake sql"
        )
    if account.dead_letters:
        reasons = ", ".join(f"{reason}: {rows:,}" for reason, rows in account.reasons.items())
        yield (
            f"{account.dead_letters:,} rows are dead letters ({reasons or 'discarded or requeued since'}): "
            "karmalake dead-letters list shows them; correct the file and load it again: each event counts once"
        )
    if account.erased:
        yield f"{account.erased:,} rows are of users who were erased, and stay out"


def _mapping(
    user_id: str,
    time: str,
    time_unit: TimeUnit,
    action_type: str | None,
    action_type_column: str | None,
    metadata: list[str] | None,
    event_id: str | None,
    delimiter: str | None,
) -> "Mapping":
    from pipelines.sources.files import Mapping  # noqa: PLC0415

    pairs = tuple(_pair(entry) for entry in metadata or [])
    separator = "\t" if delimiter == "tab" else delimiter
    return Mapping(user_id, time, time_unit.value, action_type, action_type_column, pairs, event_id, separator)


def _pair(entry: str) -> tuple[str, str]:
    name, equals, column = entry.partition("=")
    if not equals or not name or not column:
        raise UsageError(f"--metadata {entry!r} is not NAME=COL")
    return name, column


def _counted(tables: "Iterable[pa.Table]", advance: Advance) -> "Iterator[pa.Table]":
    for rows in tables:
        yield rows
        advance(rows.num_rows)
