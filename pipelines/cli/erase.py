"""The command erase."""

from dataclasses import asdict
from typing import Annotated

import typer

from pipelines.cli.options import current_settings, utf8
from pipelines.cli.output import facts, progress, say, warn
from pipelines.errors import UsageError


def erase(
    user_ids: Annotated[list[str] | None, typer.Argument(metavar="[USER_ID]...", help="Whom to erase.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002 - a flag
    without_documents: Annotated[  # noqa: FBT002 - a flag
        bool,
        typer.Option("--without-documents", help="Leave the store of documents alone: there is none, or it is gone."),
    ] = False,
    tombstones: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="Also erase whom a tombstones.txt, another data_dir or lake says was erased."
        ),
    ] = None,
) -> None:
    """Erase users for good: their events, dead letters, scores and documents; what comes of them later is dropped.

    Killed half-way, run it again. At the end it lists what it does not reach, such as the topic, where retention rules.
    Exits 2, with nothing changed, where no store of documents is configured and --without-documents is not said.
    """
    import pipelines.operate.erase as engine  # noqa: PLC0415
    from pipelines.lake.kept_tombstones import tombstones_at  # noqa: PLC0415

    users = [utf8(user_id) for user_id in user_ids or ()]
    taken = tombstones_at(tombstones) if tombstones else frozenset[str]()
    if not users and not taken:
        raise UsageError("name the users to erase, or a place of tombstones with --tombstones")
    if not yes:
        count = f"{len(users)} users" + (f" and those of {len(taken)} tombstones" if taken else "")
        typer.confirm(f"Erase {count}? This cannot be undone, and their user_ids are dead from then on", abort=True)
    settings = current_settings()
    with progress("erasing"):
        done = (engine.erase_without_documents if without_documents else engine.erase)(settings, users, taken)
    facts([(name.replace("_", " "), rows) for name, rows in asdict(done.rows).items()])
    if done.kept:
        say("the process that keeps the warehouse current derives and publishes without them, within its interval")
    elif done.published:
        say(f"{done.published.deleted:,} documents deleted")
    if without_documents:
        warn("documents that were ever published are still where they were: delete them there")
    _say_when_bytes_go(settings.lake.vacuum_retention_hours, settings.lake.vacuum_interval_hours)
    say("not reached:")
    for sentence in done.beyond:
        say(f"  * {sentence}")


def _say_when_bytes_go(retention: float, interval: float) -> None:
    say(
        f"the bytes stay on the disk for {retention:g} h, for readers of older snapshots: then `karmalake stream` "
        f"removes them, within {interval:g} h more; where none runs, `karmalake vacuum` does"
    )
