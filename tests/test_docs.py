"""The documentation as a site: whole, with every page in its place, and nothing fetched from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from benchmarks.chart import IMAGE, chart
from pipelines import errors
from tests.conftest import REPOSITORY

_DOCS = REPOSITORY / "docs"
_FETCHED = re.compile(r'<(?:script|img|iframe|link rel="stylesheet")[^>]* (?:src|href)="(https?:[^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built site; a link or an anchor that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_has_a_place(site: Path) -> None:
    """The navigation names all pages, and those of the repository's root that were taken in."""
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = set(_pages(nav))
    notebooks = {f"notebooks/{path.stem}.md" for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert len(notebooks) >= 5
    taken_in = {
        "index.md",
        "architecture.md",
        "changes.md",
        "conduct.md",
        "contributing.md",
        "policies.md",
        "security.md",
    }
    assert named - taken_in - notebooks == {str(path.relative_to(_DOCS)) for path in _DOCS.rglob("*.md")}
    assert notebooks <= named
    front = (site / "index.html").read_text(encoding="utf-8")
    assert "counted exactly once" in front
    assert 'href="architecture/"' in front


def _pages(group: Any) -> list[str]:
    """Return the pages of a group, and of the groups in it."""
    if isinstance(group, str):
        return [group]
    return [page for entry in group for one in entry.values() for page in _pages(one)]


def test_notebooks_are_shown_as_they_were_run(site: Path) -> None:
    """Code, tables and charts, each chart with what it finds as its text; links lead to the other pages."""
    for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(notebook, as_version=4).cells
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        text = (site / "notebooks" / notebook.stem / "index.html").read_text(encoding="utf-8")
        charts = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,', text)
        assert len(charts) == sum("<img " in data.get("text/html", "") for data in outputs) > 0
        assert all(len(title) > 20 for title in charts)
        assert text.count('<div class="output">') == sum("text/html" in data for data in outputs)
        assert ".ipynb)" not in text
    first = (site / "notebooks" / "01_reputation_trends" / "index.html").read_text(encoding="utf-8")
    assert 'href="../03_policies_and_what_if/"' in first
    assert 'href="01_reputation_trends/"' in (site / "notebooks" / "index.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """It can be read without a network, and tells nobody who reads it."""
    found = {url for page in site.rglob("*.html") for url in _FETCHED.findall(page.read_text(encoding="utf-8"))}
    assert found == set()


def test_the_root_pages_link_to_what_is_there() -> None:
    """README, ARCHITECTURE, CHANGELOG, CONTRIBUTING and SECURITY are read in the repository as well."""
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
        assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_the_chart_is_of_the_last_measurement() -> None:
    """`make docs` would draw the same."""
    assert (REPOSITORY / IMAGE).read_text(encoding="utf-8") == chart()


def test_pictures_are_small() -> None:
    """A page is read over slow lines, too."""
    assert [path.name for path in (_DOCS / "images").iterdir() if path.stat().st_size > 200_000] == []


def test_the_page_under_an_error_exists() -> None:
    """Each class of errors names a file of the repository and, if a heading, one that is there."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 10
    for kind in kinds:
        path, _, anchor = kind.page.partition("#")
        headings = re.findall(r"^#+ (.+)$", (REPOSITORY / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, kind


def test_links_to_elsewhere_are_addresses() -> None:
    """By their form only: whether somebody answers there is no affair of a test."""
    pages = [*_DOCS.glob("*.md"), REPOSITORY / "README.md", REPOSITORY / "ARCHITECTURE.md"]
    links = {link for page in pages for link in re.findall(r"\]\((\w+:[^)]*)\)", page.read_text(encoding="utf-8"))}
    assert links
    assert [link for link in links if not re.fullmatch(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[^\s]*)?", link)] == []


def test_the_spelling() -> None:
    """No word that is often misspelt is, in what people read."""
    places = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "docs",
        "pipelines",
        "assets",
        "examples",
        "notebooks",
    ]
    command = [sys.executable, "-m", "codespell_lib", *places]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_measurement_is_described() -> None:
    """`python -m benchmarks` offers what can be measured, and docs/benchmarks.md says of each what it measures."""
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    _, _, names = said.stderr.strip().partition("; there are ")
    page = (_DOCS / "benchmarks.md").read_text(encoding="utf-8")
    headings = re.findall("^## (.+)$", page, re.MULTILINE)
    assert sorted(names.split(", ")) == sorted(name for heading in headings for name in heading.split(", "))
