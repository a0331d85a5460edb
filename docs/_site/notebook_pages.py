"""Notebooks as pages of the site: text, code and the committed outputs.

Executes nothing. A chart is an image in the page.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

_FOLDER = Path(__file__).parents[2] / "notebooks"
_STYLE = re.compile(r"<style[^>]*>.*?</style>", re.DOTALL)  # table styles: the site has its own


def notebooks() -> list[Path]:
    """Return the paths of all notebooks, in reading order."""
    return sorted(_FOLDER.glob("*.ipynb"))


def as_markdown(path: Path) -> str:
    """Return a notebook as Markdown."""
    cells = nbformat.read(path, as_version=4).cells
    parts = [part for cell in cells for part in (_code(cell) if cell.cell_type == "code" else [_text(cell.source)])]
    title, *rest = parts[0].split("\n", 1)
    where = f"*This is `notebooks/{path.name}`, run on a small simulation that is the same each time.*"
    return "\n\n".join([title, where, *rest, *parts[1:]])


def _text(source: str) -> str:
    return source.replace("<details>", '<details markdown="1">')


def _code(cell: Any) -> Iterator[str]:
    yield _fenced(cell.source, "sql" if cell.source.startswith("%%karma") else "python")
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/html" in data:
            yield f'<div class="output">{" ".join(_STYLE.sub("", data["text/html"]).split())}</div>'
        else:
            yield _fenced(output.get("text") or data["text/plain"], "text")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
