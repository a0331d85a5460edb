"""The commands that take files of events: emit, backfill."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.flow import show_drained
from pipelines.cli.options import bare_settings, current_settings
from pipelines.cli.output import Advance, progress, say
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from pipelines.emit.files import Mapping
    from pipelines.lake.commit import CommitRecord


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


def emit(
    file: Annotated[Path, typer.Argument(help="A CSV, Parquet or NDJSON file.")],
    user_id: _UserId,
    time: _Time,
    time_unit: _Unit = TimeUnit.ISO,
    action_type: _Action = None,
    action_type_column: _ActionColumn = None,
    metadata: _Metadata = None,
    event_id: _EventId = None,
) -> None:
    """Publish the rows of a file as events. Sending a file again is harmless: its event ids stay the same.

    Example: `karmalake emit ratings.csv --user-id to --time time --time-unit s --action-type UserRated
    --metadata rating=feature --metadata rater_id=from`
    """
    from pipelines.emit.files import read_events  # noqa: PLC0415
    from pipelines.emit.producer import produce  # noqa: PLC0415
    from pipelines.emit.topics import ensure_topic  # noqa: PLC0415

    mapping = _mapping(user_id, time, time_unit, action_type, action_type_column, metadata, event_id)
    kafka = current_settings().kafka
    ensure_topic(kafka)
    with progress(f"emitting {file.name}") as advance:
        sent = produce(kafka, _counted(read_events(file, mapping), advance))
    say(f"{sent.records:,} events sent to {kafka.topic} in {sent.seconds:.1f} s")


def backfill(
    files: Annotated[list[Path], typer.Argument(help="CSV, Parquet or NDJSON files of history.")],
    user_id: _UserId,
    time: _Time,
    time_unit: _Unit = TimeUnit.ISO,
    action_type: _Action = None,
    action_type_column: _ActionColumn = None,
    metadata: _Metadata = None,
    event_id: _EventId = None,
) -> None:
    """Load the rows of files into the lake, without the bus: the same events, dedup and dead letters as by `emit`.

    Kill it whenever you like: the same command goes on from the last commit, and a file that is loaded already is
    passed over. Scores follow with the next `karmalake refresh`.
    """
    from pipelines.backfill import backfill as load  # noqa: PLC0415

    mapping = _mapping(user_id, time, time_unit, action_type, action_type_column, metadata, event_id)
    settings = bare_settings()
    records: list[CommitRecord] = []
    for file in files:
        with progress(f"loading {file.name}") as advance:

            def report(record: "CommitRecord", advance: Advance = advance) -> None:
                records.append(record)
                advance(record.total("read"))

            load(settings, file, mapping, report)
    show_drained(records)


def _mapping(
    user_id: str,
    time: str,
    time_unit: TimeUnit,
    action_type: str | None,
    action_type_column: str | None,
    metadata: list[str] | None,
    event_id: str | None,
) -> "Mapping":
    from pipelines.emit.files import Mapping  # noqa: PLC0415

    pairs = tuple(_pair(entry) for entry in metadata or [])
    return Mapping(user_id, time, time_unit.value, action_type, action_type_column, pairs, event_id)


def _pair(entry: str) -> tuple[str, str]:
    name, equals, column = entry.partition("=")
    if not equals or not name or not column:
        raise UsageError(f"--metadata {entry!r} is not NAME=COL")
    return name, column


def _counted(tables: "Iterable[pa.Table]", advance: Advance) -> "Iterator[pa.Table]":
    for rows in tables:
        yield rows
        advance(rows.num_rows)
