"""Reading ahead changes when a batch is read, never which."""

import time
from collections.abc import Iterator

import pytest

from pipelines.errors import UsageError
from pipelines.ingest.ahead import ReadAhead, reading_ahead
from pipelines.ingest.ranges import Checkpoint
from pipelines.ingest.source import open_source
from pipelines.settings import Settings
from tests.draining import send, valid_records, with_ingest
from tests.services.waiting import wait_for


@pytest.fixture
def source(settings: Settings) -> Iterator[ReadAhead]:
    """Yield a source over a topic whose record batches hold ten records each, and whose batches hold one of them."""
    one = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 1})})
    for start in range(0, 50, 10):
        send(one, valid_records(range(start, start + 10)))
    with (
        open_source(with_ingest(one, max_batch_records=1, max_wait_seconds=1)) as source,
        reading_ahead(source) as ahead,
    ):
        yield ahead


def at(offset: int | None) -> Checkpoint:
    return lambda _topic_id, partition: offset if partition == 0 else None


def offsets(source: ReadAhead, checkpoint: int | None) -> list[int]:
    batch = wait_for("a batch", lambda: source.poll(at(checkpoint)))
    return batch.records["offset"].to_pylist()


def test_what_was_read_ahead_is_what_follows(source: ReadAhead) -> None:
    """Each batch begins where the one before ended (`nothing-lost`)."""
    read: list[int] = []
    while (batch := source.poll(at(read[-1] + 1 if read else None))) is not None:
        read += batch.records["offset"].to_pylist()
    assert read == list(range(50))


def test_what_was_read_ahead_is_dropped_when_the_checkpoint_is_elsewhere(source: ReadAhead) -> None:
    """A batch that was not committed is read again, and one that somebody else committed is passed over (`once`)."""
    first = offsets(source, None)
    assert offsets(source, None) == first
    assert offsets(source, 40)[0] == 40
    assert offsets(source, 3)[0] == 3


def test_the_end_is_known_soon_after_a_poll_in_vain(settings: Settings) -> None:
    """The fetch that such a poll leaves with the broker keeps nobody waiting for half a second more."""
    send(settings, valid_records(range(10)))
    waited: list[float] = []
    with open_source(with_ingest(settings)) as source:
        wait_for("the records", lambda: source.poll(source.following()))
        for _ in range(4):
            assert source.poll(source.following()) is None
            begun = time.monotonic()
            source.behind()
            waited.append(time.monotonic() - begun)
    assert min(waited) < 0.1


def test_the_batch_in_hand_lies_behind(source: ReadAhead) -> None:
    """Lag counts what is read but not handed over; of the log's end, the embedded broker understates a batch."""
    assert source.behind() == 0, "nothing is known before the first poll"
    read = offsets(source, None)
    assert 40 - len(read) <= source.behind() <= 50 - len(read)


def test_an_error_of_reading_ahead_is_raised_by_the_next_poll(
    source: ReadAhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits in vain for a batch that could not be read, and the poll after that reads again."""
    first = offsets(source, None)
    source.behind()
    with monkeypatch.context() as patch:
        patch.setattr(type(source.source), "poll", _raise)
        last = offsets(source, len(first))[-1]
        with pytest.raises(UsageError, match="gone"):
            source.poll(at(last + 1))
    assert offsets(source, last + 1)[0] == last + 1


def _raise(*_: object) -> None:
    raise UsageError("the topic is gone")
