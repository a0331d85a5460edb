"""The protocol of one batch, on one screen, and the loop around it.

    poll -> decode -> dedupe -> write files -> dead letters and conflicts -> COMMIT -> index -> record -> group offsets

Only the commit of `events` publishes (`atomic`): files, checkpoints and counts together, on exactly the version that
the checkpoints were read from (`fenced`). If another commit comes first, the batch is deduplicated again on the new
version.

A crash (SIGKILL, a power cut) before the commit leaves unreferenced files and rows of an uncommitted batch, which
readers ignore. A crash after the commit leaves steps to the next start:

    index           lags behind the lake; `DedupIndex.catch_up` reads the files that it lacks, before the next batch
    record          missing in `commits`; `complete_commits` copies it from the log of `events`
    group offsets   stale in Kafka until the next batch; only lag tools read them
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Generator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from kafka.structs import TopicPartition

from pipelines.best_effort import best_effort
from pipelines.boundary.text import amount
from pipelines.contract.digest import Digests
from pipelines.contract.schema import filter_rows
from pipelines.dlq import copying_on_exit
from pipelines.errors import FencedError, RejectedError, TransientError, UsageError, one_line
from pipelines.ingest.batch import Batch, LastRead
from pipelines.ingest.filling import NEVER, without_waiting
from pipelines.ingest.guard import HaltedPartition, RejectionGuard
from pipelines.ingest.kafka import open_source
from pipelines.ingest.queue import open_queue
from pipelines.ingest.read_ahead import ReadAhead, Source, open_read_ahead
from pipelines.ingest.sole_ingester import sole_ingester
from pipelines.ingest.sources import require_topics
from pipelines.lake.account import count_fates
from pipelines.lake.checkpoints import checkpoint, last_record
from pipelines.lake.commit import (
    CommitRecord,
    ConcurrentCommitError,
    append,
    commit_batch,
    describe_events,
    stage_events,
)
from pipelines.lake.commit_lock import commit_lock
from pipelines.lake.commit_log import complete_commits, topic_ids
from pipelines.lake.halted import save_halted
from pipelines.lake.index import CONFLICT, NEW, Classification, DedupIndex, open_index
from pipelines.lake.run_lake import OpenLake, RunLake
from pipelines.lake.staging import Staging, staging
from pipelines.lake.tables import CachedLake, Lake, create_lake
from pipelines.lake.tombstones import Filtered, Tombstones, open_tombstones
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_MAX_COMMIT_ATTEMPTS = 40
"""A commit takes one attempt, or two with concurrent writers. More means that a writer ignores the commit lock."""


@dataclass(frozen=True, slots=True)
class Ingest:
    """The state of ingest between batches. `events` is the table handle that reads checkpoints and commits."""

    settings: Settings
    source: ReadAhead
    lake: Lake
    events: DeltaTable
    index: DedupIndex
    tombstones: Tombstones
    guard: RejectionGuard
    commit_records: CachedLake
    """Keeps the table `commits` open: each opening reads every log entry since the last checkpoint of the log."""
    halts: list[HaltedPartition] = field(default_factory=list[HaltedPartition])
    """Every halt by the guard, oldest first; `halted()` returns those still in effect."""
    split_batches: list[Batch] = field(default_factory=list[Batch])
    """The uncommitted parts of a batch that was split, in order."""

    def checkpoint(self, topic_id: str, topic_partition: int) -> int | None:
        """Return the next_offset at the version of the handle; None for a topic partition never read."""
        return checkpoint(self.events, topic_id, topic_partition)

    def last_read(self, topic_id: str, topic_partition: int) -> LastRead | None:
        """Return the last record before the checkpoint at the version of the handle; None if unknown."""
        return last_record(self.events, topic_id, topic_partition)

    def halted(self) -> tuple[HaltedPartition, ...]:
        """Return the topic partitions still halted: their checkpoint has not moved since the halt."""
        checkpoints = {halt: self.checkpoint(halt.topic_id, halt.topic_partition) for halt in self.halts}
        return tuple(halt for halt in self.halts if checkpoints[halt] in {halt.next_offset, None})


def drain_once(ingest: Ingest) -> CommitRecord | None:
    """Move one batch from the bus into the lake; return None if the bus had nothing.

    A crash at any line is safe: the next call continues from the last commit and counts no event twice (`once`).
    """
    batch = _next_batch(ingest)
    if batch is None:
        return None
    best_effort(_warn_if_topic_recreated, "checking whether the topic was recreated")(ingest, batch)
    try:
        record, new = _commit(ingest, batch)
    except FencedError:
        if not ingest.settings.ingest.share_partitions:
            raise
        return drain_once(ingest)  # a rebalance moved the partitions here while their old owner was committing
    ingest.index.extend(new, record.version)
    ingest.tombstones.see_own_commit(record.version)
    complete_commits(ingest.commit_records, record.version)
    ingest.source.acknowledge(record.ranges)
    return record


def _commit(ingest: Ingest, batch: Batch) -> tuple[CommitRecord, Digests]:
    """Commit a batch, or the first part of it; return its record and the digests of the events it added.

    If another commit comes first, the batch is classified again on the new version. The staged files are reused if the
    classification is unchanged. Otherwise they are removed and half of the batch is staged; the other half comes next.
    So a batch is restaged at most once per halving. After the first conflict this process holds the commit lock
    (`lake/commit_lock.py`). Raises TransientError after 40 conflicts.
    """
    started, folder = datetime.now(UTC), ingest.lake.folder("events")
    with staging(ingest.lake) as staged, commit_lock(folder) as lock:
        classified = _classify(ingest, batch)
        record = _stage(ingest, classified, staged, started)
        for _ in range(_MAX_COMMIT_ATTEMPTS):
            lock.wait()
            try:
                with staged.committing() as files:
                    record = commit_batch(ingest.lake, ingest.events, files, record)
            except ConcurrentCommitError:
                _LOG.info("another commit came first: deduplicating batch %s again", record.batch_id)
            else:
                return record, classified.classification.new
            lock.acquire()
            _update_handle(ingest)
            again = _classify(ingest, classified.batch)
            if again.differs_from(classified):
                staged.discard()
                classified = _first_half(ingest, again)
                record = _stage(ingest, classified, staged, started)
    raise TransientError(
        f"other writers kept committing to {folder}: {', '.join(map(str, record.ranges))} lost the race "
        f"{_MAX_COMMIT_ATTEMPTS} times, and nothing of it was committed; start again"
    )


def _update_handle(ingest: Ingest) -> None:
    """Update the table handle to the newest version."""
    try:
        ingest.events.update_incremental()
    except (DeltaError, OSError) as error:
        folder = ingest.lake.folder("events")
        raise TransientError(f"the log of {folder} cannot be read: {one_line(error)}; start again") from error


def _classify(ingest: Ingest, batch: Batch) -> "_ClassifiedBatch":
    """Drop erased users from a batch and classify its events as new, duplicate or conflict, at the handle's version."""
    ingest.tombstones.catch_up(ingest.events)
    filtered = ingest.tombstones.drop_erased(batch.decoded)
    return _ClassifiedBatch(batch, filtered, ingest.index.classify_at(ingest.events, filtered.decoded.events))


