"""Read-ahead changes when a batch is read, never its contents."""

import time
from collections.abc import Collection, Iterator

import pyarrow as pa
import pytest

from pipelines.contract.decode import Decoded
from pipelines.contract.schema import EVENT, POSITION, RECORD, REJECTED
from pipelines.errors import UsageError
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.filling import NEVER
from pipelines.ingest.guard import HaltedPartition
from pipelines.ingest.kafka import open_source
from pipelines.ingest.read_ahead import ReadAhead, open_read_ahead
from pipelines.settings import Settings
from tests.draining import send, valid_records, with_ingest
from tests.services.waiting import wait_for

_TRIES = 40


@pytest.fixture
def source(settings: Settings) -> Iterator[ReadAhead]:
    """Yield a source over record batches of ten records each, with batches of one record batch."""
    one = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 1})})
    for start in range(0, 50, 10):
        send(one, valid_records(range(start, start + 10)))
    with (
        open_source(with_ingest(one, max_batch_records=1, max_wait_seconds=1)) as source,
        open_read_ahead(source, NEVER) as ahead,
    ):
        yield ahead


def at(offset: int | None) -> Checkpoint:
    return lambda _topic_id, partition: offset if partition == 0 else None


def offsets(source: ReadAhead, checkpoint: int | None) -> list[int]:
    batch = wait_for("a batch", lambda: source.poll(at(checkpoint)))
    return batch.records["offset"].to_pylist()


def test_what_was_read_ahead_is_what_follows(source: ReadAhead) -> None:
    """Each batch begins where the previous one ended (`nothing-lost`)."""
    read: list[int] = []
    while (batch := source.poll(at(read[-1] + 1 if read else None))) is not None:
        read += batch.records["offset"].to_pylist()
    assert read == list(range(50))


def test_what_was_read_ahead_is_dropped_when_the_checkpoint_is_elsewhere(source: ReadAhead) -> None:
    """An uncommitted batch is read again, and one that another process committed is skipped (`once`)."""
    first = offsets(source, None)
    assert offsets(source, None) == first
    assert offsets(source, 40)[0] == 40
    assert offsets(source, 3)[0] == 3


def test_what_was_read_ahead_from_elsewhere_is_read_again() -> None:
    """The previous batch may be committed and a checkpoint moved all the same, by a skip or an accepted loss."""
    with open_read_ahead(_TwoPartitions(), NEVER) as ahead:
        assert _begins(ahead.poll(_of({0: 0, 1: 0}, only={0}))) == {0: 0}
        assert _begins(ahead.poll(_of({0: 10, 1: 7}))) == {0: 10, 1: 7}
        assert _begins(ahead.poll(_of({0: 20, 1: 17}))) == {0: 20, 1: 17}


class _TwoPartitions:
    """A source of two topic partitions, with ten offsets per poll of each that has a checkpoint."""

    def __init__(self) -> None:
        self.ends = {0: 0, 1: 0}

    def poll(self, checkpoint: Checkpoint) -> Batch:
        begins = {n: at for n in self.ends if (at := checkpoint("t", n)) is not None}
        ranges = tuple(OffsetRange("t", "t", n, at, at + 10, gaps=10) for n, at in begins.items())
        self.ends |= {n: at + 10 for n, at in begins.items()}
        decoded = Decoded(
            pa.schema([*EVENT, *POSITION]).empty_table(),
            REJECTED.empty_table(),
            pa.array([], pa.bool_()),
            POSITION.empty_table(),
        )
        return Batch("test", RECORD.empty_table(), decoded, ranges)

    def next_checkpoint(self) -> Checkpoint:
        return _of(dict(self.ends))

    def remaining_records(self) -> int:
        return 0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Do nothing."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        return ()

    def halt(self, halted: HaltedPartition) -> None:
        """Do nothing."""


def _of(at: dict[int, int], only: Collection[int] = (0, 1)) -> Checkpoint:
    return lambda _topic_id, partition: at[partition] if partition in only else None


def _begins(batch: Batch | None) -> dict[int, int]:
    assert batch is not None
    return {offsets.topic_partition: offsets.start_offset for offsets in batch.ranges}


def test_the_end_is_known_soon_after_an_empty_poll(settings: Settings) -> None:
    """The fetch that such a poll leaves at the broker does not delay the next request by half a second."""
    send(settings, valid_records(range(10)))
    delays: list[float] = []
    with open_source(with_ingest(settings)) as source:
        wait_for("the records", lambda: source.poll(source.next_checkpoint()))
        while len(delays) < _TRIES and min(delays, default=1) >= 0.1:
            assert source.poll(source.next_checkpoint()) is None
            begun = time.monotonic()
            source.remaining_records()
            delays.append(time.monotonic() - begun)
    assert min(delays) < 0.1  # each takes half a second if it waits for the fetch


def test_a_batch_read_ahead_counts_as_remaining(source: ReadAhead) -> None:
    """Records read ahead are included; the embedded broker understates the end of the log by a batch."""
    assert source.remaining_records() == 0, "no position is known before the first poll"
    read = offsets(source, None)
    assert 40 - len(read) <= source.remaining_records() <= 50 - len(read)


def test_an_error_of_reading_ahead_is_raised_by_the_next_poll(
    source: ReadAhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next poll raises the error of the read-ahead, and the one after it reads again."""
    first = offsets(source, None)
    source.remaining_records()
    with monkeypatch.context() as patch:
        patch.setattr(type(source.source), "poll", _raise)
        last = offsets(source, len(first))[-1]
        with pytest.raises(UsageError, match="gone"):
            source.poll(at(last + 1))
    assert offsets(source, last + 1)[0] == last + 1


def _raise(*_: object) -> None:
    raise UsageError("the topic is gone")
