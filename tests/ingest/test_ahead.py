"""Reading ahead changes when a batch is read, never which."""

import time
from collections.abc import Collection, Iterator

import pyarrow as pa
import pytest

from pipelines.contract.decode import Decoded
from pipelines.contract.schema import EVENT, PLACE, RECORD, REJECTED
from pipelines.errors import UsageError
from pipelines.ingest.ahead import ReadAhead, reading_ahead
from pipelines.ingest.guard import Halted
from pipelines.ingest.ranges import Batch, Checkpoint, OffsetRange
from pipelines.ingest.source import open_source
from pipelines.settings import Settings
from tests.draining import send, valid_records, with_ingest
from tests.services.waiting import wait_for

_TRIES = 40


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


def test_what_was_read_ahead_from_elsewhere_is_read_again() -> None:
    """The batch before it may be committed, and its own begin be another one's: by a skip or an accepted loss."""
    with reading_ahead(_TwoPartitions()) as ahead:
        assert _begins(ahead.poll(_of({0: 0, 1: 0}, only={0}))) == {0: 0}
        assert _begins(ahead.poll(_of({0: 10, 1: 7}))) == {0: 10, 1: 7}
        assert _begins(ahead.poll(_of({0: 20, 1: 17}))) == {0: 20, 1: 17}


class _TwoPartitions:
    """A source of ten offsets a poll of each topic partition that the first poll does not leave out."""

    def __init__(self) -> None:
        self.ends = {0: 0, 1: 0}

    def poll(self, checkpoint: Checkpoint) -> Batch:
        begins = {n: at for n in self.ends if (at := checkpoint("t", n)) is not None}
        ranges = tuple(OffsetRange("t", "t", n, at, at + 10, gaps=10) for n, at in begins.items())
        self.ends |= {n: at + 10 for n, at in begins.items()}
        decoded = Decoded(pa.schema([*EVENT, *PLACE]).empty_table(), REJECTED.empty_table(), pa.array([], pa.bool_()))
        return Batch("test", RECORD.empty_table(), decoded, ranges)

    def following(self) -> Checkpoint:
        return _of(dict(self.ends))

    def behind(self) -> int:
        return 0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Need nothing."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        return ()

    def halt(self, halted: Halted) -> None:
        """Need nothing."""


def _of(at: dict[int, int], only: Collection[int] = (0, 1)) -> Checkpoint:
    return lambda _topic_id, partition: at[partition] if partition in only else None


def _begins(batch: Batch | None) -> dict[int, int]:
    assert batch is not None
    return {offsets.topic_partition: offsets.start_offset for offsets in batch.ranges}


def test_the_end_is_known_soon_after_a_poll_in_vain(settings: Settings) -> None:
    """The fetch that such a poll leaves with the broker keeps nobody waiting for half a second more."""
    send(settings, valid_records(range(10)))
    waited: list[float] = []
    with open_source(with_ingest(settings)) as source:
        wait_for("the records", lambda: source.poll(source.following()))
        while len(waited) < _TRIES and min(waited, default=1) >= 0.1:
            assert source.poll(source.following()) is None
            begun = time.monotonic()
            source.behind()
            waited.append(time.monotonic() - begun)
    assert min(waited) < 0.1  # each of them takes half a second where the fetch is waited for


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
