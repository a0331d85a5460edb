"""Withdrawal: one commit takes the events of earlier batches out of the lake, as if these had never been loaded.

Their event_ids are free again: unlike an erasure, a withdrawal leaves no tombstones, and the rows stay in the history
of `events` until a vacuum. The record of the commit holds why, and how many events it removed of each batch, so that
the account of those batches still adds up. The checkpoint of a file goes back to its start, so the file can be loaded
again; that of a topic stays, since live ingest continues there: a replay reads its records again.

Rows are found by batch and topic, since one batch may hold events of several topics. A crash before the commit leaves
unreferenced files.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.errors import TransientError
from pipelines.ingest.batch import OffsetRange
from pipelines.lake.checkpoints import checkpoint, checkpoint_transactions
from pipelines.lake.commit import CommitRecord, WithdrawnEvents, describe_events, record_metadata
from pipelines.lake.commit_lock import commit_lock
from pipelines.lake.commit_log import complete_commits
from pipelines.lake.removal import Rewrite, commit_removal, discard_unused, removed_events, rewrite_files
from pipelines.lake.table_files import list_files
from pipelines.lake.tables import WITHDRAWALS_DONE, Lake, withdrawals_done
from pipelines.lake.user_files import find_files

SOURCE = "withdrawal"
"""The source in the record of a withdrawal."""
FILE_PREFIX = "file:"
"""Begins the name of a file as a topic."""
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class BatchTopic:
    """What one batch read of one topic: the unit of a withdrawal."""

    batch_id: str
    topic_id: str
    topic: str


def withdraw_batches(lake: Lake, choose: Callable[[], Collection[BatchTopic]], why: str) -> CommitRecord | None:
    """Remove the events of batches from the lake by one commit; return its record.

    choose: returns what to withdraw, of the commits as they are now; called again after another commit. If it is
    nothing, nothing is committed, and the result is None.
    Raises TransientError when other processes kept committing through all attempts.
    """
    seen: dict[str, Rewrite | None] = {}
    with commit_lock(lake.folder("events")) as lock:
        for _ in range(_ATTEMPTS):
            lock.wait()
            table = lake.table("events")
            complete_commits(lake, table.version())
            if not (chosen := choose()):
                discard_unused(lake, "events", seen)
                return None
            try:
                record = _commit(lake, table, chosen, why, seen)
            except CommitFailedError:
                lock.acquire()
                continue
            discard_unused(lake, "events", seen)
            complete_commits(lake, record.version)
            return record
    discard_unused(lake, "events", seen)
    raise TransientError(f"other writers kept committing to {lake.folder('events')}: nothing was withdrawn; try again")


def _commit(
    lake: Lake, table: DeltaTable, chosen: Collection[BatchTopic], why: str, seen: dict[str, Rewrite | None]
) -> CommitRecord:
    """Commit on exactly the handle's version. `seen` are the files rewritten by earlier attempts, by path."""
    files = list_files(table)
    unseen = [file for file in files if file.path not in seen]
    seen |= rewrite_files(lake, "events", table, unseen, _BatchSearch(chosen))
    rewritten = [each for file in files if (each := seen[file.path])]
    started = datetime.now(UTC)
    record = CommitRecord(
        uuid4().hex,
        SOURCE,
        started,
        tuple(_back_to_the_start(table, chosen)),
        days=describe_events(removed_events(rewritten))["days"],
        note=why,
        withdrawn=_count(chosen, rewritten),
        committed=datetime.now(UTC),
        version=table.version() + 1,
    )
    marks = checkpoint_transactions(table, record.ranges) | {WITHDRAWALS_DONE: withdrawals_done(table) + 1}
    commit_removal(lake, "events", table, rewritten, marks, record_metadata(record))
    return record


def _back_to_the_start(table: DeltaTable, chosen: Collection[BatchTopic]) -> Iterator[OffsetRange]:
    """Yield the ranges that step from the checkpoint of each file back to its first row."""
    for topic_id, topic in sorted({(each.topic_id, each.topic) for each in chosen}):
        if topic.startswith(FILE_PREFIX) and (at := checkpoint(table, topic_id, 0)):
            yield OffsetRange(topic_id, topic, 0, at, 0)


def _count(chosen: Collection[BatchTopic], rewritten: Sequence[Rewrite]) -> tuple[WithdrawnEvents, ...]:
    """Return how many events are removed of each chosen batch and topic; 0 where it added none."""
    counts: Counter[tuple[str, str]] = Counter()
    for each in rewritten:
        counted = each.removed.group_by(["batch_id", "topic_id"]).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            counts[row["batch_id"], row["topic_id"]] += row["count_all"]
    places = sorted({(each.batch_id, each.topic_id) for each in chosen})
    return tuple(WithdrawnEvents(*place, counts[place]) for place in places)


@dataclass(frozen=True, slots=True)
class _BatchSearch:
    """Events of the chosen batches and topics."""

    chosen: Collection[BatchTopic]

    def find(self, paths: Sequence[str]) -> Collection[str]:
        return find_files(paths, {each.batch_id for each in self.chosen}, "batch_id")

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        wanted = pa.array([f"{each.batch_id} {each.topic_id}" for each in self.chosen])
        places = pc.binary_join_element_wise(rows["batch_id"], rows["topic_id"], " ")
        return pc.is_in(places, value_set=wanted).combine_chunks()
