"""The protocol of one batch, on one screen, and the loop around it.

    poll -> decode -> dedupe -> write files -> dead letters and conflicts -> COMMIT -> index -> record -> group offsets

Only the commit of `events` publishes (`atomic`): files, checkpoints and counts together, on exactly the version that
the checkpoints were read from (`fenced`). What stands before it leaves, after a crash, files that nothing names and
rows of a batch that was never committed; what stands after it is repeated or completed on the next start.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from pipelines.beside import best_effort
from pipelines.contract.decode import keep
from pipelines.dlq import copied_afterwards
from pipelines.errors import FencedError, RejectedError, TransientError
from pipelines.halted import remember
from pipelines.ingest.ahead import ReadAhead, Source, reading_ahead
from pipelines.ingest.guard import Halted, RejectionGuard
from pipelines.ingest.queue import open_queue
from pipelines.ingest.ranges import Batch, LastRead, OffsetRange
from pipelines.ingest.source import open_source
from pipelines.lake.commit import (
    CommitRecord,
    OvertakenError,
    append,
    commit_batch,
    describe_events,
    stage_events,
)
from pipelines.lake.history import complete_commits, topic_ids
from pipelines.lake.index import CONFLICT, DUPLICATE, NEW, DedupIndex, Verdicts, open_index
from pipelines.lake.positions import last_record
from pipelines.lake.tables import Lake, checkpoint_id, create_lake
from pipelines.lake.tombstones import Spared, Tombstones, open_tombstones
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_NO_WAIT_SECONDS = 0.05
"""A few round trips to a broker: none at all would ask for the end again and again."""


@dataclass(frozen=True, slots=True)
class Ingest:
    """What ingest holds between batches. `events` is the handle that checkpoints are read from and that commits."""

    settings: Settings
    source: ReadAhead
    lake: Lake
    events: DeltaTable
    index: DedupIndex
    tombstones: Tombstones
    guard: RejectionGuard
    stopped: list[Halted] = field(default_factory=list[Halted])
    """Topic partitions that the guard has halted, in their order; those that are halted still say `halted`."""
    answers: dict[int, dict[str, int | None]] = field(default_factory=dict[int, dict[str, int | None]])
    """What the log of the handle's version said of checkpoints: each question costs it up to 2 ms."""

    def checkpoint(self, topic_id: str, topic_partition: int) -> int | None:
        """Return the next_offset at the version of the handle; None for a topic partition never read."""
        version, name = self.events.version(), checkpoint_id(topic_id, topic_partition)
        if version not in self.answers:
            self.answers.clear()
            self.answers[version] = {}
        answers = self.answers[version]
        if name not in answers:
            answers[name] = self.events.transaction_version(name)
        return answers[name]

    def last_read(self, topic_id: str, topic_partition: int) -> LastRead | None:
        """Return the last record before the checkpoint at the version of the handle; None if it is not known."""
        return last_record(self.events, topic_id, topic_partition)

    def halted(self) -> tuple[Halted, ...]:
        """Return the topic partitions that are not read on: nobody has moved their checkpoint since."""
        at = {halted: self.checkpoint(halted.topic_id, halted.topic_partition) for halted in self.stopped}
        return tuple(halted for halted in self.stopped if at[halted] in {halted.next_offset, None})


def drain_once(ingest: Ingest) -> CommitRecord | None:
    """Move one batch from the bus into the lake; None when the bus had nothing.

    Whatever kills it, and wherever: the next call continues from the last commit and counts nothing twice (`once`).
    """
    batch = _admit(ingest, ingest.source.poll(ingest.checkpoint))
    if batch is None:
        return None
    best_effort(_notice_a_new_topic, "looking whether the topic is another one")(ingest, batch)
    started = datetime.now(UTC)
    while True:
        ingest.tombstones.catch_up(ingest.events)
        spared = ingest.tombstones.spare(batch.decoded)
        decoded = spared.decoded
        batch_id = uuid4().hex  # of this attempt: what it leaves behind counts only if it is the one that commits
        append(ingest.lake, "dead_letters", decoded.rejected, batch_id)
        ingest.index.catch_up(ingest.events)
        verdicts = ingest.index.classify(decoded.events)
        append(ingest.lake, "conflicts", decoded.events.filter(verdicts.mask(CONFLICT)), batch_id)
        accepted = keep(decoded.events, verdicts.mask(NEW))
        record = _describe(batch_id, started, batch, spared, verdicts, accepted)
        files = stage_events(ingest.lake, accepted, batch_id)
        try:
            record = commit_batch(ingest.lake, ingest.events, files, record)
            break
        except OvertakenError:
            _LOG.info("another commit came first: batch %s is deduplicated again", batch_id)
        except FencedError:
            if not ingest.settings.ingest.share_partitions:
                raise
            return drain_once(ingest)  # they were moved to us while another ingester was committing: read on from there
    ingest.index.extend(verdicts.new, record.version)
    complete_commits(ingest.lake, record.version)
    ingest.source.acknowledge(record.ranges)
    return record


def drain(ingest: Ingest, report: Callable[[CommitRecord], None], max_batches: int | None = None) -> int:
    """Drain until nothing lies behind, or `max_batches` are committed; call `report` after each; return their number.

    What `report` raises is logged: a batch is committed by then. Raises TransientError when records lie behind but none
    come for as long as a request may take, and RejectedError in the end when topic partitions were halted, once the
    others are drained.
    """
    batches, patience = 0, ingest.settings.kafka.request_timeout_seconds
    quiet_since = time.monotonic()
    tell = best_effort(report, "reporting a commit")
    while max_batches is None or batches < max_batches:
        record = drain_once(ingest)
        if record is not None:
            tell(record)
            batches, quiet_since = batches + 1, time.monotonic()
        elif (behind := ingest.source.behind()) == 0:
            break
        elif time.monotonic() - quiet_since > patience:
            raise TransientError(f"{behind} records lie behind, but the brokers sent none for {patience:.0f} s")
    if halted := ingest.halted():
        raise RejectedError("\n".join(map(str, halted)))
    return batches


