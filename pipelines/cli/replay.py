"""The command replay: what was read before, read again."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.flow import show_drained
from pipelines.cli.options import current_settings, instant
from pipelines.cli.output import facts, progress
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    from pipelines.lake.commit import CommitRecord
    from pipelines.operate.replay import Comparison


def replay(
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="All that the topic holds.")] = False,  # noqa: FBT002 - a flag
    from_time: Annotated[str | None, typer.Option(help="What the brokers took from this time on, ISO 8601.")] = None,
    from_offset: Annotated[
        list[str] | None, typer.Option(metavar="PARTITION:OFFSET", help="From here on; repeat it for more partitions.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="What the brokers took before this time; else all of now.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Make a fresh lake in this folder instead, and compare the lake with it.")
    ] = None,
) -> None:
    """Read a stretch of the topic again; what the lake has already is dropped, so it is always harmless.

    With --into nothing of the lake is touched; exits 1 if what the bus holds is not what was made of it.
    """
    import pipelines.operate.replay as engine  # noqa: PLC0415

    start = _start(from_beginning, instant(from_time), from_offset)
    settings = current_settings()
    target = engine.fresh(settings, into) if into else settings
    records: list[CommitRecord] = []
    with engine.open_replay(settings, start, instant(until)) as replayed, progress("replaying") as advance:

        def report(record: "CommitRecord") -> None:
            records.append(record)
            advance(record.total("read"))

        engine.replay(replayed, target, report)
    show_drained(records)
    if into:
        _show(engine.compare(settings, target, replayed.stretch))


def _start(
    from_beginning: bool,  # noqa: FBT001 - as the command line has it
    from_time: datetime | None,
    from_offset: list[str] | None,
) -> "datetime | dict[int, int] | None":
    if sum((from_beginning, from_time is not None, bool(from_offset))) != 1:
        raise UsageError("say from where: one of --from-beginning, --from-time and --from-offset")
    return dict(map(_place, from_offset)) if from_offset else from_time


def _place(text: str) -> tuple[int, int]:
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise UsageError(f"--from-offset {text}: write it as PARTITION:OFFSET, like 0:1500")
    return int(partition), int(offset)


def _show(found: "Comparison") -> None:
    counts = ("same", "different", "missing", "made_up")
    facts([(name.replace("_", " "), getattr(found, name)) for name in counts])
    if found.different or found.missing or found.made_up:
        raise KarmalakeError(f"the lake is not what the topic holds; for example {', '.join(found.examples)}")
