"""Work besides the commit may fail in any way: ingest continues, and the failure is logged once (`isolated`)."""

import logging
import threading
from asyncio import CancelledError
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from dagster import DagsterExecutionInterruptedError
from kafka.errors import KafkaError
from polars.exceptions import PanicException

from pipelines.best_effort import best_effort
from pipelines.drain import drain, open_drain, open_ingest
from pipelines.errors import TransientError, is_termination
from pipelines.ingest.kafka import KafkaSource
from pipelines.lake.tables import create_lake
from pipelines.settings import Settings
from pipelines.stream import stream
from tests.draining import assert_verified, drain_all, query, send, valid_records, with_ingest
from tests.panic import Panic
from tests.services.waiting import PATIENCE_SECONDS, wait_for

FAILURES = [ZeroDivisionError("a defect"), KafkaError("a client"), TransientError("an outage"), Panic("of Rust")]
TERMINATIONS = [
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    CancelledError(),
    DagsterExecutionInterruptedError(),
    pytest.fail.Exception("a time limit"),
]


@pytest.fixture
def batches(settings: Settings) -> Settings:
    """Return settings of a topic from which each drain takes three batches."""
    kafka = settings.kafka.model_copy(update={"partitions": 1})
    small = with_ingest(settings.model_copy(update={"kafka": kafka}), max_batch_records=1)
    for number in range(3):
        send(small, valid_records(range(10 * number, 10 * number + 5)))
    return small


def raising(failure: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise failure

    return fail


@pytest.mark.parametrize("failure", FAILURES)
def test_a_report_that_raises(batches: Settings, caplog: pytest.LogCaptureFixture, failure: BaseException) -> None:
    """All batches are committed; the failure is logged once."""
    with open_drain(batches) as ingest:
        assert drain(ingest, raising(failure)) == 3
    assert caplog.text.count(f"reporting a commit: {failure}") == 1
    assert query(batches, "SELECT count(*) FROM events") == [(15,)]
    assert_verified(batches)


@pytest.mark.parametrize("termination", TERMINATIONS, ids=lambda error: type(error).__name__)
def test_a_termination_is_not_a_failure(termination: BaseException) -> None:
    """What a signal handler raises passes through: of Ctrl-C, an exit, Dagster or pytest."""
    with pytest.raises(type(termination)):
        best_effort(raising(termination), "reporting")()


def test_a_panic_is_recognized() -> None:
    """Of any extension: each raises a class of its own."""
    from pipelines.contract.protobuf import _columns  # noqa: PLC0415 - the decoder without the code that isolates it

    with pytest.raises(BaseException, match="slice index") as raised:
        _columns(pa.array([bytes.fromhex("0affffffffffffffffff01")], pa.binary()))
    for panic in (raised.value, PanicException("of polars"), Panic("of a test")):
        assert not is_termination(panic)


def test_a_failure_is_logged_again_after_a_success(project_log: pytest.LogCaptureFixture) -> None:
    """Consecutive failures are one log line; unexpected errors have a traceback."""
    outcomes: list[Exception | None] = [TransientError("one"), TransientError("two"), None, ZeroDivisionError("three")]

    def next_outcome() -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    call = best_effort(next_outcome, "doing")
    with project_log.at_level(logging.WARNING):
        for _ in range(4):
            call()
    assert project_log.messages == [
        "doing: one; the process continues without it",
        "doing: three; the process continues without it",
    ]
    assert [bool(record.exc_info) for record in project_log.records] == [False, True]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_group_that_accepts_no_offsets(
    batches: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: BaseException
) -> None:
    """For any error of its client, the lake's checkpoints count (`once`)."""
    monkeypatch.setattr(KafkaSource, "acknowledge", raising(failure))
    assert len(drain_all(batches)) >= 3
    assert caplog.text.count(f"acknowledging a commit to the bus: {failure}") == 1
    assert drain_all(batches) == []
    assert_verified(batches)


def test_a_notice_of_a_new_topic_that_cannot_be_given(
    batches: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The ids of topics read before are only used for a warning."""
    monkeypatch.setattr("pipelines.drain.topic_ids", raising(OSError("unreadable")))
    assert len(drain_all(batches)) >= 3
    assert "checking whether the topic was recreated: unreadable" in caplog.text
    assert_verified(batches)


@pytest.mark.parametrize("failure", FAILURES)
def test_stream_continues_if_its_callbacks_raise(batches: Settings, failure: BaseException) -> None:
    """Callbacks of every loop: commits continue, and the process ends only when stopped."""
    stopping, fails = threading.Event(), raising(failure)
    create_lake(batches.lake_root)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stream, batches, stopping, fails, fails, fails, fails)
        try:
            wait_for("all events", lambda: query(batches, "SELECT count(*) FROM events") == [(15,)])
            send(batches, valid_records([77]))
            wait_for("another event", lambda: query(batches, "SELECT count(*) FROM events") == [(16,)])
            assert not done.done()
        finally:
            stopping.set()
        done.result(PATIENCE_SECONDS)
    assert_verified(batches)


def test_stream_continues_if_compaction_fails(batches: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files that stay are no reason to stop: it is tried again with the next warehouse."""
    reputation = batches.reputation.model_copy(update={"derive_interval_seconds": 0.1})
    often = batches.model_copy(update={"reputation": reputation})
    attempts: list[None] = []

    def fail(*_: object) -> None:
        attempts.append(None)
        raise OSError("no space left")

    monkeypatch.setattr("pipelines.stream.compact", fail)
    create_lake(often.lake_root)
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stream, often, stopping, lambda _: None, lambda *_: None)
        try:
            wait_for("several attempts", lambda: len(attempts) > 2)
            send(often, valid_records([77]))
            wait_for("another event", lambda: query(often, "SELECT count(*) FROM events") == [(16,)])
        finally:
            stopping.set()
        done.result(PATIENCE_SECONDS)


def test_leaving_ingest_waits_for_the_group_offsets(batches: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offsets of the last batch are committed to the group before the process ends."""
    notified: list[int] = []
    monkeypatch.setattr(KafkaSource, "acknowledge", lambda _source, ranges: notified.append(ranges[0].next_offset))
    with open_ingest(batches) as ingest:
        drain(ingest, lambda _: None)
    assert notified == [5, 10, 15]
