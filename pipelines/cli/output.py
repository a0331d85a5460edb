"""Terminal output: lines, tables, progress and errors, independent of their content.

Commands print only through this module. Ids come from producers and are untrusted: characters that control a terminal,
break a line or change its direction are escaped like in Python, and in JSON as JSON does. Rows written to a pipe or a
file keep their bytes.
"""

import json
import logging
import shutil
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.console import Console, ConsoleOptions
from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from pipelines.boundary.text import CONTROL_CHARS, escape_lines, escape_text
from pipelines.errors import KarmalakeError, explain_command

_STRIDE = 1_000
_MAX_WIDTH = 100_000
T = TypeVar("T")

_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in CONTROL_CHARS if chr(code) != "\n"}
_CHECK_RESULTS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("not checked", "yellow")}
_CHECK_RESULT_WIDTH = max(len(text) for text, _ in _CHECK_RESULTS.values())

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line, without interpreting markup."""
    out.print(Text(escape_lines(text)))


def print_title(text: str) -> None:
    """Print a title, after an empty line."""
    out.print(Text("\n" + escape_lines(text), style="bold"))


def print_note(text: str) -> None:
    """Print a dimmed line that explains the one before."""
    out.print(Text(escape_lines(text), style="dim"))


def print_check(text: str, note: str, *, passed: bool | None) -> None:
    """Print the result of a check, its text and a note; passed is None if it could not be checked."""
    mark, style = _CHECK_RESULTS[passed]
    line = Text(f"{mark:{_CHECK_RESULT_WIDTH}} ", style=style).append(escape_lines(text), style="not bold default")
    out.print(line.append(f" ({escape_lines(note)})", style="not bold default dim") if note else line)


def print_document(document: object, indent: int | None = 2) -> None:
    """Print a JSON document, with terminal control characters escaped."""
    text = json.dumps(document, ensure_ascii=False, indent=indent, default=str)
    out.print(JSONHighlighter()(Text(text.translate(_JSON_ESCAPES))))


def print_file(path: Path, *, is_json: bool = False) -> None:
    """Copy a text file to standard output: to a terminal with control characters escaped, otherwise unchanged."""
    if not on_terminal():
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for line in file:
            sys.stdout.write(line.translate(_JSON_ESCAPES) if is_json else escape_lines(line))
    sys.stdout.flush()


def on_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return out.is_terminal or sys.stdout.isatty()


def print_error(text: str, code: str = KarmalakeError.code) -> None:
    """Print an error with its code, and the command that explains it."""
    err.print(Text(f"error {code}: ", style="bold red").append(Text(escape_lines(text), style="not bold default")))
    err.print(Text(f"       see {explain_command(code)}", style="dim"))


def print_metrics_address(address: str | None) -> None:
    """Print where a long-lived process serves its metrics, if it does."""
    if address is not None:
        print_line(f"metrics at http://{address}/metrics")


def print_warning(text: str) -> None:
    """Print a warning."""
    err.print(Text("warning: ", style="bold yellow").append(Text(escape_lines(text), style="not bold default")))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under column names, with numbers right-aligned; on a narrow terminal, cells wrap."""
    _print_grid(_grid(columns, rows))


def print_unfolded_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print like `print_table`, each row on one line whatever the width, so that its ids can be copied."""
    _print_unfolded(_grid(columns, rows))


def _print_grid(grid: Table) -> None:
    """Print a grid; its cells fold on a narrow terminal. A pipe has no width: there, each row is one line."""
    if out.is_terminal:
        _print_lines(grid, out.options)
    else:
        _print_unfolded(grid)


def _print_unfolded(grid: Table) -> None:
    widest = out.options.update(max_width=_MAX_WIDTH)
    _print_lines(grid, widest.update(width=Measurement.get(out, widest, grid).maximum))


def _print_lines(grid: Table, options: ConsoleOptions) -> None:
    """Print a grid without the spaces that fill its last column."""
    lines = out.render_lines(grid, options, pad=False)
    out.print(Segments([part for line in lines for part in [*_strip_end(line), Segment.line()]]), end="")


def _strip_end(line: list[Segment]) -> list[Segment]:
    kept = len(line)
    while kept and not line[kept - 1].text.strip():
        kept -= 1
    return [*line[: kept - 1], Segment(line[kept - 1].text.rstrip(), line[kept - 1].style)] if kept else []


def _grid(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    rows = [tuple(row) for row in rows]
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        grid.add_column(
            Text(escape_text(column)),
            justify="right" if _are_numbers(row[index] for row in rows) else "left",
            overflow="fold",
        )
    for row in rows:
        grid.add_row(*(Text(_format(value)) for value in row))
    return grid


def print_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one line each; values are right-aligned if all are numbers."""
    pairs = list(pairs)
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim")
    grid.add_column(justify="right" if _are_numbers(value for _, value in pairs) else "left", overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(escape_text(name)), Text(escape_lines(value) if isinstance(value, str) else _format(value)))
    _print_grid(grid)


@contextmanager
def progress(description: str, total: int | None = None) -> Generator["ProgressBar"]:
    """Show a progress bar on a terminal, nothing elsewhere; yields the bar, to be called with each step.

    The bar also shows what `pipelines` logs meanwhile.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        advance = ProgressBar(bar, description, total)
        with _show_logs(advance):
            yield advance


@contextmanager
def _show_logs(advance: "ProgressBar") -> Generator[None]:
    """Show log messages beside the bar."""
    logger, handler = logging.getLogger("pipelines"), logging.Handler(logging.INFO)
    handler.emit = lambda record: advance.show(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class ProgressBar:
    """A progress bar that is advanced by calling it."""

    def __init__(self, bar: Progress, description: str, total: int | None) -> None:
        self._bar = bar
        self._description = escape_text(description)
        self._task = bar.add_task(escape(self._description), total=total)

    def __call__(self, step: int) -> None:
        """Advance the bar by `step`."""
        self._bar.advance(self._task, step)

    def show(self, message: str) -> None:
        """Show a message beside the description."""
        self._bar.update(self._task, description=escape(f"{self._description}: {escape_text(message)}"))

    def over(self, items: "Iterable[T]") -> "Iterator[T]":
        """Yield the items and advance by one for each, in steps of 1,000."""
        for number, item in enumerate(items, 1):
            yield item
            if number % _STRIDE == 0:
                self(_STRIDE)


class _VisibleLines(logging.Formatter):
    """Formats a log record as one line, with control characters escaped; a traceback follows on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        head = escape_text(f"{record.levelname} {record.name}: {record.getMessage()}")
        return head if record.exc_info is None else f"{head}\n{escape_lines(self.formatException(record.exc_info))}"


def quiet_libraries() -> None:
    """Show our own warnings; silence the clients' logs about connections, which our errors report."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.setFormatter(_VisibleLines())
    for client in ("cassandra", "kafka", "pika"):
        logging.getLogger(client).setLevel(logging.CRITICAL)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an unexpected error like Python, with control characters escaped."""
    sys.stderr.write(escape_lines("".join(traceback.format_exception(kind, error, trace))))


def _are_numbers(values: Iterable[object]) -> bool:
    kinds = {type(value) for value in values}
    return kinds <= {int, float, type(None)} and kinds != {type(None)}


def _format(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.2f}"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        case _:
            return escape_text(str(value))
