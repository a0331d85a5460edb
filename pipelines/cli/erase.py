"""The command erase."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount, escape_text
from pipelines.cli.options import current_settings, utf8
from pipelines.cli.output import print_fields, print_line, print_warning, progress
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.lake.erasure import ErasureCounts


def erase(
    user_ids: Annotated[list[str] | None, typer.Argument(metavar="[USER_ID]...", help="The users to erase.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,  # noqa: FBT002 - a flag
    without_documents: Annotated[  # noqa: FBT002 - a flag
        bool,
        typer.Option(
            "--without-documents", help="Do not delete documents: there is no document store, or it no longer exists."
        ),
    ] = False,
    count_mentions: Annotated[  # noqa: FBT002 - a flag
        bool,
        typer.Option(
            "--count-mentions", help="Also count the other users' rows that name erased users. Reads all events."
        ),
    ] = False,
    dry_run: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--dry-run", help="Only count the rows that would be removed or replaced. Reads all events.")
    ] = False,
    tombstones: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Also erase the users in this tombstones.txt, or of this data_dir or lake."),
    ] = None,
) -> None:
    """Erase users permanently: events, dead letters, scores and documents. Ingest drops their later events.

    In events of others, their user_ids at the metadata keys in contract.personal_keys are replaced by a pseudonym.
    A person whose accounts were merged is erased under each user_id. Run it again to resume after a kill. It ends with
    a list of what it does not reach, such as the topic.
    Exits 2, with nothing changed, if no document store is configured and --without-documents is not given.
    """
    import pipelines.operate.erase as erasure  # noqa: PLC0415
    from pipelines.lake.tombstone_file import find_tombstones  # noqa: PLC0415
    from pipelines.lake.tombstones import is_link  # noqa: PLC0415
    from pipelines.operate.erase_limits import list_unreached  # noqa: PLC0415

    users = [utf8(user_id) for user_id in user_ids or ()]
    imported = find_tombstones(tombstones) if tombstones else frozenset[str]()
    if not users and not imported:
        raise UsageError("name the users to erase, or give their tombstones with --tombstones")
    settings = current_settings()
    asked, users = users, erasure.all_names(settings, users, imported)
    if others := [name for name in users if name not in asked]:
        print_line(f"accounts of the same persons: {', '.join(map(escape_text, others))}")
    if dry_run:
        with progress("counting rows"):
            _print_rows(erasure.preview(settings, users, imported))
        return
    if not yes:
        others_count = sum(not is_link(each) for each in imported)
        count = f"{amount(len(users), 'user')}" + (f" and the users of {others_count} tombstones" if imported else "")
        typer.confirm(f"Erase {count}? This cannot be undone, and their user_ids can never be used again", abort=True)
    mentions = None
    with progress("erasing"):
        done = (erasure.erase_without_documents if without_documents else erasure.erase)(settings, users, imported)
    if count_mentions:
        with progress("counting mentions"):
            mentions = erasure.mentions_of_erased(settings)
    _print_rows(done.rows)
    if done.refreshed_elsewhere:
        print_line("the process that holds the warehouse derives and publishes without them at its next refresh")
    elif done.published:
        print_line(f"{amount(done.published.deleted, 'document')} deleted")
    if without_documents:
        print_warning("published documents were not deleted: delete them in their store")
    _print_vacuum_delay(settings.lake.vacuum_retention_hours, settings.lake.vacuum_interval_hours)
    print_line("not reached:")
    for sentence in list_unreached(settings, mentions):
        print_line(f"  * {sentence}")


def _print_rows(rows: "ErasureCounts") -> None:
    counts = asdict(rows)
    print_fields([(name.replace("_", " "), count) for name, count in counts.items()])
    if not any(counts.values()):
        print_warning("the lake has no row of these users: check the spelling, unless they were erased before")


def _print_vacuum_delay(retention: float, interval: float) -> None:
    print_line(
        f"the bytes stay on disk for {retention:g} h, for readers of older snapshots; then `karmalake stream` deletes "
        f"them within {interval:g} h. Without a running stream, run `karmalake vacuum`"
    )
