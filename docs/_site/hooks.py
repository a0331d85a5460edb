"""What the site takes from outside of docs/ as pages, such as README and notebooks; code is named, not linked.

A page is written once, for the repository; here its links are turned so that they lead within the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from notebook_pages import as_markdown, notebooks  # beside this file

_ROOT = Path(__file__).parents[2]
_TAKEN_IN = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "changes.md": "CHANGELOG.md",
    "conduct.md": "CODE_OF_CONDUCT.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "policies.md": "pipelines/reputation/policies/README.md",
}
_NOTEBOOKS = {f"notebooks/{path.stem}.md": path for path in notebooks()}
_PAGES = {source: page for page, source in _TAKEN_IN.items()} | {
    f"notebooks/{path.name}": page for page, path in _NOTEBOOKS.items()
}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are elsewhere in the repository."""
    for page, source in _TAKEN_IN.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text(encoding="utf-8")))
    for page, path in _NOTEBOOKS.items():
        files.append(File.generated(config, page, content=as_markdown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - as mkdocs calls it
    """Turn links to the pages that were taken in, and name code instead of linking to it."""
    uri = page.file.src_uri
    source = _TAKEN_IN.get(uri) or (uri if uri in _NOTEBOOKS else f"docs/{uri}")
    return _LINK.sub(lambda link: _within(link, posixpath.dirname(source), posixpath.dirname(uri)), markdown)


def _within(link: re.Match[str], source_folder: str, page_folder: str) -> str:
    """Turn a link of a file in one folder of the repository into one of its page in a folder of the site."""
    text, target, anchor = link[1], link[2], link[3] or ""
    path = posixpath.normpath(posixpath.join(source_folder, target))
    if "://" in target or not (_ROOT / path).exists():
        return link[0]  # elsewhere, or broken: mkdocs says so
    if path in _PAGES or path.startswith("docs/"):
        page = _PAGES.get(path, path.removeprefix("docs/"))
        return f"[{text}]({posixpath.relpath(page, page_folder or '.')}{anchor})"
    return text if text.startswith("`") else f"{text} (`{path}`)"
