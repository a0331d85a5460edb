"""The commands of one user: export."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines.boundary.private_files import make_private_dir
from pipelines.cli.options import current_settings, utf8
from pipelines.cli.output import print_line, print_table, progress
from pipelines.cli.rows import Format, write_file
from pipelines.errors import UsageError, one_line

app = typer.Typer(no_args_is_help=True, help="Answer a person who asks for their data.")


@app.callback()
def _user() -> None:  # pyright: ignore[reportUnusedFunction] - called by typer: it makes `user` a group
    pass


@app.command()
def export(
    user: Annotated[str, typer.Argument(help="The user_id.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.")],
) -> None:
    """Export everything that names a user: own events, those of others, dead letters, scores and explanations.

    Each is written as JSON, one object per line with the exact values, and as CSV in which no cell is a formula. Only
    this account of the machine can read the files. Reads all events.
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


def _require_new_or_empty(folder: Path) -> None:
    """Raise UsageError unless a folder is empty or does not exist."""
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"{folder} is a link to {folder.readlink()}, which does not exist: name a new or empty folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: name a new or empty folder")