def _stage(ingest: Ingest, classified: "_ClassifiedBatch", staged: Staging, started: datetime) -> CommitRecord:
    """Write the rows of a batch under a new batch id: they count only once a commit names that id."""
    batch_id, decoded, classification = uuid4().hex, classified.filtered.decoded, classified.classification
    side_tables = {"dead_letters": decoded.rejected, "conflicts": decoded.events.filter(classification.mask(CONFLICT))}
    staged.begin(batch_id, [name for name, rows in side_tables.items() if len(rows)])
    for name, rows in side_tables.items():
        append(ingest.lake, name, rows, batch_id)
    accepted = filter_rows(decoded.events, classification.mask(NEW))
    staged.files = stage_events(ingest.events, accepted, batch_id)
    return _commit_record(batch_id, started, classified, accepted)


def _first_half(ingest: Ingest, classified: "_ClassifiedBatch") -> "_ClassifiedBatch":
    """Return the first half of a batch and queue the second half; return an indivisible batch unchanged."""
    halves = classified.batch.halves()
    if halves is None:
        return classified
    first, second = halves
    ingest.split_batches.insert(0, second)
    return _classify(ingest, first)


@dataclass(frozen=True, slots=True)
class _ClassifiedBatch:
    """A batch, classified at one version of the lake."""

    batch: Batch
    filtered: Filtered
    classification: Classification

    def differs_from(self, before: "_ClassifiedBatch") -> bool:
        """Return whether the files staged for `before` are wrong now: erasures are only ever added."""
        counts = ((len(each.filtered.dropped), each.filtered.renamed) for each in (self, before))
        return len(set(counts)) > 1 or not np.array_equal(self.classification.kinds, before.classification.kinds)


