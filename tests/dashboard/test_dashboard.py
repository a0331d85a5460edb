"""The dashboard in a real browser: every section is there, says what is not, runs no code, and breaks on no name."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from pipelines.emit.simulator import Rates, simulate
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.settings import Settings
from tests.draining import drain_all, send, with_ingest
from tests.services.ports import free_port
from tests.services.requirements import require
from tests.test_crashes import environment

pytestmark = pytest.mark.slow
_KARMALAKE = [sys.executable, "-c", "from pipelines.cli import main; main()"]
_SECONDS = 30_000
_FAULTS = Rates(duplicates=0.02, conflicts=0.01, mis_keyed=0.0, malformed=0.05)


@pytest.fixture(scope="module")
def served(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings of a small world that was drained, derived and published."""
    kafka = local_settings.kafka.model_copy(update={"topic": "dashboard", "group_id": "dashboard"})
    redis = local_settings.redis.model_copy(update={"prefix": "dashboard"})
    update = {"data_dir": tmp_path_factory.mktemp("dashboard"), "kafka": kafka, "redis": redis}
    settings = with_ingest(local_settings.model_copy(update=update))
    send(settings, simulate(7, 2_000, days=20, rates=_FAULTS).records)
    drain_all(settings)
    refresh_warehouse(settings)
    publish_warehouse(settings)
    return settings


@contextmanager
def _dashboard(settings: Settings, folder: Path) -> Iterator[str]:
    """Yield the address of a dashboard; it ends with exit code 0 when it is told to."""
    assert settings.redis.url
    values = environment(settings) | {
        "KARMALAKE_REDIS_URL": settings.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": settings.redis.prefix,
        "PYTHONUNBUFFERED": "1",
    }
    command = [*_KARMALAKE, "dashboard", "--port", str(free_port())]
    with subprocess.Popen(command, env=values, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            said = process.stdout.readline()
            assert said.startswith("dashboard at http://127.0.0.1:"), said
            yield said.removeprefix("dashboard at ").partition(";")[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(served: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _dashboard(served, tmp_path_factory.mktemp("elsewhere")) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Return a page on which nothing goes wrong unseen, and which asks nobody but this machine."""
    page = browser.new_page()
    page.set_default_timeout(_SECONDS)
    wrong: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    page.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))] == []


def _heading(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible(timeout=_SECONDS)


def test_clicking_through_every_section(page: Page, address: str) -> None:
    """Trends by day and week, who leads, somebody's story with every point of it, and health."""
    page.goto(address)
    _heading(page, "Trends")
    expect(page.locator("canvas, svg.marks")).to_have_count(3, timeout=_SECONDS)
    page.get_by_role("radio", name="week").click()
    _heading(page, "Trends")
    page.get_by_role("tab", name="Leaderboard").click()
    _heading(page, "All time")
    expect(page.locator("table").first).to_contain_text("driver-", timeout=_SECONDS)
    page.get_by_role("tab", name="User").click()
    _heading(page, "Why")
    expect(page.get_by_text("events that count").first).to_be_visible()
    page.get_by_role("tab", name="Health").click()
    _heading(page, "Latest commits")
    expect(page.get_by_text("The lake is 0 records and")).to_be_visible(timeout=_SECONDS)
    expect(page.get_by_text("undecodable").first).to_be_visible()
    expect(page.get_by_text("What is served is")).to_be_visible()


@pytest.mark.parametrize("user_id", ["nobody", "<script>document.title = 'owned'</script>", "'; DROP TABLE events; --"])
def test_a_user_who_is_not_there(page: Page, address: str, user_id: str) -> None:
    """It is said in a sentence, and whatever the name holds is only a name."""
    page.goto(f"{address}?section=user&user={quote(user_id)}")
    expect(page.get_by_text("There is no user")).to_be_visible(timeout=_SECONDS)
    assert page.title() != "owned"
    page.get_by_role("tab", name="Trends").click()
    _heading(page, "Trends")


def test_nobody_can_run_code(page: Page, address: str) -> None:
    """The page has no editor: neither its code nor a place to write some."""
    page.goto(address)
    _heading(page, "Trends")
    assert page.locator(".cm-editor").count() == 0


def test_before_there_is_anything(page: Page, served: Settings, tmp_path: Path) -> None:
    """Without a warehouse the page says so, and what to do."""
    empty = served.model_copy(update={"data_dir": tmp_path / "nothing"})
    with _dashboard(empty, tmp_path) as address:
        page.goto(address)
        expect(page.get_by_text("there is no warehouse at")).to_be_visible(timeout=_SECONDS)
        page.goto("about:blank")


def test_a_port_that_is_taken(address: str) -> None:
    """It is said in a sentence."""
    taken = address.rstrip("/").rpartition(":")[2]
    done = subprocess.run([*_KARMALAKE, "dashboard", "--port", taken], capture_output=True, text=True, check=False)
    assert (done.returncode, "cannot listen" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
