"""What a person sees: tables, rows, progress and errors. Knows nothing of what they say.

The one door: no command prints by itself. Ids are whatever a producer sent: characters that would steer a terminal,
break a line or turn its direction are shown as Python writes them, and in JSON as JSON does. Rows that go to a pipe or
into a file keep their bytes.
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

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pipelines.boundary.text import STEERING, visible, visible_lines
from pipelines.errors import KarmalakeError, help_on

_STRIDE = 1_000
T = TypeVar("T")

_SHOWN_IN_JSON = {code: f"\\u{code:04x}" for code in STEERING if chr(code) != "\n"}
_VERDICTS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("not checked", "yellow")}
_VERDICT_WIDTH = max(len(text) for text, _ in _VERDICTS.values())

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line of ours; square brackets in it are text."""
    out.print(Text(visible_lines(text)))


def say_title(text: str) -> None:
    """Print the title of what follows."""
    out.print(Text("\n" + visible_lines(text), style="bold"))


def say_note(text: str) -> None:
    """Print a line that explains the one before."""
    out.print(Text(visible_lines(text), style="dim"))


def say_verdict(text: str, note: str, *, passed: bool | None) -> None:
    """Print what was checked, a note on it, and how it ended; None if it could not be checked."""
    mark, style = _VERDICTS[passed]
    line = Text(f"{mark:{_VERDICT_WIDTH}} ", style=style).append(visible_lines(text), style="not bold default")
    out.print(line.append(f" ({visible_lines(note)})", style="not bold default dim") if note else line)


def say_json(document: object, indent: int | None = 2) -> None:
    """Print a JSON document, in which escapes stand for characters that would do something to a terminal."""
    text = json.dumps(document, ensure_ascii=False, indent=indent, default=str)
    out.print(JSONHighlighter()(Text(text.translate(_SHOWN_IN_JSON))))


def say_file(path: Path, *, is_json: bool = False) -> None:
    """Copy a text file to standard output: to a terminal visibly, elsewhere byte by byte."""
    if not on_terminal():
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for line in file:
            sys.stdout.write(line.translate(_SHOWN_IN_JSON) if is_json else visible_lines(line))
    sys.stdout.flush()


def on_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return out.is_terminal or sys.stdout.isatty()


def fail(text: str, code: str = KarmalakeError.code) -> None:
    """Print an error for a person, with its code and the command that says more."""
    err.print(Text(f"error {code}: ", style="bold red").append(Text(visible_lines(text), style="not bold default")))
    err.print(Text(f"       see {help_on(code)}", style="dim"))


def say_metrics(address: str | None) -> None:
    """Say where a long-lived process serves its metrics, if it does."""
    if address is not None:
        say(f"metrics at http://{address}/metrics")


def warn(text: str) -> None:
    """Print a warning for a person."""
    err.print(Text("warning: ", style="bold yellow").append(Text(visible_lines(text), style="not bold default")))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under column names, numbers to the right; narrow terminals fold cells."""
    rows = [tuple(row) for row in rows]
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        drawn.add_column(
            Text(visible(column)), justify="right" if _numeric(row[index] for row in rows) else "left", overflow="fold"
        )
    for row in rows:
        drawn.add_row(*(Text(_shown(value)) for value in row))
    out.print(drawn)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, a line each; to the right if all are numbers."""
    pairs = list(pairs)
    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(style="dim")
    drawn.add_column(justify="right" if _numeric(value for _, value in pairs) else "left", overflow="fold")
    for name, value in pairs:
        drawn.add_row(Text(visible(name)), Text(visible_lines(value) if isinstance(value, str) else _shown(value)))
    out.print(drawn)


@contextmanager
def progress(description: str, total: int | None = None) -> Generator["Advance"]:
    """Show a bar on a terminal, nothing elsewhere; yields a function that is told how much more is done.

    What `pipelines` logs meanwhile stands beside the description.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        advance = Advance(bar, description, total)
        with _told(advance):
            yield advance


@contextmanager
def _told(advance: "Advance") -> Generator[None]:
    """Let the bar say what is logged."""
    logger, listener = logging.getLogger("pipelines"), logging.Handler(logging.INFO)
    listener.emit = lambda record: advance.say(record.getMessage())
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


class Advance:
    """A progress bar's handle."""

    def __init__(self, bar: Progress, description: str, total: int | None) -> None:
        self._bar = bar
        self._description = visible(description)
        self._task = bar.add_task(escape(self._description), total=total)

    def __call__(self, step: int) -> None:
        """Move the bar by `step`."""
        self._bar.advance(self._task, step)

    def say(self, what: str) -> None:
        """Tell what is being done."""
        self._bar.update(self._task, description=escape(f"{self._description}: {visible(what)}"))

    def over(self, items: "Iterable[T]") -> "Iterator[T]":
        """Yield the items and move by one for each, a thousand at a time."""
        for number, item in enumerate(items, 1):
            yield item
            if number % _STRIDE == 0:
                self(_STRIDE)


class _VisibleLines(logging.Formatter):
    """A line a record, whatever it quotes; a traceback follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        head = visible(f"{record.levelname} {record.name}: {record.getMessage()}")
        return head if record.exc_info is None else f"{head}\n{visible_lines(self.formatException(record.exc_info))}"


def quiet_libraries() -> None:
    """Show our own warnings; what clients log about connections is said by our errors instead."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.setFormatter(_VisibleLines())
    for client in ("cassandra", "kafka", "pika"):
        logging.getLogger(client).setLevel(logging.CRITICAL)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what was raised by mistake, as Python does, with whatever is quoted in it made visible."""
    sys.stderr.write(visible_lines("".join(traceback.format_exception(kind, error, trace))))


def _numeric(values: Iterable[object]) -> bool:
    kinds = {type(value) for value in values}
    return kinds <= {int, float, type(None)} and kinds != {type(None)}


def _shown(value: object) -> str:
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
            return visible(str(value))
