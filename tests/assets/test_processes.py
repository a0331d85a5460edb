"""Dagster as compose.yaml starts it: a code server, the page and the daemon, here as processes on one machine.

Its runs are in a real PostgreSQL, by the storage of the image and with the driver of compose.yaml.
"""

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from pipelines.settings import Settings
from tests.assets.graphql import Page
from tests.conftest import REPOSITORY
from tests.draining import query, send, valid_records
from tests.services.ports import HOST, free_port
from tests.services.postgres_server import PASSWORD, USER, PostgresServer
from tests.services.process import ended
from tests.services.proxy import Proxy
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_crashes import environment

_SERVICES: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))["services"]
_STORAGE = re.findall(r"printf '(.+?)' >> /dagster/dagster.yaml", (REPOSITORY / "Dockerfile").read_text("utf-8"))[0]
"""What the image adds to dagster.yaml."""
_RACE = "RuntimeError: release unlocked lock"
"""What Python raises in Dagster's code server where the signal comes while a Condition takes its lock again."""
_TOKEN = "a-token-of-the-test"  # noqa: S105 - of no server


class Dagster:
    """The three processes of one Dagster."""

    def __init__(self, folder: Path, variables: dict[str, str], storage_url: str) -> None:
        (folder / "home").mkdir(parents=True)
        config = (REPOSITORY / "dagster.yaml").read_text(encoding="utf-8") + _STORAGE.replace("\\n", "\n")
        (folder / "home" / "dagster.yaml").write_text(config, encoding="utf-8")
        self._ports = {"3000": free_port(), "4000": free_port()}
        self._folder, self._variables = (
            folder,
            variables
            | {
                "DAGSTER_HOME": str(folder / "home"),
                "DAGSTER_POSTGRES_URL": storage_url,
                "DAGSTER_CODE_HOST": HOST,
                "DAGSTER_CODE_PORT": str(self._ports["4000"]),
                "KARMALAKE_DAGSTER_TOKEN": _TOKEN,
            },
        )
        self.page = Page(f"{HOST}:{self._ports['3000']}", _TOKEN)

    @contextmanager
    def started(self, service: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run the command of a service of compose.yaml, here, and with other ports."""
        workspace = {"/dagster/workspace.yaml": REPOSITORY / "compose.workspace.yaml"}
        words = {**self._ports, **workspace, "0.0.0.0": HOST}  # noqa: S104 - what compose.yaml says
        program, *arguments = (str(words.get(word, word)) for word in _SERVICES[service]["command"])
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        with (
            (self._folder / f"{service}.log").open("ab") as log,
            ended(subprocess.Popen(command, env=self._variables, stdout=log, stderr=log, cwd=self._folder)) as process,
        ):
            yield process

    def terminate(self, processes: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
        """End all three with SIGTERM; return their exit codes, 0 for a code server that met `_RACE` at its end."""
        for process in processes:
            process.terminate()
        *others, code = [process.wait(PATIENCE_SECONDS) for process in processes]
        has_met = _RACE in (self._folder / "dagster-code.log").read_text(encoding="utf-8")
        return [*others, 0 if code == 1 and has_met else code]


@pytest.fixture
def storage_url(postgres: PostgresServer) -> str:
    """Return the address of an empty database, in the form of compose.yaml."""
    name = f"dagster_{uuid.uuid4().hex}"
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    scheme, _, _ = _SERVICES["dagster"]["environment"]["DAGSTER_POSTGRES_URL"].partition("://")
    return f"{scheme}://{USER}:{PASSWORD}@{HOST}:{postgres.port}/{name}"


@contextmanager
def _running(dagster: Dagster) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run all three, one after another as Compose does; yield them in the order in which it stops them."""
    with (
        dagster.started("dagster-code") as code,
        dagster.started("dagster") as page,
    ):
        wait_for("the page and its code", dagster.page.is_ready)
        with dagster.started("dagster-daemon") as daemon:
            yield [daemon, page, code]


@pytest.mark.slow
def test_runs_start_and_end(settings: Settings, tmp_path: Path, storage_url: str) -> None:
    """A run of the page finishes, is recorded in PostgreSQL, or is terminated there; SIGTERM ends each process with 0.

    The page reaches a run that the daemon launched, since both use the same code server.
    """
    send(settings, valid_records(range(20)))
    with Proxy(int(str(settings.kafka.bootstrap_servers).rpartition(":")[2])) as proxy:
        bus = {"KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": proxy.address}
        dagster = Dagster(tmp_path / "dagster", environment(settings) | bus, storage_url)
        with _running(dagster) as processes:
            assert dagster.page.location() == "karmalake"
            run = dagster.page.launch("refresh")
            wait_for("the run", lambda: dagster.page.status(run) in {"SUCCESS", "FAILURE", "CANCELED"})
            assert dagster.page.status(run) == "SUCCESS", dagster.page.events(run)
            assert query(settings, "SELECT count(*) FROM events") == [(20,)]
            with psycopg.connect(storage_url.replace("+psycopg2", "")) as connection:
                assert connection.execute("SELECT status FROM runs").fetchall() == [("SUCCESS",)]
            proxy.cut()  # a run that drains waits for its next try
            waiting = dagster.page.launch("refresh")
            wait_for("a retry", lambda: "has requested a retry" in dagster.page.events(waiting))
            dagster.page.terminate(waiting)
            wait_for("its end", lambda: dagster.page.status(waiting) == "CANCELED")
            assert dagster.terminate(processes) == [0, 0, 0]
