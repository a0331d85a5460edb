"""The commands of loads: list, withdraw."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount
from pipelines.cli.options import bare_settings, utf8
from pipelines.cli.output import print_fields, print_line, print_unfolded_table, print_warning, progress
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from pipelines.operate.loads import Later, Preview

app = typer.Typer(no_args_is_help=True, help="List the loads of files and of mapped topics, or take one back.")


@app.command(name="list")
def list_command(
    batches: Annotated[bool, typer.Option("--batches", help="A row for each batch of a load.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """List loads: a file under one column mapping, or the topics of a source file as that was then.

    Topics in our own contract are not listed: their producers say what an event is.
    """
    from pipelines.operate.loads import list_loads  # noqa: PLC0415

    loads = list_loads(bare_settings(), by_batch=batches)
    if not loads:
        print_line("no file and no mapped topic was loaded")
        return
    rows = [{**load, "state": f"withdrawn: {load['why']}" if load["why"] else load["state"]} for load in loads]
    columns = [name for name in loads[0] if name != "why"]
    print_unfolded_table(
        [name.replace("_", " ") for name in columns], [tuple(row[name] for name in columns) for row in rows]
    )


@app.command()
def withdraw(
    loads: Annotated[
        list[str] | None, typer.Argument(metavar="[LOAD|BATCH]...", help="Loads or batches, as `list` shows them.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="PATH", help="Every load of this file, under any mapping.")
    ] = None,
    why: Annotated[str, typer.Option(help="The reason, recorded with the commit.")] = "",
    dry_run: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--dry-run", help="Show what would be removed and what depends on it; change nothing.")
    ] = False,
) -> None:
    """Take loads back: remove their events by one commit, as if they had never been loaded.

    The event_ids are free again, and a file can be loaded again from its start. A batch of a file stands for its load.
    Records of a topic are read again by `karmalake replay`, under the source as it is then.
    Run it again to resume after a kill. The next refresh updates the scores; a vacuum deletes the bytes.
    """
    import pipelines.operate.loads as operate  # noqa: PLC0415

    settings = bare_settings()
    names = [utf8(name) for name in loads or ()]
    if file is not None:
        names += operate.loads_of_file(settings, utf8(file))
    if not names:
        raise UsageError("name the loads or batches to withdraw, or a file with --file: `karmalake loads list`")
    found = operate.preview_withdrawal(settings, names)
    if dry_run:
        _print_preview(found)
        print_line("nothing was changed")
        return
    with progress("withdrawing"):
        done = operate.withdraw_loads(settings, names, why)
    if done.record is None:
        print_line("nothing to withdraw: all of it was withdrawn before")
        return
    _print_preview(found)
    removed = sum(each.events for each in done.record.withdrawn)
    print_line(
        f"commit {done.record.version}: {amount(removed, 'event')} withdrawn; `karmalake refresh` or a running "
        f"stream updates "
        "the scores"
    )


def _print_preview(found: "Preview") -> None:
    days = f" ({found.first_day} to {found.last_day})" if found.events else ""
    print_fields(
        [
            ("batches", found.batches),
            ("events", f"{found.events:,}{days}"),
            ("users", found.users),
            ("dead letters to close", found.dead_letters),
        ]
    )
    for step in dependents(found):
        print_warning(step)


def dependents(found: "Preview") -> "Iterator[str]":
    """Yield a sentence about each thing that depends on events to be withdrawn, with what to do."""
    for each in found.later:
        if each.conflicts:
            refused = amount(each.conflicts, "event was refused as a conflict", "events were refused as conflicts")
            yield f"{each.load}: {refused} with events of this load; {_way_back(each)}"
        if each.duplicates:
            yield (
                f"{each.load}: {each.duplicates:,} of its rows or records were duplicates when they came. Those that "
                f"repeat others of its own still count; if some repeat events of this load, {_way_back(each)}"
            )
    if found.targeting:
        yield (
            f"{found.targeting:,} retractions or corrections that stay name events of this load: they have no effect "
            "until these events are loaded again"
        )


def _way_back(later: "Later") -> str:
    if later.topic.startswith("file:"):
        return f"to count them, withdraw {later.load}, too, and load {later.topic.removeprefix('file:')} again"
    return "`karmalake replay --from-beginning` brings them"


def warn_of_withdrawn(known_at: "datetime | None") -> None:
    """Say what an answer as known at a moment lacks: the events that were withdrawn since."""
    if known_at is None:
        return
    from pipelines.operate.loads import withdrawn_since  # noqa: PLC0415

    if count := withdrawn_since(bare_settings(), known_at):
        print_warning(
            f"{amount(count, 'event')} that the lake had then, withdrawn since, not in this answer: "
            "`karmalake loads list` shows their loads"
        )
