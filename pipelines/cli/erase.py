"""The command erase."""

from dataclasses import asdict
from typing import Annotated

import typer

from pipelines.cli.options import current_settings, utf8
from pipelines.cli.output import facts, progress, say


def erase(
    user_ids: Annotated[list[str], typer.Argument(metavar="USER_ID...", help="Whom to erase.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Erase users for good: their events, dead letters, scores and documents; what comes of them later is dropped.

    Killed half-way, run it again. It does not reach the topic, where retention rules, nor your own databases.
    """
    from pipelines.erase import erase as engine  # noqa: PLC0415

    users = [utf8(user_id) for user_id in user_ids]
    if not yes:
        typer.confirm(
            f"Erase {len(users)} users? This cannot be undone, and their user_ids are dead from then on", abort=True
        )
    settings = current_settings()
    with progress("erasing"):
        done = engine(settings, users)
    facts([(name.replace("_", " "), rows) for name, rows in asdict(done.rows).items()])
    if done.published:
        say(f"{done.published.deleted:,} documents deleted")
    elif not done.warehouse:
        say("there is no warehouse yet, or the process that keeps it current will derive and publish it without them")
    hours = settings.lake.vacuum_retention_hours
    say(f"the bytes are gone from the disk once `karmalake vacuum` has run, {hours:g} h from now or later")
