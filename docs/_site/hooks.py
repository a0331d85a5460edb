"""What the site takes from outside of docs/: README, ARCHITECTURE and CHANGELOG as pages; code is named, not linked.

A page is written once, for the repository; here its links are turned so that they lead within the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[2]
_TAKEN_IN = {"index.md": "README.md", "architecture.md": "ARCHITECTURE.md", "changes.md": "CHANGELOG.md"}
_PAGES = {source: page for page, source in _TAKEN_IN.items()}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are elsewhere in the repository."""
    for page, source in _TAKEN_IN.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - as mkdocs calls it
    """Turn links to the pages that were taken in, and name code instead of linking to it."""
    folder = "." if page.file.src_uri in _TAKEN_IN else "docs"
    return _LINK.sub(lambda link: _within(link, folder), markdown)


def _within(link: re.Match[str], folder: str) -> str:
    text, target, anchor = link[1], link[2], link[3] or ""
    path = posixpath.normpath(posixpath.join(folder, target))
    if "://" in target or not (_ROOT / path).exists():
        return link[0]  # elsewhere, or broken: mkdocs says so
    if path in _PAGES:
        return f"[{text}]({_PAGES[path]}{anchor})"
    if path.startswith("docs/"):
        return f"[{text}]({path.removeprefix('docs/')}{anchor})"
    return text if text.startswith("`") else f"{text} (`{path}`)"
