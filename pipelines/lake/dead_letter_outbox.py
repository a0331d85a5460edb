"""The outbox of dead letters: those of committed batches, in commit order, from a checkpoint of their own.

The dead-letter topic is fed from here, after the commit, so its failures never affect ingest (`isolated`). The
checkpoint is an application transaction of `dead_letters`: the version of `events` up to which all were delivered. The
cost of a check depends on what was committed since, never on the history: the log of `events` is read from the
checkpoint on, and the file of a batch's dead letters is found by the batch, also after a file compaction.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipelines.lake.commit_log import commit_rows, complete_commits
from pipelines.lake.dead_letter_rows import RowGroup, batches_by_row_group, read_dead_letter_rows, row_groups
from pipelines.lake.files import name_of
from pipelines.lake.marks import raise_mark, save_mark
from pipelines.lake.tables import CachedLake, Lake, data_files, read_rows
from pipelines.lake.transactions import transactions

_TABLE = "dead_letters"
_MAX_PENDING_BATCHES = 10_000
"""Batches to read ahead: more are read once these are delivered."""
_SAVE_INTERVAL_VERSIONS = 100
"""Versions without a dead letter after which the checkpoint is saved: a start rereads at most this many."""
_RECORD_COLUMNS = ["batch_id", "version", "dead_letters", "committed", "ranges"]


class PendingBatch(NamedTuple):
    """A committed batch whose dead letters are not delivered yet."""

    version: int
    batch_id: str
    dead_letters: int
    committed: datetime


def init_checkpoint(lake: Lake, name: str) -> None:
    """Set the checkpoint `name` to the newest version of `events` if it does not exist: earlier batches are skipped.

    In a copy of a lake the checkpoint may be ahead of the copied `events`; then it is moved back.
    """
    while True:
        letters = lake.table(_TABLE)
        known, newest = transactions(letters).get(name), lake.table("events").version()
        if known is not None and known <= newest:
            return
        if save_mark(lake, _TABLE, letters, name, newest):
            return


@dataclass(slots=True)
class DeadLetterOutbox:
    """The dead letters of some topics after the checkpoint `name`, which `init_checkpoint` has set. Not thread-safe."""

    lake: CachedLake
    name: str
    is_bus_topic: Callable[[str], bool]
    """Whether dead letters of a batch are delivered, by its topic: those of files and replays are not."""
    read_version: int = -1
    """The version of `events` up to which the log was read."""
    pending: deque[PendingBatch] = field(default_factory=deque[PendingBatch])

    def catch_up(self) -> None:
        """Read what was committed since, and follow a checkpoint that another process has moved."""
        done = self._checkpoint(self.lake.table(_TABLE))
        self.read_version = max(self.read_version, done)
        while self.pending and self.pending[0].version <= done:
            self.pending.popleft()
        for version, record in self._records(self.lake.table("events").version()):
            mine = [offsets["dead_letters"] for offsets in record["ranges"] if self.is_bus_topic(offsets["topic"])]
            if letters := sum(mine):
                self.pending.append(PendingBatch(version, record["batch_id"], letters, record["committed"]))
            if len(self.pending) >= _MAX_PENDING_BATCHES:
                break
        if not self.pending and self.read_version - done >= _SAVE_INTERVAL_VERSIONS:
            self.mark_delivered(self.read_version)

    def read_dead_letters(self, batches: Sequence[PendingBatch], columns: list[str]) -> Iterator[pa.Table]:
        """Yield `columns`, with `topic`, of the dead letters of batches, some at a time.

        Without those of users erased meanwhile, and of other topics.
        """
        wanted = {batch.batch_id for batch in batches}
        for group in _find_row_groups(self.lake, wanted):
            for rows in read_dead_letter_rows(group, wanted, columns):
                mine = [topic for topic in rows["topic"].unique().to_pylist() if self.is_bus_topic(topic)]
                yield rows.filter(pc.is_in(rows["topic"], value_set=pa.array(mine, pa.string())))

    def mark_delivered(self, version: int) -> None:
        """Move the checkpoint to a version of `events`, durably. A crash before that causes a second delivery."""
        raise_mark(self.lake, _TABLE, self.name, version)
        while self.pending and self.pending[0].version <= version:
            self.pending.popleft()

    def _checkpoint(self, letters: DeltaTable) -> int:
        return transactions(letters).get(self.name, 0)

    def _records(self, newest: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (version, record) of the commits not read yet: from the log, or from `commits` if it is too short."""
        try:
            for version, actions in self.lake.read_log(self.read_version, newest):
                self.read_version = version
                yield from ((version, record) for record in commit_rows(version, actions))
        except LookupError:
            complete_commits(self.lake, newest)
            for record in _read_commits_table(self.lake, self.read_version, newest):
                self.read_version = record["version"]
                yield record["version"], record
            self.read_version = newest


def _read_commits_table(lake: Lake, after: int, upto: int) -> list[dict[str, Any]]:
    """Return the records of commits with dead letters from the table `commits`, by version."""
    found = pa.concat_tables(read_rows("commits", path, _RECORD_COLUMNS) for path in data_files(lake.table("commits")))
    new = pc.and_(pc.greater(found["version"], after), pc.less_equal(found["version"], upto))
    return found.filter(pc.and_(new, pc.greater(found["dead_letters"], 0))).sort_by("version").to_pylist()


def _find_row_groups(lake: Lake, wanted: set[str]) -> Iterator[RowGroup]:
    """Yield the row groups with rows of batches: a batch has a file of its own until a compaction merges it."""
    table = lake.table(_TABLE)
    files = {name_of(path): path for path in data_files(table)}
    own = {batch_id: f"{lake.folder(_TABLE)}/{batch_id}" for batch_id in wanted}
    for batch_id, name in own.items():
        if name in files:
            wanted = wanted - {batch_id}
            yield from row_groups(files[name])
    yield from _find_merged_row_groups(lake, table, wanted)


def _find_merged_row_groups(lake: Lake, table: DeltaTable, wanted: set[str]) -> Iterator[RowGroup]:
    """Search the files, the newest first, until all batches are found; each is in one file only."""
    actions = pa.table(table.get_add_actions(flatten=True)).select(["path", "modification_time"]) if wanted else None
    for path in actions.sort_by([("modification_time", "descending")])["path"].to_pylist() if actions else ():
        found = batches_by_row_group(f"{lake.folder(_TABLE)}/{path}")
        yield from (group for group, batch_ids in found.items() if batch_ids & wanted)
        wanted = wanted.difference(*found.values())
        if not wanted:
            return
