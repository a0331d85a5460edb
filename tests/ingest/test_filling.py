"""A batch is committed at its limits, or a linger after its first record: the clock is the test's."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from pipelines.drain import Ingest, drain_once, open_ingest
from pipelines.ingest.filling import Filling
from pipelines.ingest.kafka import KafkaSource
from pipelines.ingest.message import Message
from pipelines.ingest.queue import QueueSource
from pipelines.lake.commit import CommitRecord
from pipelines.settings import ContractSettings, IngestSettings, Settings
from tests.draining import assert_verified, drain_all, query, send, valid_records, with_ingest
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_LINGER = 0.25


@dataclass
class Clock:
    """A clock that only the test advances."""

    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_batch_is_complete_at_a_limit_or_after_its_linger() -> None:
    """Records and bytes are limits; the time counts from the first record, not from the last."""
    clock = Clock()
    by_time = Filling(10, 1_000, _LINGER, clock)
    for _ in range(9):
        by_time.add(1, 100)
        clock.seconds += _LINGER / 10
        assert 0 < by_time.seconds_left() < _LINGER
    clock.seconds += _LINGER / 5
    assert by_time.seconds_left() == 0
    by_records, by_bytes = Filling(10, 1_000, _LINGER, clock), Filling(10, 1_000, _LINGER, clock)
    by_records.add(10, 1)
    by_bytes.add(1, 1_000)
    assert by_records.seconds_left() == by_bytes.seconds_left() == 0


@pytest.fixture
def records_added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of records added to batches since the fixture was made."""
    added: list[int] = []
    original = Filling.add

    def add(filling: Filling, records: int, size: int) -> None:
        original(filling, records, size)
        added.append(records)

    monkeypatch.setattr(Filling, "add", add)
    return added


class _DuringPause(threading.Event):
    """An event that, instead of the first wait for it, does something, and skips the other waits."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__()
        self._actions = [action]

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - as of the original
        if self._actions:
            self._actions.pop()()
        return self.is_set()


def test_records_accumulate_between_the_fetches_of_a_batch(settings: Settings, records_added: list[int]) -> None:
    """Records sent one by one in a pause come in two fetches: the one that was under way, and one of all others."""
    clock, lingering = Clock(), with_ingest(settings, linger_seconds=_LINGER)
    send(lingering, valid_records([0]))

    def send_more() -> None:
        for number in range(1, 21):
            send(lingering, valid_records([number]))

    with open_ingest(lingering, stopping=_DuringPause(send_more)) as ingest, ThreadPoolExecutor(1) as thread:
        _set_clock(ingest, clock)
        committing = thread.submit(_commit, ingest)
        try:
            wait_for("the records of the pause", lambda: sum(records_added) == 21)
        finally:
            clock.seconds += _LINGER
        assert committing.result(PATIENCE_SECONDS).total("accepted") == 21
    assert len([records for records in records_added if records]) <= 3


def test_records_that_come_within_the_linger_are_one_commit(settings: Settings, records_added: list[int]) -> None:
    """Records that arrive one by one are committed together once the time is over, and not before (`fresh`)."""
    clock, lingering = Clock(), with_ingest(settings, linger_seconds=_LINGER)
    send(lingering, valid_records([0]))
    with open_ingest(lingering) as ingest, ThreadPoolExecutor(1) as thread:
        _set_clock(ingest, clock)
        committing = thread.submit(_commit, ingest)
        try:
            for number in range(1, 6):
                wait_for("the record before", lambda sent=number: sum(records_added) == sent)
                send(lingering, valid_records([number]))
            wait_for("the last record", lambda: sum(records_added) == 6)
            assert not committing.done()
        finally:
            clock.seconds += _LINGER
        assert committing.result(PATIENCE_SECONDS).total("accepted") == 6
    assert query(lingering, "SELECT count(*), sum(accepted) FROM commits") == [(1, 6)]
    assert_verified(lingering)


def test_the_end_of_the_process_waits_for_no_records(settings: Settings, records_added: list[int]) -> None:
    """What was read is not committed, and the next start reads it again (`nothing-lost`)."""
    stopping, patient = threading.Event(), with_ingest(settings, linger_seconds=3_600)
    send(patient, valid_records([0]))
    with open_ingest(patient, stopping=stopping) as ingest, ThreadPoolExecutor(1) as thread:
        committing = thread.submit(drain_once, ingest)
        try:
            wait_for("the record", lambda: sum(records_added) == 1)
        finally:
            stopping.set()
        assert committing.result(PATIENCE_SECONDS) is None
        assert drain_once(ingest) is None
    assert query(settings, "SELECT count(*) FROM commits") == [(0,)]
    assert [record.total("accepted") for record in drain_all(settings)] == [1]
    assert_verified(settings)


def test_a_full_batch_does_not_linger(settings: Settings) -> None:
    """A batch is committed when it has its records, without any time passing."""
    small = with_ingest(settings, linger_seconds=_LINGER, max_batch_records=1)
    send(small, valid_records([0]))
    with open_ingest(small) as ingest:
        _set_clock(ingest, Clock())
        assert _commit(ingest).total("accepted") == 1


def _set_clock(ingest: Ingest, clock: Clock) -> None:
    source = ingest.source.source
    assert isinstance(source, KafkaSource)
    source.poller.clock = clock


def _commit(ingest: Ingest) -> CommitRecord:
    return wait_for("a commit", lambda: drain_once(ingest))


@dataclass
class Queue:
    """A queue in which a message arrives every tenth of a second, on the test's clock."""

    clock: Clock
    name: str = "queue:test"
    place: str = "here"
    max_wait_seconds: float = 0.1
    waits: list[float] = field(default_factory=list[float])

    def receive(self, max_messages: int, wait_seconds: float) -> list[Message]:
        assert max_messages > 0
        self.waits.append(wait_seconds)
        self.clock.seconds += min(0.1, wait_seconds)
        return [Message(b"{}", 0, len(self.waits))] if wait_seconds >= 0.1 else []

    def acknowledge(self, receipts: list[object]) -> None:
        """Do nothing."""

    def release(self, receipts: list[object]) -> None:
        """Do nothing."""

    def waiting(self) -> int:
        return 1


def test_the_end_of_the_process_waits_for_no_messages() -> None:
    """A queue is asked once more, and not for the time that a batch without an end waits."""
    stopping, clock = threading.Event(), Clock()
    stopping.set()
    client = Queue(clock)
    ingest = IngestSettings(max_wait_seconds=3_600, linger_seconds=3_600)
    QueueSource(client, ingest, ContractSettings(), stopping, clock=clock).poll(lambda *_: None)
    assert len(client.waits) <= 2
    assert max(client.waits) <= 0.1


@pytest.mark.parametrize(("linger", "messages"), [(0.25, 3), (0.0, 1)])
def test_a_queue_lingers_by_the_same_setting(linger: float, messages: int) -> None:
    """A message every 0.1 s: the first, and those of the next 0.25 s; without a linger the first alone."""
    clock = Clock()
    ingest = IngestSettings(max_wait_seconds=0.5, linger_seconds=linger)
    batch = QueueSource(Queue(clock), ingest, ContractSettings(), clock=clock).poll(lambda *_: None)
    assert batch is not None
    assert len(batch.records) == messages
