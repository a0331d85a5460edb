"""MkDocs hooks: add pages from outside docs/, such as the README and notebooks, and rewrite links for the site.

Links between pages lead within the site; links to code lead to the repository, or without its address become plain
names.
"""

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from notebook_pages import as_markdown, notebooks  # in this folder
from table_labels import TableLabels

_ROOT = Path(__file__).parents[2]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_REPOSITORY = _PROJECT.get("urls", {}).get("Repository", "").rstrip("/")
"""Empty while the project has no public address."""
_EXTERNAL_PAGES = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "changes.md": "CHANGELOG.md",
    "conduct.md": "CODE_OF_CONDUCT.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "policies.md": "pipelines/reputation/policies/README.md",
}
_NOTEBOOKS = {f"notebooks/{path.stem}.md": path for path in notebooks()}
_PAGES = {source: page for page, source in _EXTERNAL_PAGES.items()} | {
    f"notebooks/{path.name}": page for page, path in _NOTEBOOKS.items()
}
_SEARCH_BOOST = {"decisions/": 0.1, "changes.md": 0.1, "tables.md": 0.5, "api.md": 0.5, "cli.md": 0.5}
"""Pages that say why, what was or what there is, ranked in a search behind those that say what to do."""
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Add the labels that tables have on a phone, and the repository to the navigation, if it has an address.

    As a link: with `repo_url`, each page would fetch counts from the repository's host.
    """
    config.markdown_extensions.append(TableLabels())
    if _REPOSITORY:
        config.nav.append({"Repository": _REPOSITORY})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere in the repository."""
    for page, source in _EXTERNAL_PAGES.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text(encoding="utf-8")))
    for page, path in _NOTEBOOKS.items():
        files.append(File.generated(config, page, content=as_markdown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - as mkdocs calls it
    """Rewrite links to added pages, replace links to code by its name, and rank the page in a search."""
    uri = page.file.src_uri
    if boost := next((boost for start, boost in _SEARCH_BOOST.items() if uri.startswith(start)), None):
        page.meta["search"] = {"boost": boost}
    source = _EXTERNAL_PAGES.get(uri) or (uri if uri in _NOTEBOOKS else f"docs/{uri}")
    return _LINK.sub(lambda link: _rewrite(link, posixpath.dirname(source), posixpath.dirname(uri)), markdown)


def _rewrite(link: re.Match[str], source_folder: str, page_folder: str) -> str:
    """Return a link between files of the repository as a link between pages of the site."""
    text, target, anchor = link[1], link[2], link[3] or ""
    path = posixpath.normpath(posixpath.join(source_folder, target))
    if "://" in target or not (_ROOT / path).exists():
        return link[0]  # external, or broken, which mkdocs reports
    if path in _PAGES or path.startswith("docs/"):
        page = _PAGES.get(path, path.removeprefix("docs/"))
        return f"[{text}]({posixpath.relpath(page, page_folder or '.')}{anchor})"
    if _REPOSITORY:
        return f"[{text}]({_REPOSITORY}/blob/main/{path}{anchor})"
    return text if text.startswith("`") else f"{text} (`{path}`)"
