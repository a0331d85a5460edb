"""The protocol of one batch, on one screen, and the loop around it.

    poll -> decode -> dedupe -> write files -> dead letters and conflicts -> COMMIT -> index -> record -> group offsets

Only the commit of `events` publishes (`atomic`): files, checkpoints and counts together, on exactly the version that
the checkpoints were read from (`fenced`). When another commit comes first, the batch is judged again on that version.
What stands before the commit leaves, after a crash, files that nothing names and rows of a batch that was never
committed; what stands after it is repeated or completed on the next start.
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
from deltalake.exceptions import DeltaError

from pipelines.best_effort import best_effort
from pipelines.contract.decode import keep
from pipelines.contract.digest import Digests
from pipelines.dlq import copied_afterwards
from pipelines.errors import FencedError, RejectedError, TransientError, one_line
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
from pipelines.lake.halted import remember
from pipelines.lake.history import complete_commits, topic_ids
from pipelines.lake.index import CONFLICT, DUPLICATE, NEW, DedupIndex, Verdicts, open_index
from pipelines.lake.positions import last_record
from pipelines.lake.staging import Staging, staging
from pipelines.lake.tables import Lake, checkpoint_id, create_lake
from pipelines.lake.tombstones import Spared, Tombstones, open_tombstones
from pipelines.lake.turns import turns
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_NO_WAIT_SECONDS = 0.05
"""A few round trips to a broker: none at all would ask for the end again and again."""
_ATTEMPTS = 40
"""To commit a batch. It takes one, or two beside others: in more, something overtakes that waits for no turn."""


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
    rest: list[Batch] = field(default_factory=list[Batch])
    """What is left of a batch that was divided, in order."""
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
    batch = _next_batch(ingest)
    if batch is None:
        return None
    best_effort(_notice_a_new_topic, "looking whether the topic is another one")(ingest, batch)
    try:
        record, new = _commit(ingest, batch)
    except FencedError:
        if not ingest.settings.ingest.share_partitions:
            raise
        return drain_once(ingest)  # they were moved to us while another ingester was committing: read on from there
    ingest.index.extend(new, record.version)
    complete_commits(ingest.lake, record.version)
    ingest.source.acknowledge(record.ranges)
    return record


def _commit(ingest: Ingest, batch: Batch) -> tuple[CommitRecord, Digests]:
    """Commit a batch, or the first part of it; return its record and the digests of what it added.

    When another commit comes first, the batch is judged again on that version. What is staged is used again if nothing
    was judged otherwise; if something was, it is removed, and half of the batch is staged, the rest kept for later. So
    a batch is staged again at most as often as it can be halved. From then on the turn is ours (`turns.py`).
    """
    started, folder = datetime.now(UTC), ingest.lake.folder("events")
    with staging(ingest.lake) as staged, turns(folder) as turn:
        judged = _judge(ingest, batch)
        record = _stage(ingest, judged, staged, started)
        for _ in range(_ATTEMPTS):
            turn.wait()
            try:
                with staged.committing() as files:
                    record = commit_batch(ingest.lake, ingest.events, files, record)
            except OvertakenError:
                _LOG.info("another commit came first: batch %s is deduplicated again", record.batch_id)
            else:
                return record, judged.verdicts.new
            turn.take()
            _look_again(ingest)
            again = _judge(ingest, judged.batch)
            if again.differs_from(judged):
                staged.discard()
                judged = _first_half(ingest, again)
                record = _stage(ingest, judged, staged, started)
    raise TransientError(
        f"others kept committing to {folder}: {', '.join(map(str, record.ranges))} came too late {_ATTEMPTS} times, "
        "and nothing of it was committed; start again"
    )


def _look_again(ingest: Ingest) -> None:
    """Bring the handle to the newest version."""
    try:
        ingest.events.update_incremental()
    except (DeltaError, OSError) as error:
        folder = ingest.lake.folder("events")
        raise TransientError(f"the log of {folder} cannot be read: {one_line(error)}; start again") from error


def _judge(ingest: Ingest, batch: Batch) -> "_Judged":
    """Tell what a batch is at the version of the handle: without the erased, new, known or in conflict."""
    ingest.tombstones.catch_up(ingest.events)
    spared = ingest.tombstones.spare(batch.decoded)
    ingest.index.catch_up(ingest.events)
    return _Judged(batch, spared, ingest.index.classify(spared.decoded.events))


def _stage(ingest: Ingest, judged: "_Judged", staged: Staging, started: datetime) -> CommitRecord:
    """Write what a batch adds, under an id of this attempt: it counts only if the commit names it."""
    batch_id, decoded, verdicts = uuid4().hex, judged.spared.decoded, judged.verdicts
    apart = {"dead_letters": decoded.rejected, "conflicts": decoded.events.filter(verdicts.mask(CONFLICT))}
    staged.begin(batch_id, [name for name, rows in apart.items() if len(rows)])
    for name, rows in apart.items():
        append(ingest.lake, name, rows, batch_id)
    accepted = keep(decoded.events, verdicts.mask(NEW))
    staged.files = stage_events(ingest.lake, accepted, batch_id)
    return _describe(batch_id, started, judged.batch, judged.spared, verdicts, accepted)


def _first_half(ingest: Ingest, judged: "_Judged") -> "_Judged":
    """Return the first half of a batch, the other being next; a batch that cannot be divided stays as it is."""
    halves = judged.batch.halves()
    if halves is None:
        return judged
    first, rest = halves
    ingest.rest.insert(0, rest)
    return _judge(ingest, first)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a batch is at one version of the lake."""

    batch: Batch
    spared: Spared
    verdicts: Verdicts

    def differs_from(self, before: "_Judged") -> bool:
        """Return whether what was staged before is wrong by now; of one batch, users are erased and none comes back."""
        erased = len(self.spared.dropped) != len(before.spared.dropped)
        return erased or not np.array_equal(self.verdicts.verdicts, before.verdicts.verdicts)


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


def _next_batch(ingest: Ingest) -> Batch | None:
    """Return the rest of a batch that was divided, or another one."""
    while ingest.rest:
        batch = ingest.rest.pop(0)
        if batch.follows(ingest.checkpoint):
            return batch
    return _admit(ingest, ingest.source.poll(ingest.checkpoint))


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
