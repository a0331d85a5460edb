"""The ingester in a process of its own: what it tells its parent, and how each ends with the other."""

import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import ingester_process
from pipelines.errors import ConfigurationError, KarmalakeError, TransientError
from pipelines.ingester_process import Outcome, Report, ingest
from pipelines.ingester_worker import _ParentHandler, _portable, _portable_record, _Reports
from pipelines.lake.tables import create_lake
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started, fork_ingester
from tests.draining import query, send, valid_records, with_ingest
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_crashes import environment


class Worker:
    """The ends of a forked worker, as the parent sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[Started] = []
        monkeypatch.setattr(ingester_process, "_start", self._start)

    def _start(self, connection: Connection) -> Started:
        self.processes.append(fork_ingester(connection))
        return self.processes[-1]


def _ingest(settings: Settings, stopping: threading.Event, on_iteration: Any = lambda *_: None) -> None:
    ingest(settings, stopping, lambda _: None, on_iteration, lambda _: None, lambda _: None)


def test_a_killed_worker_ends_its_parent(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one sentence, and the exit code for a restart; signals to the group of processes do not end the worker."""
    worker, turned = Worker(monkeypatch), threading.Event()
    send(settings, valid_records(range(7)))
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(_ingest, with_ingest(settings), threading.Event(), lambda *_: turned.set())
        assert turned.wait(PATIENCE_SECONDS)
        turned.clear()
        (process,) = worker.processes
        for number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
        assert turned.wait(PATIENCE_SECONDS)
        process.kill()
        with pytest.raises(TransientError, match="was ended by SIGKILL; what was committed stands: start again"):
            done.result(PATIENCE_SECONDS)
    assert query(settings, "SELECT count(*) FROM events") == [(7,)]


def test_an_error_of_the_worker_is_raised(settings: Settings) -> None:
    """As it was there, with its traceback as a note for the log of a bug."""
    topics = settings.model_copy(update={"sources": settings.sources.model_copy(update={"folder": Path("/nowhere")})})
    with pytest.raises(ConfigurationError) as raised:
        _ingest(topics, threading.Event())
    assert "/nowhere" in str(raised.value)
    assert "ingester_worker" in "".join(raised.value.__notes__)


@pytest.mark.slow
def test_the_worker_ends_with_a_killed_parent(settings: Settings) -> None:
    """At once and by itself: the next `stream` finds no other ingester, and no lock."""
    create_lake(settings.lake_root)
    send(settings, valid_records(range(7)))
    with ended(Started([*KARMALAKE, "stream"], env=environment(settings))) as process:
        wait_for("a commit", lambda: query(settings, "SELECT count(*) FROM events") == [(7,)])
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        ended_workers, running = psutil.wait_procs(workers, PATIENCE_SECONDS)
        assert (len(ended_workers), running) == (1, [])


def test_the_parent_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Records of the worker follow the parent's configuration, with text in place of what cannot be sent."""
    ours, theirs = Pipe()
    with ours, theirs, caplog.at_level(logging.INFO):
        logging.getLogger("tests.silent").setLevel(logging.CRITICAL)
        for name in ("tests.silent", "tests.heard"):
            theirs.send(Report("log", (_record(name),)))
        theirs.send(Report("end", (Outcome(None),)))
        receivers = {"log": ingester_process._log}
        assert ingester_process._receive_until_end(ours, receivers) == Outcome(None)
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("tests.heard", "a lock: <locked>")
    assert "ZeroDivisionError" in (record.exc_text or "")


def _record(name: str) -> logging.LogRecord:
    """Return a record as the worker sends it, whose argument cannot be sent."""

    class Locked:
        def __str__(self) -> str:
            return "<locked>"

    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        trace = (type(error), error, error.__traceback__)
        return _portable_record(logging.LogRecord(name, logging.WARNING, "", 0, "a lock: %s", (Locked(),), trace))
    raise AssertionError


def test_a_log_call_whose_arguments_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """It is shown as a mistake of that call, and ends nothing: ingest makes it, too."""
    ours, theirs = Pipe()
    with ours, theirs:
        handler = _ParentHandler(_Reports(theirs))
        handler.handle(logging.LogRecord("kafka", logging.WARNING, "", 0, "%d records", ("x",), None))
        assert not ours.poll()
    assert "--- Logging error ---" in capsys.readouterr().err


def test_an_error_that_cannot_be_sent_arrives_as_text() -> None:
    """Its text arrives, as a defect; an error of ours arrives as itself."""

    class UnsendableError(Exception):
        pass

    ours, theirs = Pipe()
    with ours, theirs:
        theirs.send(_portable(UnsendableError("of a library")))
        told = ours.recv()
    assert str(told) == "UnsendableError: of a library"
    own = KarmalakeError("as it is")
    assert _portable(own) is own


def test_a_worker_that_was_stopped_before_it_ignored_signals() -> None:
    """A supervisor signals all processes of a service at once, also one that has only begun: it has lost nothing."""
    assert ingester_process._killed(-signal.SIGTERM, stopped=True) == Outcome(None)
    assert "by SIGTERM" in str(ingester_process._killed(-signal.SIGTERM, stopped=False).error)
    assert "with exit code 75" in str(ingester_process._killed(os.EX_TEMPFAIL, stopped=True).error)
