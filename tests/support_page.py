"""The commands of docs/support.md, and what they print: `python -m tests.support_page` writes it to the page.

Run in a folder of their own, without a broker or a cache. What differs from run to run is replaced: that folder, the
time of the run, seconds, and ids of batches and topics.
"""

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from rich.table import Table
from rich.text import Text

from pipelines.cli import main, output
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "support.md"
_BLOCK = re.compile(r"^```(csv|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HOME = "/home/sue"
_NOW = "2026-03-16 08:00:00"
_ID = re.compile(r"\b[0-9a-f]{32}\b")
_SECONDS = re.compile(r"^(seconds +)[0-9.]+$", re.MULTILINE)
_FILES = ("rides.csv", "tips.csv")


def page_with_outputs(page: str, folder: Path) -> str:
    """Return a page with the files of its csv blocks and the outputs of its console blocks, run one after another."""
    files, began = iter(_FILES), datetime.now(UTC)

    def filled(block: re.Match[str]) -> str:
        kind, text = block.groups()
        if kind == "csv":
            (folder / next(files)).write_text(text, encoding="utf-8")
            return block[0]
        command = text.splitlines()[0]
        printed = _output(command.removeprefix("$ karmalake ").replace(_HOME, str(folder)))
        return f"```console\n{command}\n{_stable(printed, folder, began)}```"

    with _inside(folder):
        return _BLOCK.sub(filled, page)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Run commands in a folder, with its settings alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
    real: Callable[[Table], None] = output._print_grid  # pyright: ignore[reportPrivateUsage]
    named = mock.patch.object(output, "_print_grid", lambda grid: _print_home(grid, str(folder), real))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with mock.patch.dict(os.environ, kept | {"TERM": "dumb"}, clear=True), contextlib.chdir(folder), named:
        yield


def _print_home(grid: Table, folder: str, real: Callable[[Table], None]) -> None:
    """Name a folder `_HOME` in the cells of a table, before their length decides the columns."""
    for cell in (cell for column in grid.columns for cell in column.cells):
        if isinstance(cell, Text):
            cell.plain = cell.plain.replace(folder, _HOME)
    real(grid)


def _output(command: str) -> str:
    """Return what a command prints to standard output and standard error."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with (
        mock.patch.object(sys, "argv", ["karmalake", *shlex.split(command)]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
    ):
        main()
    printed.seek(0)
    return printed.read()


def _stable(printed: str, folder: Path, began: datetime) -> str:
    """Return an output without the folder, the time of the run and seconds."""
    printed = printed.replace(str(folder), _HOME)
    days = "|".join(sorted({f"{moment:%F}" for moment in (began, datetime.now(UTC))}))
    printed = re.sub(rf"(?:{days}) [0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(?:\.[0-9]+)?", _NOW, printed)
    printed = _ID.sub("0" * 32, printed)
    return _SECONDS.sub(r"\g<1>0.41", printed)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        PAGE.write_text(page_with_outputs(PAGE.read_text(encoding="utf-8"), Path(temporary)), encoding="utf-8")
