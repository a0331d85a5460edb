"""The command errors: what an error code or an exit code means, from the page that the package brings along."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import say, table
from pipelines.errors import Ending, UsageError, endings

PAGE = Path("docs/operations.md")
"""In a checkout; a wheel has it as pipelines/operations.md."""


def errors(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="KL-..., or the exit code.")] = None,
) -> None:
    """Explain an error code or exit code: what it means, whether another try may cure it, and what to do."""
    sections = explanations()
    if code is None:
        table(("exit code", "error code", "another try"), [_row(ending) for ending in endings()])
        say("`karmalake errors CODE` says what to do. Exit code 0: done")
        return
    for ending in _named(code):
        say(f"{ending.code}, exit code {ending.exit_code}: another try {_row(ending)[-1]}\n\n{sections[ending.code]}")


def explanations() -> dict[str, str]:
    """Return what docs/operations.md says under the heading of each error code."""
    found = re.findall(r"^### (KL-[A-Z-]+)\n\n(.+?)(?=\n\n##|\Z)", _page(), re.MULTILINE | re.DOTALL)
    return dict(found)


def _named(code: str) -> list[Ending]:
    found = [ending for ending in endings() if code.upper() == ending.code or code == str(ending.exit_code)]
    if not found:
        raise UsageError(f"there is no error code {code!r}: `karmalake errors` lists all")
    return found


def _row(ending: Ending) -> tuple[str, str, str]:
    return str(ending.exit_code), ending.code, "may cure it" if ending.transient else "cures nothing: act first"


def _page() -> str:
    shipped = files("pipelines").joinpath(PAGE.name)
    page = shipped if shipped.is_file() else Path(__file__).parents[2] / PAGE
    return page.read_text(encoding="utf-8")
