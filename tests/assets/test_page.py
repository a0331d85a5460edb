"""Dagster's page behind our access control, as `karmalake dagster` serves it, in a real browser."""

import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Route, expect
from playwright.sync_api import Page as Tab

from pipelines.lake.tables import create_lake
from pipelines.settings import Settings
from tests.assets.graphql import Page
from tests.commands import KARMALAKE, Started, run
from tests.conftest import REPOSITORY
from tests.services.browser import running_browser
from tests.services.ports import HOST
from tests.services.postgres_server import USER, PostgresServer
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.share import share
from tests.test_crashes import environment

pytestmark = pytest.mark.slow
_HOME = """
telemetry: {enabled: false}
nux: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""
"""Runs start at once, without a daemon."""
_OTHER = "http://127.0.0.1:9/"
"""A page of another port: to a browser the same site, and another origin."""


@contextmanager
def _serving(settings: Settings, folder: Path) -> Generator[tuple[Started, str]]:
    """Yield the command, and the address that it prints."""
    (folder / "dagster.yaml").write_text(_HOME, encoding="utf-8")
    variables = environment(settings) | {"DAGSTER_HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    command = [*KARMALAKE, "dagster", "--port", "0"]
    with Started(command, env=variables, cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert line.startswith("Dagster at http://127.0.0.1:")
            yield process, line.split()[2].rstrip(";")
            process.terminate()  # with its code server, which a kill would leave behind
            process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a page whose code is loaded, with an empty lake."""
    folder = tmp_path_factory.mktemp("served")
    settings = local_settings.model_copy(update={"data_dir": folder / "data"})
    create_lake(settings.lake_root)
    with _serving(settings, folder) as (_, address):
        wait_for("its code", _page_at(address).is_ready)
        yield address


def _page_at(address: str) -> Page:
    parts = urlsplit(address)
    return Page(parts.netloc, parse_qs(parts.query)["token"][0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a headless browser."""
    with running_browser() as browser:
        yield browser


_REFUSED = [
    ("storage: [", "", "dagster.yaml"),
    ("storage: {postgres: {postgres_url: {env: NOT_GIVEN}}}", "", '"NOT_GIVEN" which is not set'),
    (None, "", "is not a directory or does not exist"),
    (_HOME, "load_frm: []", '"load_frm"'),
    (_HOME, "# nothing", "Could not parse a workspace"),
]


@pytest.mark.parametrize(("config", "workspace", "why"), share(_REFUSED, 2))
def test_what_dagster_refuses_is_named(tmp_path: Path, config: str | None, workspace: str, why: str) -> None:
    """A file that Dagster cannot read ends the command with what is wrong with it: it is no defect of ours."""
    arguments: list[str] = []
    if workspace:
        (tmp_path / "workspace.yaml").write_text(workspace, encoding="utf-8")
        arguments = ["--workspace", str(tmp_path / "workspace.yaml")]
    done = _refused(tmp_path / "home", config, *arguments)
    assert (done.returncode, why in done.stderr) == (78, True), done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_home_gets_our_dagster_yaml(tmp_path: Path) -> None:
    """With Dagster's defaults, two runs would write at once. A home in use is left as it is, with or without it."""
    home, workspace = tmp_path / "home", tmp_path / "workspace.yaml"
    home.mkdir()
    workspace.write_text("load_frm: []", encoding="utf-8")
    done = _refused(home, None, "--workspace", str(workspace))
    assert (done.returncode, f"wrote {home / 'dagster.yaml'}" in done.stderr) == (78, True), done.stderr
    assert (home / "dagster.yaml").read_bytes() == (REPOSITORY / "dagster.yaml").read_bytes()
    done = _refused(home, _HOME, "--workspace", str(workspace))
    assert "wrote" not in done.stderr
    assert (home / "dagster.yaml").read_text(encoding="utf-8") == _HOME
    (home / "dagster.yaml").rename(home / "workspace.yaml")
    done = _refused(home, None, "--workspace", str(workspace))
    assert "dagster.yaml is missing, and its folder is in use" in " ".join(done.stderr.split())
    assert not (home / "dagster.yaml").exists()


def test_a_password_that_the_database_refuses_is_named(tmp_path: Path, postgres: PostgresServer) -> None:
    """So is what its storage answers, since the command may only have started first."""
    url = f"postgresql+psycopg2://{USER}:wrong@{HOST}:{postgres.port}/postgres"
    done = _refused(tmp_path, f"storage: {{postgres: {{postgres_url: '{url}'}}}}")
    assert (done.returncode, "password authentication failed" in done.stderr) == (75, True), done.stderr
    assert "Traceback" not in done.stderr


def _refused(home: Path, config: str | None, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Return the command, ended, that has a dagster.yaml, or no folder for one."""
    if config is not None:
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text(config, encoding="utf-8")
    variables = os.environ | {"DAGSTER_HOME": str(home), "KARMALAKE_DATA_DIR": str(home.parent)}
    return run([*KARMALAKE, "dagster", "--port", "0", *arguments], env=variables)


def test_it_ends_with_its_code_servers(settings: Settings, tmp_path: Path) -> None:
    """SIGTERM ends it with exit code 0, and the code server that it started."""
    with _serving(settings, tmp_path) as (process, address):
        wait_for("its code", _page_at(address).is_ready)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert [child for child in children if child.is_running()] == []


def test_a_run_is_followed_in_a_browser(address: str, browser: Browser) -> None:
    """The page works under our headers: assets are drawn, and the log of a run comes over a websocket."""
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE_SECONDS * 1_000)
    refused = _refusals(tab)
    tab.goto(address)
    tab.wait_for_url("**/overview/**")
    assert "token" not in tab.url
    root = tab.url.partition("/overview")[0]
    tab.goto(f"{root}/asset-groups")
    expect(tab.get_by_text("serving", exact=True).first).to_be_visible(timeout=PATIENCE_SECONDS * 1_000)
    tab.goto(f"{root}/runs/{_page_at(address).launch('upkeep')}")
    expect(tab.get_by_text("Finished execution of run").first).to_be_visible(timeout=PATIENCE_SECONDS * 1_000)
    assert refused == []
    tab.close()


def _refusals(tab: Tab) -> list[str]:
    """Return the list of what a policy or the server refuses to a tab."""
    found: list[str] = []
    tab.on("console", lambda line: found.append(line.text) if "Content Security Policy" in line.text else None)
    tab.on("response", lambda answer: found.append(answer.url) if answer.status >= 400 else None)
    return found


def test_a_page_of_another_port_starts_no_run(address: str, browser: Browser) -> None:
    """Dagster takes mutations as GET requests: a link on any page of this site would start a run, by the cookie."""
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(address)
    tab.wait_for_url("**/overview/**")
    mutation = "mutation{setNuxSeen}"
    source = f"{tab.url.partition('/overview')[0]}/graphql?query={quote(mutation)}"

    def answer(route: Route) -> None:
        route.fulfill(content_type="text/html", body="<title>other</title>")

    other = context.new_page()
    other.route(_OTHER, answer)
    other.goto(_OTHER)
    with other.expect_navigation() as navigation:
        other.evaluate("(url) => { location = url }", source)
    assert navigation.value
    assert (navigation.value.status, "cross-origin" in navigation.value.text()) == (403, True)
    own = "(url) => fetch(url).then(answer => answer.status, () => 0)"  # 0: the browser's network changed, say
    wait_for("the page's own request", lambda: tab.evaluate(own, source) == 200)
    context.close()