def accept_loss(ingest: Ingest) -> CommitRecord | None:
    """Write into the lake what the brokers lost, so that ingest reads on from the log's start; None if nothing is."""
    losses = ingest.source.losses(ingest.checkpoint)
    if not losses:
        return None
    note = "loss accepted: " + "; ".join(f"{loss}, {loss.lost} records never read" for loss in losses)
    record = CommitRecord(uuid4().hex, "accepted loss", datetime.now(UTC), losses, note=note)
    try:
        record = commit_batch(ingest.lake, ingest.events, [], record)
    except OvertakenError:
        return accept_loss(ingest)
    complete_commits(ingest.lake, record.version)
    return record


@contextmanager
def open_ingest(settings: Settings, accepted: Collection[int] = ()) -> Generator[Ingest]:
    """Connect the topic, or the queue, the lake and the index, having completed what a crash left open.

    With `accepted`, only these topic partitions are read, and the guard lets them pass.
    """
    if settings.queue.kind:
        with open_queue(settings) as source, open_ingest_from(source, settings) as ingest:
            yield ingest
        return
    with open_source(settings, accepted) as source, open_ingest_from(source, settings) as ingest:
        source.committed = ingest.last_read
        ingest.guard.accepted = frozenset(accepted)
        yield ingest


@contextmanager
def open_drain(settings: Settings, accepted: Collection[int] = ()) -> Generator[Ingest]:
    """Open ingest to `drain` a topic: what lies behind is asked for, so that no poll waits for what may yet come.

    With `accepted`, only these topic partitions are drained, whoever drains the others, and the guard lets them pass.
    Leaving it copies dead letters for others, where that is wanted (`dlq.py`).
    """
    if not settings.queue.kind:
        ingest = settings.ingest.model_copy(update={"max_wait_seconds": _NO_WAIT_SECONDS, "linger_seconds": 0})
        settings = settings.model_copy(update={"ingest": ingest})
    with copied_afterwards(settings), open_ingest(settings, accepted) as opened:
        yield opened


@contextmanager
def open_ingest_from(source: Source, settings: Settings) -> Generator[Ingest]:
    """Connect a source, the lake and the index, having completed what a crash left open."""
    lake = create_lake(settings.lake_root)
    events = lake.table("events")
    complete_commits(lake, events.version())
    with (
        reading_ahead(source) as ahead,
        closing(open_index(settings.index_dir, lake, events)) as index,
    ):
        tombstones = open_tombstones(lake, settings)
        tombstones.add()  # a lake that was made again, or restored, has only those beside it
        yield Ingest(settings, ahead, lake, events, index, tombstones, RejectionGuard(settings.ingest))


def _admit(ingest: Ingest, batch: Batch | None) -> Batch | None:
    """Return a batch without the topic partitions that the guard halts; None if nothing is left of it."""
    if batch is None and ingest.stopped:
        ingest.events.update_incremental()  # somebody may have moved a checkpoint that stood
    halted = ingest.guard.judge(batch) if batch else []
    for place in halted:
        ingest.source.halt(place)
        ingest.stopped.append(place)
        _LOG.warning("%s", place)
        remember(ingest.settings, ingest.halted())
    return batch and batch.without([place.topic_partition for place in halted])


def _notice_a_new_topic(ingest: Ingest, batch: Batch) -> None:
    """Warn when a topic is read from its start because it is another one than was read under this name before."""
    topic_id, topic = batch.ranges[0].topic_id, batch.ranges[0].topic
    if batch.source != f"kafka:{topic}":  # a file, a requeue or a replay has a new id whenever it is read anew
        return
    if any(ingest.checkpoint(topic_id, offsets.topic_partition) is not None for offsets in batch.ranges):
        return
    before = topic_ids(ingest.lake, topic)
    if before and topic_id not in before:
        _LOG.warning(
            "%s was deleted and created again: its id is %s, and it was read as %s before. It is read from its "
            "start; what the lake holds stays, and events that it holds already are dropped as duplicates",
            topic, topic_id, ", ".join(sorted(before)),
        )  # fmt: skip


def _describe(
    batch_id: str, started: datetime, batch: Batch, spared: Spared, verdicts: Verdicts, accepted: pa.Table
) -> CommitRecord:
    """Return the record of a batch: the fate of every offset that it read (`nothing-lost`)."""
    new = verdicts.verdicts == NEW
    return CommitRecord(
        batch_id=batch_id,
        source=batch.source,
        started=started,
        ranges=tuple(_count(offsets, spared, verdicts.verdicts) for offsets in batch.ranges),
        mis_keyed=int(np.count_nonzero(spared.decoded.mis_keyed.to_numpy(zero_copy_only=False) & new)),
        **describe_events(accepted),
    )


def _count(offsets: OffsetRange, spared: Spared, verdicts: np.ndarray) -> OffsetRange:
    partitions = spared.decoded.events["topic_partition"].to_numpy()
    rejected = spared.decoded.rejected["topic_partition"].to_numpy()
    mine = verdicts[partitions == offsets.topic_partition]
    return replace(
        offsets,
        accepted=int(np.count_nonzero(mine == NEW)),
        duplicates=int(np.count_nonzero(mine == DUPLICATE)),
        conflicts=int(np.count_nonzero(mine == CONFLICT)),
        dead_letters=int(np.count_nonzero(rejected == offsets.topic_partition)),
        erased=int(np.count_nonzero(spared.dropped == offsets.topic_partition)),
    )