def drain(ingest: Ingest, report: Callable[[CommitRecord], None], max_batches: int | None = None) -> int:
    """Drain until no records remain or `max_batches` are committed; return the number of batches committed.

    `report` is called with the record of each commit; an error that it raises is logged, since the batch is committed.
    Raises UsageError for less than one batch, TransientError if records remain but none is received within the request
    timeout, and RejectedError at the end if topic partitions are halted: the others are drained first.
    """
    if max_batches is not None and max_batches < 1:
        raise UsageError(f"max_batches must be at least 1, not {max_batches}")
    batches, timeout_seconds = 0, ingest.settings.kafka.request_timeout_seconds
    idle_since = time.monotonic()
    report_safely = best_effort(report, "reporting a commit")
    while max_batches is None or batches < max_batches:
        record = drain_once(ingest)
        if record is not None:
            report_safely(record)
            batches, idle_since = batches + 1, time.monotonic()
        elif (remaining := ingest.source.remaining_records()) == 0:
            break
        elif time.monotonic() - idle_since > timeout_seconds:
            raise TransientError(
                f"{amount(remaining, 'record remains', 'records remain')}, but none was received in "
                f"{timeout_seconds:.0f} s: "
                "look at the broker's log, then start again"
            )
    if halted := ingest.halted():
        raise RejectedError("\n".join(map(str, halted)))
    return batches


def accept_loss(ingest: Ingest) -> CommitRecord | None:
    """Commit a record of what the brokers lost, so that ingest continues at the log's start; None without a loss."""
    losses = ingest.source.losses(ingest.checkpoint)
    if not losses:
        return None
    note = "loss accepted: " + "; ".join(f"{loss}, {loss.lost} records never read" for loss in losses)
    record = CommitRecord(uuid4().hex, "accepted loss", datetime.now(UTC), losses, note=note)
    try:
        record = commit_batch(ingest.lake, ingest.events, [], record)
    except ConcurrentCommitError:
        return accept_loss(ingest)
    complete_commits(ingest.lake, record.version)
    return record


@contextmanager
def open_ingest(
    settings: Settings,
    accepted: Collection[TopicPartition] = (),
    stopping: threading.Event = NEVER,
    opening: OpenLake | None = None,
) -> Generator[Ingest]:
    """Connect the topics or the queue, the lake and the index, after completing what a crash left unfinished.

    With `accepted`, read only these topic partitions, and exempt them from the rejection limits. Once `stopping` is
    set, nothing more is read, and what was read is committed only if its commit has begun.
    opening: opens the lake; None creates that of the settings if there is none. One that ingests several times in a run
    gives `RunLake.open`.
    """
    if accepted:
        require_topics(settings, "accepting the rejections of a topic partition")
    if settings.queue.kind:
        with open_queue(settings, stopping) as source, open_ingest_from(source, settings, stopping, opening) as ingest:
            yield ingest
        return
    with (
        open_source(settings, accepted, stopping=stopping) as source,
        open_ingest_from(source, settings, stopping, opening) as ingest,
    ):
        source.committed = ingest.last_read
        ingest.guard.accepted = frozenset(accepted)
        yield ingest


