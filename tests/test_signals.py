"""SIGTERM, as container engines send it: a long-lived command ends with exit code 0, whatever it is waiting for.

`karmalake notify` needs Apache Kafka: its signals are in tests/notify.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.boundary.file_lock import exclusive_lock
from pipelines.bus.topics import ensure_topic
from pipelines.lake.tables import create_lake
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started
from tests.draining import assert_verified, drain_all, query, send, valid_records
from tests.emit.outboxes import create_outbox, disposed, sqlite_url
from tests.monitoring.scraping import METRICS_AT, scrape, status
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_crashes import environment

Environment = dict[str, str]

_LONG_WAITS = {
    "KARMALAKE_LAG_INTERVAL_SECONDS": "3600",
    "KARMALAKE_REPUTATION_DERIVE_INTERVAL_SECONDS": "3600",
    "KARMALAKE_INGEST_PUBLISH_DEAD_LETTERS": "true",
}
"""Waits that outlast any test, unless the signal interrupts them; and the loop that copies dead letters."""


@pytest.fixture
def variables(settings: Settings, tmp_path: Path) -> Environment:
    """Return the environment of commands with a topic and an outbox."""
    ensure_topic(settings.kafka)
    url = sqlite_url(tmp_path)
    with disposed(url) as service:
        create_outbox(service)
    return _environment(settings) | {"KARMALAKE_RELAY_DATABASE_URL": url.render_as_string()}


def _environment(settings: Settings) -> Environment:
    return environment(settings) | {
        "PYTHONUNBUFFERED": "1",
        **_LONG_WAITS,
    }


class Command:
    """A running command, and what it has printed."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process, self._log = process, log

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        """Where it serves its metrics, once it does."""
        return wait_for("the metrics", lambda: re.search(METRICS_AT, self.output))[1]

    def handles(self, number: signal.Signals) -> bool:
        """Return whether the process has a handler for a signal by now."""
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii"))
        return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)

    def terminate(self) -> None:
        """Send SIGTERM; assert that it ends by itself, and cleanly."""
        assert not self.terminate_anywhere(), self.output

    def terminate_in_a_wait(self) -> None:
        """Send SIGTERM; assert that it is ended cleanly after the seconds that it has."""
        assert self.terminate_anywhere(), self.output

    def terminate_anywhere(self) -> bool:
        """Send SIGTERM; assert that it ends cleanly, and return whether it was ended, not by itself."""
        self.process.terminate()
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.output
        assert "Traceback" not in self.output
        assert "stopped; " in self.output
        return "left to the next start" in self.output


@contextmanager
def _started(
    name: str, variables: Environment, folder: Path, start: Callable[..., "subprocess.Popen[str]"] = Started
) -> Iterator[Command]:
    program = [*KARMALAKE, name, "--metrics-port", "0"]
    log = folder / f"{name}.log"
    with (
        log.open("w") as output,
        ended(start(program, env=variables, stdout=output, stderr=output)) as process,
    ):
        yield Command(process, log)


def _in_a_new_interpreter(program: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
    """Start a program as a shell does: the signal arrives between its imports."""
    return subprocess.Popen([sys.executable, *program], text=True, **options)


@pytest.mark.parametrize("name", ["stream", "ingest", "relay"])
def test_a_signal_during_the_start(variables: Environment, tmp_path: Path, name: str) -> None:
    """As soon as the command handles the signal, before it has connected to anything: within 5 s at the latest.

    Imports cannot be interrupted, so whether it ends by itself depends on the machine.
    """
    with _started(name, variables, tmp_path, _in_a_new_interpreter) as command:
        wait_for("the handler", lambda: command.handles(signal.SIGTERM))
        command.terminate_anywhere()


@pytest.mark.parametrize("name", ["stream", "ingest", "relay"])
def test_a_signal_while_idle(variables: Environment, tmp_path: Path, name: str) -> None:
    """No wait of a loop delays the end: those for records are short, the others are interrupted."""
    with _started(name, variables, tmp_path) as command:
        wait_for("readiness", lambda: status(command.address, "/readyz")[0] == 200)
        command.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "ingest", "relay"])
def test_a_signal_without_a_broker(variables: Environment, tmp_path: Path, name: str) -> None:
    """A command that retries because nothing answers ends as well."""
    nowhere = variables | {"KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    with _started(name, nowhere, tmp_path) as command:
        _wait_for_outage(command)
        command.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "ingest"])
def test_a_signal_while_the_broker_hangs(settings: Settings, tmp_path: Path, name: str) -> None:
    """A broker that is suspended while the command reads does not delay the end by the timeout of a request.

    It is ended while it waits for the broker, unless the signal comes between two of its polls.
    """
    own = settings.model_copy(update={"data_dir": tmp_path / "own", "kafka": Settings().kafka})
    broker = start(own).broker
    assert broker is not None
    variables = _environment(with_local_endpoints(own)) | {"KARMALAKE_KAFKA_REQUEST_TIMEOUT_SECONDS": "500"}
    ensure_topic(with_local_endpoints(own).kafka)
    try:
        with _started(name, variables, tmp_path) as command:
            wait_for("readiness", lambda: status(command.address, "/readyz")[0] == 200)
            os.kill(broker.process.pid, signal.SIGSTOP)
            command.terminate_anywhere()
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
        stop(own)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "serve"])
def test_a_signal_while_another_process_has_the_warehouse(variables: Environment, tmp_path: Path, name: str) -> None:
    """The wait for its lock does not delay the end: the command is ended while it waits."""
    folder = Path(variables["KARMALAKE_DATA_DIR"])
    create_lake(folder / "lake")
    with exclusive_lock(folder / "warehouse.duckdb.lock"), _started(name, variables, tmp_path) as command:
        wait_for("the wait", lambda: "waiting for process" in command.output)
        command.terminate_in_a_wait()


def _wait_for_outage(command: Command) -> None:
    wait_for("an outage", lambda: scrape(command.address).total("karmalake_loop_outages_total") > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "ingest"])
def test_a_signal_between_two_batches(settings: Settings, variables: Environment, tmp_path: Path, name: str) -> None:
    """The batch in progress is committed, and the next command continues after it (`once`, `nothing-lost`)."""
    for first in range(0, 3_000, 100):
        send(settings, valid_records(range(first, first + 100)))
    with _started(name, variables | {"KARMALAKE_INGEST_MAX_BATCH_RECORDS": "1"}, tmp_path) as command:
        wait_for("a commit", lambda: "commit" in command.output)
        command.terminate()
    drain_all(settings)
    assert query(settings, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(3_000, 3_000)]
    assert_verified(settings)
