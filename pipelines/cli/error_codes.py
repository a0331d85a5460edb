"""The command errors: explains error codes and exit codes, from the operations page in the package."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import print_line, print_table
from pipelines.errors import ExitStatus, UsageError, exit_statuses

PAGE = Path("docs/operations.md")
"""The page in a checkout; a wheel contains it as pipelines/operations.md."""


def errors(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="An error code (KL-...) or an exit code.")] = None,
) -> None:
    """Explain an error code or exit code: its meaning, whether a retry may help, and what to do."""
    sections = explanations()
    if code is None:
        print_table(("exit code", "error code", "retry"), [_row(status) for status in exit_statuses()])
        print_line("`karmalake errors CODE` says what to do. Exit code 0 is success")
        return
    for status in _find(code):
        print_line(
            f"{status.code}, exit code {status.exit_code}: a retry {_row(status)[-1]}\n\n{sections[status.code]}"
        )


def explanations() -> dict[str, str]:
    """Return the section of docs/operations.md on each error code."""
    found = re.findall(r"^### (KL-[A-Z-]+)\n\n(.+?)(?=\n\n##|\Z)", _page(), re.MULTILINE | re.DOTALL)
    return dict(found)


def _find(code: str) -> list[ExitStatus]:
    found = [status for status in exit_statuses() if code.upper() == status.code or code == str(status.exit_code)]
    if not found:
        raise UsageError(f"unknown error code {code!r}: `karmalake errors` lists all")
    return found


def _row(status: ExitStatus) -> tuple[str, str, str]:
    return str(status.exit_code), status.code, "may help" if status.transient else "does not help: act first"


def _page() -> str:
    packaged = files("pipelines").joinpath(PAGE.name)
    page = packaged if packaged.is_file() else Path(__file__).parents[2] / PAGE
    return page.read_text(encoding="utf-8")