@contextmanager
def open_drain(settings: Settings, accepted: Collection[TopicPartition] = ()) -> Generator[Ingest]:
    """Open ingest to `drain` the topics to their ends: polls do not wait for records still to come.

    With `accepted`, drain only these topic partitions, without sharing them, and exempt them from the rejection limits:
    a `stream` for which they are halted may run beside it. Otherwise raises FencedError if another process ingests the
    same. On exit, copy dead letters to their topic if `ingest.publish_dead_letters` is on (`dlq.py`).
    """
    if not settings.queue.kind:
        settings = without_waiting(settings)
    lake = RunLake(settings.lake_root)
    with (
        nullcontext() if accepted else sole_ingester(settings),
        copying_on_exit(settings, lake.open),
        open_ingest(settings, accepted, opening=lake.open) as opened,
    ):
        yield opened


@contextmanager
def open_ingest_from(
    source: Source, settings: Settings, stopping: threading.Event = NEVER, opening: OpenLake | None = None
) -> Generator[Ingest]:
    """Connect a source, the lake and the index, after completing what a crash left unfinished.

    opening: as in `open_ingest`.
    """
    lake = opening() if opening else create_lake(settings.lake_root)
    events = lake.table("events")
    complete_commits(lake, events.version())
    with (
        open_read_ahead(source, stopping) as read_ahead,
        closing(open_index(settings.index_dir, lake, events)) as index,
    ):
        tombstones = open_tombstones(lake, settings)
        tombstones.add()  # a recreated or restored lake has only those stored beside it
        guard, commit_records = RejectionGuard(settings.ingest), CachedLake(lake.root)
        yield Ingest(settings, read_ahead, lake, events, index, tombstones, guard, commit_records)


def _next_batch(ingest: Ingest) -> Batch | None:
    """Return the next part of a batch that was split, or poll for a new batch."""
    while ingest.split_batches:
        batch = ingest.split_batches.pop(0)
        if batch.follows(ingest.checkpoint):
            return batch
    return _apply_guard(ingest, ingest.source.poll(ingest.checkpoint))


def _apply_guard(ingest: Ingest, batch: Batch | None) -> Batch | None:
    """Return a batch without the topic partitions that the guard halts; None if nothing is left."""
    if batch is None and ingest.halts:
        ingest.events.update_incremental()  # another process may have moved the checkpoint of a halted partition
    halts = ingest.guard.check(batch) if batch else []
    for halt in halts:
        ingest.source.halt(halt)
        ingest.halts.append(halt)
        _LOG.warning("%s", halt)
        save_halted(ingest.settings, ingest.halted())
    return batch and batch.without([(halt.topic_id, halt.topic_partition) for halt in halts])


def _warn_if_topic_recreated(ingest: Ingest, batch: Batch) -> None:
    """Warn of each topic that is read from its start because it was deleted and created again under the same name."""
    if not batch.source.startswith("kafka:"):  # each load of a file, requeue or replay has an id of its own
        return
    begun = {r.topic_id for r in batch.ranges if ingest.checkpoint(*r.place) is not None}
    for topic_id, topic in {r.topic_id: r.topic for r in batch.ranges if r.topic_id not in begun}.items():
        before = topic_ids(ingest.lake, topic)
        if before and topic_id not in before:
            _LOG.warning(
                "%s was deleted and created again: its id is %s, and it was read as %s before. Reading it from its "
                "start: the lake keeps its events, and events that it has already are dropped as duplicates",
                topic, topic_id, ", ".join(sorted(before)),
            )  # fmt: skip


def _commit_record(batch_id: str, started: datetime, classified: _ClassifiedBatch, accepted: pa.Table) -> CommitRecord:
    """Return the record of a batch: the fate of every offset that it read (`nothing-lost`)."""
    batch, filtered, classification = classified.batch, classified.filtered, classified.classification
    new = classification.kinds == NEW
    return CommitRecord(
        batch_id=batch_id,
        source=batch.source,
        started=started,
        ranges=count_fates(batch, filtered, classification.kinds),
        mis_keyed=int(np.count_nonzero(filtered.decoded.mis_keyed.to_numpy(zero_copy_only=False) & new)),
        **describe_events(accepted),
    )
