"""The command replay: reads a range of the topics again."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import instant, topic_settings
from pipelines.cli.output import print_fields, progress
from pipelines.cli.pipeline import show_drained
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    from pipelines.lake.commit import CommitRecord
    from pipelines.operate.replay import Comparison


def replay(
    from_beginning: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--from-beginning", help="Replay everything that the topics hold.")
    ] = False,
    from_time: Annotated[
        str | None,
        typer.Option(help="Replay records that reached the brokers at or after a time: ISO 8601 or now."),
    ] = None,
    from_offset: Annotated[
        list[str] | None,
        typer.Option(metavar="PARTITION:OFFSET", help="Replay this partition from this offset. Repeatable."),
    ] = None,
    topic: Annotated[
        str | None, typer.Option(help="Replay only this topic; every topic that is ingested by default.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Replay records that reached the brokers before this time; up to the current end by default."
        ),
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Replay into a fresh lake in this folder, and compare the lake with it.")
    ] = None,
) -> None:
    """Read a range of the topics again. Harmless: events that the lake holds already are dropped as duplicates.

    With --into the lake is not changed. Exits 1 if it differs from what the topics hold.
    """
    import pipelines.operate.replay as replaying  # noqa: PLC0415

    start = _start(from_beginning, instant(from_time), from_offset)
    settings = topic_settings("replay")
    target = replaying.fresh(settings, into) if into else settings
    records: list[CommitRecord] = []
    with replaying.open_replay(settings, start, instant(until), topic) as replayed, progress("replaying") as advance:

        def report(record: "CommitRecord") -> None:
            records.append(record)
            advance(record.total("read"))

        replaying.replay(replayed, target, report)
    show_drained(records)
    if into:
        _print_comparison(replaying.compare(settings, target, replayed))


def _start(
    from_beginning: bool,  # noqa: FBT001 - as the command line has it
    from_time: datetime | None,
    from_offset: list[str] | None,
) -> "datetime | dict[int, int] | None":
    if sum((from_beginning, from_time is not None, bool(from_offset))) != 1:
        raise UsageError("give the start: one of --from-beginning, --from-time and --from-offset")
    return dict(map(_parse_offset, from_offset)) if from_offset else from_time


def _parse_offset(text: str) -> tuple[int, int]:
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise UsageError(f"--from-offset {text} is not of the form PARTITION:OFFSET, like 0:1500")
    return int(partition), int(offset)


def _print_comparison(comparison: "Comparison") -> None:
    counts = ("same", "different", "missing", "extra")
    print_fields([(name.replace("_", " "), getattr(comparison, name)) for name in counts])
    if comparison.different or comparison.missing or comparison.extra:
        raise KarmalakeError(
            f"the lake differs from what was replayed, for example in event_id {', '.join(comparison.examples)}"
        )
