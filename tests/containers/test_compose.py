"""compose.yaml, as it is but for the ports of this machine: everything starts, works, and ends when asked."""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.assets.graphql import Page
from tests.conftest import REPOSITORY
from tests.containers.engine import BUILD_SECONDS, Engine
from tests.containers.images import IMAGES, provide_servers
from tests.services.waiting import wait_for

pytestmark = pytest.mark.timeout(2 * BUILD_SECONDS)
_PATIENCE_SECONDS = 1_200.0
_INGESTERS = ("stream", "ingest")
_DAGSTER = ("dagster-daemon", "dagster", "dagster-code")
_TOKEN = "a-token-of-the-test"  # noqa: S105 - of no server
_SECRETS = {"REDIS_PASSWORD": "secret1", "POSTGRES_PASSWORD": "secret2", "DAGSTER_TOKEN": _TOKEN}
_ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


class Project:
    """A project of Compose of its own."""

    def __init__(self, engine: Engine, folder: Path, compose: dict[str, Any]) -> None:
        self._engine, self._folder = replace(engine, variables=engine.variables | _SECRETS), folder
        name = f"karmalake-test-{uuid.uuid4().hex[:8]}"
        self._command = [*engine.compose(), "--project-name", name, "--profile", "ingest"]
        (folder / "compose.yaml").write_text(yaml.safe_dump(compose), encoding="utf-8")

    def run(self, *arguments: str) -> str:
        """Run a command of Compose; return its standard output."""
        done = self._engine.attempt(*self._command, *arguments, folder=self._folder)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-4_000:]}\n{done.stderr[-4_000:]}"
        return done.stdout

    def state(self, service: str) -> dict[str, Any]:
        """Return what the engine says about the container of a service."""
        [inspected] = json.loads(self._engine.run("inspect", self.run("ps", "-q", "-a", service).strip()))
        return inspected

    def is_healthy(self, service: str) -> bool:
        """Return whether the health check of a service passes; fails if the container has ended."""
        state = self.state(service)["State"]
        assert state["Running"] or state["Restarting"], self.run("logs", service)[-4_000:]
        return state.get("Health", {}).get("Status", "healthy") == "healthy"

    def address(self, service: str) -> str:
        """Return the address of a container, which this machine reaches without a published port."""
        networks = self.state(service)["NetworkSettings"]["Networks"].values()
        return next(network["IPAddress"] for network in networks)

    def stop(self, service: str) -> int:
        """Stop a service, with its own time of grace; return its exit code."""
        self.run("stop", service)
        return self.state(service)["State"]["ExitCode"]


@pytest.fixture(scope="module")
def project(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Return compose.yaml, running, with the ingester beside `stream`."""
    folder = tmp_path_factory.mktemp("compose")
    compose = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        service.pop("ports", None)  # they may be taken here
        service.pop("build", None)  # the images are there
    images = {name: service["image"] for name, service in compose["services"].items()}
    servers = {name: image for name, image in images.items() if image not in IMAGES.values()}
    provide_servers(engine, servers, folder / "servers")
    started = Project(engine, folder, compose)
    try:
        started.run("up", "--detach")
        for service in (*servers, *_INGESTERS, *_DAGSTER):
            wait_for(f"{service} to be healthy", lambda name=service: started.is_healthy(name), _PATIENCE_SECONDS)
        yield started
    finally:
        started.run("down", "--volumes", "--timeout", "5")


def test_events_are_served(project: Project) -> None:
    """From the bus to Redis, in containers: what `stream` and `ingest` commit is served, and adds up (`once`)."""
    assert "records sent" in project.run("exec", "-T", "stream", "karmalake", "simulate", "--events", "2000")
    wait_for("every record to be committed", lambda: _lag(project) == 0, _PATIENCE_SECONDS)
    wait_for("what is committed to be served", lambda: _is_verified(project), _PATIENCE_SECONDS)


def _lag(project: Project) -> int:
    return json.loads(project.run("exec", "-T", "stream", "karmalake", "lag", "--json"))["lag_records"]


def _is_verified(project: Project) -> bool:
    try:
        return bool(re.search(r"accepted +[1-9]", project.run("exec", "-T", "stream", "karmalake", "verify")))
    except AssertionError:
        return False


def test_the_page_needs_its_token(project: Project) -> None:
    """Without it nothing is answered; a link with it, and a header, let through. No command line or log has it."""
    url = f"http://{project.address('dagster')}:3000"
    page = Page(url.removeprefix("http://"), _TOKEN)
    wait_for("the page", page.is_ready, _PATIENCE_SECONDS)
    wrong = {"Authorization": f"Bearer {_TOKEN}x"}
    assert [httpx.get(f"{url}/server_info", headers=headers).status_code for headers in ({}, wrong)] == [401, 401]
    with httpx.Client(base_url=url) as browser:
        assert browser.get("/", params={"token": _TOKEN}).status_code == 200
        assert "dagster_version" in browser.get("/server_info").json()
    state = project.state("dagster")
    assert _TOKEN not in json.dumps([state["Path"], state["Args"], state["Config"]["Healthcheck"], state["State"]])
    assert _TOKEN not in project.run("logs", *_DAGSTER)


def test_a_job_finishes(project: Project) -> None:
    """Launched on the page, queued by the daemon, run by the code server, recorded in PostgreSQL."""
    page = Page(f"{project.address('dagster')}:3000", _TOKEN)
    wait_for("the page", page.is_ready, _PATIENCE_SECONDS)
    run = page.launch("upkeep")
    wait_for("its end", lambda: page.status(run) in _ENDED, _PATIENCE_SECONDS)
    assert page.status(run) == "SUCCESS", page.events(run)


def test_a_job_is_terminated(project: Project) -> None:
    """Without a broker a run keeps trying, until it is terminated on the page."""
    page = Page(f"{project.address('dagster')}:3000", _TOKEN)
    wait_for("the page", page.is_ready, _PATIENCE_SECONDS)
    project.run("stop", "kafka")
    try:
        run = page.launch("proof")
        wait_for("its first step", lambda: page.status(run) == "STARTED", _PATIENCE_SECONDS)
        page.terminate(run)
        wait_for("its end", lambda: page.status(run) in _ENDED, _PATIENCE_SECONDS)
        assert page.status(run) == "CANCELED", page.events(run)
    finally:
        project.run("start", "kafka")
        wait_for("the broker", lambda: project.is_healthy("kafka"), _PATIENCE_SECONDS)


@pytest.mark.parametrize("service", [*_INGESTERS, *_DAGSTER])
def test_a_service_ends_when_asked(project: Project, service: str) -> None:
    """SIGTERM ends each with exit code 0, within its time of grace."""
    project.run("start", service)
    wait_for(f"{service} to be healthy", lambda: project.is_healthy(service), _PATIENCE_SECONDS)
    assert project.stop(service) == 0
