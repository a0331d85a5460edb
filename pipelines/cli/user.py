"""The commands of one user: export, merge, rename."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.private_files import make_private_dir
from pipelines.boundary.text import amount, escape_text
from pipelines.cli.options import bare_settings, current_settings, utf8
from pipelines.cli.output import print_fields, print_line, print_table, progress
from pipelines.cli.rows import Format, write_file
from pipelines.cli.support import DryRun, Operator, number
from pipelines.errors import UsageError, one_line

if TYPE_CHECKING:
    from pipelines.operate.merge_users import Account, PreparedMerge

app = typer.Typer(no_args_is_help=True, help="Merge and rename accounts; export what names a person.")
_Why = Annotated[str, typer.Option("--why", help="The reason, recorded with the merge.")]


@app.command()
def export(
    user: Annotated[str, typer.Argument(help="The user_id.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.")],
) -> None:
    """Export everything that names a user: own events, those of others, dead letters, scores and explanations.

    A person whose accounts were merged is searched for under each user_id. Each kind is written as JSON, one object per
    line with the exact values, and as CSV in which no cell is a formula. Only this account of the machine can read the
    files. Reads all events.
    """
    from pipelines.operate.user_data import user_data  # noqa: PLC0415

    settings, user = current_settings(), utf8(user)
    _require_new_or_empty(to)
    with progress("searching"):
        found = user_data(settings, user)
    counts = {name: len(rows) for name, rows in found.items()}
    try:
        make_private_dir(to)
        for name, rows in found.items():
            write_file(rows, Format.JSON, to / f"{name}.json")
            write_file(rows, Format.SPREADSHEET, to / f"{name}.csv")
        summary = {"user_id": user, "exported": datetime.now(UTC).isoformat(), "rows": counts}
        (to / "summary.json").touch(mode=0o600)
        (to / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        cause = f"{error.filename or to} ({error.strerror or one_line(error)})"
        raise UsageError(f"cannot write {cause}: name another folder, or let this user write there") from None
    print_table(["what", "rows"], list(counts.items()))
    print_line(f"written to {to}, each as .json and .csv; summary.json has the counts")


@app.command()
def merge(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user_id that is given up.")],
    into: Annotated[str, typer.Argument(metavar="INTO", help="The user_id that remains.")],
    why: _Why,
    operator: Operator = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a flag
) -> None:
    """Merge two accounts of one person: from now on, the events of USER count for INTO.

    Events keep the user_id that they came with, and what was known before stays as it was. A merge cannot be taken
    back. Run it again to resume after a kill: it counts once. The next refresh updates the scores.
    """
    import pipelines.operate.merge_users as operate  # noqa: PLC0415

    settings = bare_settings()
    do = operate.preview_merge if dry_run else operate.merge_user
    _print_merge(do(settings, user, into, why, operator), is_dry=dry_run)


@app.command()
def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The user_id until now.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The user_id from now on, which no other user has.")],
    why: _Why,
    operator: Operator = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a flag
) -> None:
    """Give an account another user_id: from now on, events of OLD and of NEW count for NEW.

    Events keep the user_id that they came with, and what was known before stays as it was. To take it back, rename NEW
    to OLD. Run it again to resume after a kill: it counts once. The next refresh updates the scores.
    """
    import pipelines.operate.merge_users as operate  # noqa: PLC0415

    settings = bare_settings()
    do = operate.preview_rename if dry_run else operate.rename_user
    _print_merge(do(settings, old, new, why, operator), is_dry=dry_run)


def _print_merge(done: "PreparedMerge", *, is_dry: bool) -> None:
    merge = done.merge
    print_fields(
        [
            *((escape_text(account.user_id), _account(account)) for account in done.before if not done.is_recorded),
            ("after", f"{escape_text(done.after.user_id)}: {_account(done.after)}"),
            (
                "named by others",
                f"{amount(done.mentions, 'event')} in {', '.join(map(escape_text, merge.personal_keys))}",
            )
            if merge.personal_keys
            else ("named by others", "not looked for: contract.personal_keys is empty"),
        ]
    )
    if done.is_recorded:
        print_line("nothing to do: an earlier command recorded this")
    elif is_dry:
        print_line("nothing was changed")
    else:
        print_line(
            f"recorded, by {escape_text(merge.operator)}; `karmalake refresh` or a running stream updates the scores"
        )


def _account(account: "Account") -> str:
    return f"{amount(account.events, 'event')}, score {number(account.score)}"


def _require_new_or_empty(folder: Path) -> None:
    """Raise UsageError unless a folder is empty or does not exist."""
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"{folder} is a link to {folder.readlink()}, which does not exist: name a new or empty folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: name a new or empty folder")
