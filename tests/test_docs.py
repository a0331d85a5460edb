"""The documentation site: complete, with every page in the navigation, and without external resources."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from playwright.sync_api import Page, ViewportSize

from benchmarks.chart import IMAGE, chart
from tests.conftest import REPOSITORY
from tests.services.browser import running_browser

_DOCS = REPOSITORY / "docs"
_PHONE: ViewportSize = {"width": 390, "height": 844}
_FETCHED = re.compile(r'<(?:script|img|iframe|link rel="stylesheet")[^>]* (?:src|href)="(https?:[^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built site; a broken link or anchor is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site: Path) -> None:
    """The navigation lists all pages, including those from the repository's root."""
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
    """Return the pages of a group and its subgroups."""
    if isinstance(group, str):
        return [group]
    return [page for entry in group for one in entry.values() for page in _pages(one)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("gdpr", "erasure/"),
        ("right to be forgotten", "erasure/"),
        ("merge users", "support/#merge-my-two-accounts"),
        ("merge accounts", "support/#merge-my-two-accounts"),
        ("join data frame", "notebooks/#join-your-own-data-frame-or-table"),
        ("report mail", "notebooks/#a-report-every-night-by-mail"),
        ("forget me", "support/#forget-me"),
        ("fake rating", "support/#that-rating-is-fake"),
    ],
)
def test_search_finds_what_people_look_for(site: Path, query: str, answer: str) -> None:
    """The section that answers has every word of the query, and none with them has more of them in its title."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    words = set(query.split())
    found = {one["location"]: one for one in index["docs"] if words <= _words(f"{one['title']} {one['text']}")}
    in_title = {place: len(words & _words(one["title"])) for place, one in found.items()}
    assert answer in in_title
    assert in_title[answer] == max(in_title.values())


def test_search_ranks_what_to_do_before_why(site: Path) -> None:
    """Decisions, changes and references come after pages that answer a request, which have no factor."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    behind = {one["location"].partition("/")[0] for one in index["docs"] if one.get("boost", 1) < 1}
    assert behind == {"decisions", "changes", "tables", "api", "cli"}
    assert all("boost" in one for one in index["docs"] if one["location"].partition("/")[0] in behind)


def _words(text: str) -> set[str]:
    """Return the words of a text of the index, which is HTML."""
    return set(re.findall(r"[a-z0-9]+", re.sub("<[^>]+>", " ", text).lower()))


def test_notebook_pages_show_the_outputs(site: Path) -> None:
    """Code, tables and charts with alternative text; links lead to other pages."""
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


def test_the_site_loads_no_external_resource(site: Path) -> None:
    """It works offline, and does not track readers."""
    found = {url for page in site.rglob("*.html") for url in _FETCHED.findall(page.read_text(encoding="utf-8"))}
    assert found == set()


@pytest.mark.slow
def test_every_page_fits_a_phone(site: Path) -> None:
    """At 390 px neither a page nor a table of its text scrolls sideways; outputs of notebooks and code may."""
    with running_browser() as browser:
        page = browser.new_page(viewport=_PHONE)
        found = {str(path.relative_to(site)): _too_wide(page, path) for path in sorted(site.rglob("index.html"))}
    assert len(found) > 40
    assert {name: wide for name, wide in found.items() if wide} == {}


def _too_wide(page: Page, path: Path) -> list[str]:
    """Return the beginning of what is wider than the window on a page."""
    page.goto(path.as_uri(), wait_until="domcontentloaded")
    return page.evaluate(
        """() => {
            const wide = one => one.getBoundingClientRect().left + one.scrollWidth > innerWidth + 1;
            const tables = [...document.querySelectorAll("article table")].filter(one => !one.closest(".output"));
            return [document.documentElement, ...tables].filter(wide).map(one => one.textContent.trim().slice(0, 60));
        }"""
    )


def test_links_of_the_root_pages_resolve() -> None:
    """README, ARCHITECTURE, CHANGELOG, CONTRIBUTING and SECURITY are also read in the repository."""
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
        assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_each_page_begins_with_its_reader_and_its_result() -> None:
    """The first paragraph says who the page is for and what they have at its end."""
    roots = [REPOSITORY / name for name in ("ARCHITECTURE.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md")]
    pages = [*_DOCS.glob("*.md"), _DOCS / "decisions" / "README.md", *roots]
    first = {page.name: page.read_text(encoding="utf-8").split("\n\n")[1] for page in pages}
    assert [name for name, text in first.items() if not (text.startswith("For ") and "At the end" in text)] == []


def test_the_front_page_is_short() -> None:
    """README has at most 700 words, and no table: those do not fit a phone."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700
    assert "\n|" not in text


def test_the_front_page_leads_with_an_explained_score() -> None:
    """First what it does, in output that tests/test_support_page.py runs; then for whom, alternatives, one command."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    example = text.split("```console\n")[1].split("```")[0]
    assert example.count("\n") == 4, "a command, the names of the columns, two lines"
    assert example in (_DOCS / "support.md").read_text(encoding="utf-8")
    assert text.index(example) < text.index("\n## ")
    assert re.findall("^## (.+)", text, re.MULTILINE)[:3] == ["For whom", "Beside the alternatives", "One command"]


def test_the_speeds_of_the_front_page_are_those_of_the_benchmarks() -> None:
    """Each number of README's paragraph is in the table of docs/benchmarks.md, and that has the last measurement."""
    page = (_DOCS / "benchmarks.md").read_text(encoding="utf-8").split("### Events per second")[1].split("###")[0]
    paragraph = re.search(r"^[^\n]+ events of [^#]+?\n\n", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert paragraph is not None
    numbers = re.findall(r"\d[\d,.]*\d", paragraph[0])
    assert len(numbers) >= 6
    assert [number for number in numbers if number not in page] == []
    for size in ("small", "large"):
        result = json.loads((REPOSITORY / "benchmarks" / "results" / f"ingest-{size}.json").read_text())
        rows = [row for row in result["rows"] if not row["means"].startswith("alone")]
        measured = [f"{row['events/s']:,} | {row['times the script']:.1f}" for row in rows]
        assert [cell for cell in (result["date"], *measured) if cell not in page] == []


def test_the_chart_is_of_the_last_measurement() -> None:
    """`make docs` would change nothing."""
    assert (REPOSITORY / IMAGE).read_text(encoding="utf-8") == chart()


def test_images_are_small() -> None:
    """Pages load on slow connections, too."""
    assert [path.name for path in (_DOCS / "images").iterdir() if path.stat().st_size > 200_000] == []


def test_external_links_are_well_formed() -> None:
    """Only the form is checked: tests access no external server."""
    pages = [*_DOCS.glob("*.md"), REPOSITORY / "README.md", REPOSITORY / "ARCHITECTURE.md"]
    links = {link for page in pages for link in re.findall(r"\]\((\w+:[^)]*)\)", page.read_text(encoding="utf-8"))}
    assert links
    assert [link for link in links if not re.fullmatch(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[^\s]*)?", link)] == []


def test_common_misspellings_are_absent() -> None:
    """Documentation contains no common misspelling."""
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
    """docs/benchmarks.md describes every measurement of `python -m benchmarks`."""
    usage = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    _, _, names = usage.stderr.strip().partition("; names: ")
    page = (_DOCS / "benchmarks.md").read_text(encoding="utf-8")
    headings = re.findall("^## (.+)$", page, re.MULTILINE)
    assert sorted(names.split(", ")) == sorted(name for heading in headings for name in heading.split(", "))
