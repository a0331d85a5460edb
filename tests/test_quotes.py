"""The pages match the code: each command, option, setting, metric, code, target and message that they quote exists.

Inline code and blocks of every page, of the Markdown in notebooks and of docs/monitoring are compared. A block of
messages or output is marked `text`; tests/test_operations.py compares the tables of docs/operations.md.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
import typer

from pipelines.cli.app import app
from pipelines.errors import exit_statuses
from pipelines.monitoring.metrics import PROCESSES
from pipelines.settings import Settings
from tests.conftest import REPOSITORY

_EXCLUDED = ("CHANGELOG.md", ".github/", "tests/", "docs/decisions/", "docs/api.md", "docs/cli.md")
"""Records of their time, templates, and pages that tests/cli/test_reference.py compares with the code."""
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_COMMAND = re.compile(r"(?:^|[$&|(] *)karmalake +([^|&#;()\n]+)")
_VARIABLE = re.compile(r"\bKARMALAKE_[A-Z_]+\b(?!\.\.\.)")
_PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z][A-Z_-]+\b|\{[^}]*\}|\b[NM]\b|[0-9][0-9,.]*|  +| *%|[:;(]|\w+\.csv")
_SENTENCE = re.compile(r"[A-Za-z][a-z]* [a-z]+ [a-z]+")
_OTHERS = ("make ", "karmalake ", "pip ", "npm ", "go ", "jupyter ", "chgrp ", "while ", "class ", "timestamp with")
"""The first words of spans of several words that are commands, code or types."""
_OF_OTHERS = {"reputation.publication", "spark.authenticate", "dagster.yaml"}
"""A key of Redis, a setting of Spark and a file of Dagster, which look like settings."""


def _pages() -> dict[str, str]:
    """Return the text of every page, and the Markdown of every notebook."""
    command = ["git", "ls-files", "*.md", "*.ipynb", "docs/monitoring/*"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    return {name: _text(REPOSITORY / name) for name in listed if not name.startswith(_EXCLUDED)}


def _text(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


_PAGES = _pages()
each_page = pytest.mark.parametrize("page", _PAGES)


def _spans(page: str) -> list[str]:
    """Return the inline code of a page."""
    return [" ".join(span.split()) for _, span in _SPAN.findall(_BLOCK.sub("", _PAGES[page]))]


def _lines(page: str) -> list[str]:
    """Return the inline code of a page, and the lines of its blocks."""
    blocks = [body.replace("\\\n", " ") for _, body in _BLOCK.findall(_PAGES[page])]
    return [*_spans(page), *(line.strip() for block in blocks for line in block.splitlines())]


@cache
def _commands() -> dict[tuple[str, ...], Any]:
    """Return every command and group by the words that call it."""
    found: dict[tuple[str, ...], Any] = {(): typer.main.get_command(app)}
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        path = waiting.pop()
        inner = {(*path, name): command for name, command in getattr(found[path], "commands", {}).items()}
        found |= inner
        waiting += inner
    return found


def _options(command: Any) -> set[str]:
    return {"--help"} | {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def _faults_of_call(call: str) -> Iterator[str]:
    """Yield what does not exist of a call of `karmalake`, given without the first word."""
    words = call.split()
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in _commands():
        path = (*path, words.pop(0))
    if getattr(_commands()[path], "commands", {}) and words and not words[0].startswith(("-", "COMMAND", "...")):
        yield f"karmalake {call}: there is no {words[0]}"
    options = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
    yield from (f"karmalake {call}: there is no {name}" for name in sorted(options - _options(_commands()[path])))


@each_page
def test_quoted_commands_exist(page: str) -> None:
    """Each call of `karmalake` names an existing command, with its options."""
    calls = [call for line in _lines(page) for call in _COMMAND.findall(line)]
    assert [fault for call in calls for fault in _faults_of_call(call)] == []


@each_page
def test_quoted_options_exist(page: str) -> None:
    """An option that is quoted alone belongs to a command of `karmalake`."""
    known = set().union(*map(_options, _commands().values()))
    quoted = {span.split()[0].partition("=")[0] for span in _spans(page) if span.startswith("--") and span[2:3] != " "}
    assert quoted - known == set()


@each_page
def test_quoted_settings_exist(page: str) -> None:
    """Names of settings, and of their variables, exist; `*` stands for any ending."""
    sections = {name: getattr(field.annotation, "model_fields", {}) for name, field in Settings.model_fields.items()}
    keys = {f"{section}.{name}" for section, fields in sections.items() for name in fields}
    variables = {f"KARMALAKE_{key.replace('.', '_').upper()}" for key in (*keys, *sections)} | {"KARMALAKE_CONFIG"}
    quoted = {span for span in _spans(page) if re.fullmatch(rf"({'|'.join(sections)})\.[a-z_]+", span)}
    assert quoted - keys - _OF_OTHERS == set()
    unknown = set(_VARIABLE.findall(_PAGES[page])) - variables
    assert {name for name in unknown if not any(known.startswith(name) for known in variables)} == set()


@each_page
def test_quoted_metrics_exist(page: str) -> None:
    """Each metric that is named is served."""
    found = {entry.name for make in PROCESSES.values() for entry in make().registry.entries}
    series = {name + suffix for name in found for suffix in ("", "_bucket", "_sum", "_count")} | {"karmalake_version"}
    assert set(re.findall(r"\bkarmalake_[a-z_]+\b", _PAGES[page])) - series == set()


@each_page
def test_quoted_codes_and_targets_exist(page: str) -> None:
    """Error codes, targets of `make` and tests exist."""
    codes = {status.code for status in exit_statuses()}
    assert set(re.findall(r"\bKL-[A-Z-]+\b", _PAGES[page])) - codes == set()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = [found[1] for line in _lines(page) if (found := re.match(r"(?:\$ )?make ([a-z-]+)", line))]
    assert set(called) - targets == set()
    assert set(re.findall(r"`(test_\w+)`", _PAGES[page])) - _tests() == set()


@cache
def _tests() -> set[str]:
    files = (REPOSITORY / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))}


@cache
def _literals() -> str:
    """Return the strings of the code, implicit concatenations joined and values as `...`; and the text of its data."""
    folders = [REPOSITORY / name for name in ("pipelines", "assets", "examples")]
    files = [path for folder in folders for path in sorted(folder.rglob("*"))]
    data = [path.read_text(encoding="utf-8") for path in files if path.suffix in {".sql", ".toml", ".html"}]
    code = [text for path in files if path.suffix == ".py" for text in _strings(path)]
    return "\n".join(" ".join(text.split()) for text in (*code, *data))


def _strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)


def _unknown(text: str) -> list[str]:
    """Return the pieces of a message, between its placeholders, that the code does not contain."""
    pieces = [piece.strip(" ,;:()[]") for piece in _PLACEHOLDER.split(text)]
    return [piece for piece in pieces if piece and piece not in _literals()]


@each_page
def test_quoted_messages_exist(page: str) -> None:
    """Sentences in inline code, and the output in `text` blocks, are in the code."""
    sentences = [span for span in _spans(page) if _SENTENCE.match(span) and not span.startswith(_OTHERS)]
    output = [line for kind, body in _BLOCK.findall(_PAGES[page]) if kind == "text" for line in body.splitlines()]
    assert [(text, pieces) for text in (*sentences, *output) if (pieces := _unknown(text))] == []


def test_the_checks_can_fail() -> None:
    """A command, an option and a message that do not exist are found."""
    assert list(_faults_of_call("dead-letters lst")) == ["karmalake dead-letters lst: there is no lst"]
    assert list(_faults_of_call("drain --acept-loss x")) == ["karmalake drain --acept-loss x: there is no --acept-loss"]
    assert list(_faults_of_call("dead-letters list --help")) == []
    assert _unknown("no Kafka broker answers: the " + "moon is full") == ["the moon is full"]
