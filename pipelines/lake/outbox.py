"""Dead letters of committed batches in the order of their commits, behind a checkpoint of their own.

Whoever passes dead letters on reads them here, after the commit: nothing that fails then concerns ingest (`isolated`).
The checkpoint is an application transaction of `dead_letters`: the version of `events` up to which all were passed on.
A turn costs what was committed since, never the history: the log of `events` is read from the checkpoint on, and a file
of dead letters is found by its batch, also after a file compaction.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.lake.files import make_durable, open_file, read_file
from pipelines.lake.history import complete_commits, recorded
from pipelines.lake.publish import publish
from pipelines.lake.tables import KeptOpen, Lake, data_files

_TABLE = "dead_letters"
_MOST_PENDING = 10_000
"""Batches that are looked ahead for: what more there is, is looked for once these are passed on."""
_SAVED_EVERY = 100
"""Versions without a dead letter after which the checkpoint is saved: a start reads at most so many again."""
_CHUNK_BYTES = 8 * 1024 * 1024
_MOST_ROWS = 256
"""Dead letters that are in memory at a time: fewer, where they are large."""
_CELL_BYTES = 16
"""Of a cell, or a header, beside its own bytes."""
_TOLD = ["batch_id", "version", "dead_letters", "committed", "ranges"]


class Pending(NamedTuple):
    """A committed batch whose dead letters are to be passed on."""

    version: int
    batch_id: str
    dead_letters: int
    committed: datetime


class _Place(NamedTuple):
    file: str
    row_group: int


def begin(lake: Lake, name: str) -> None:
    """Set the checkpoint `name` to the newest version of `events`, unless there is one: earlier ones are left out.

    In a copy of a lake the checkpoint may be ahead of the copied `events`: then it is set back.
    """
    while True:
        letters = lake.table(_TABLE)
        known, newest = letters.transaction_version(name), lake.table("events").version()
        if known is not None and known <= newest:
            return
        if _saved(lake, letters, name, newest):
            return


@dataclass(slots=True)
class Outbox:
    """The dead letters behind the checkpoint `name`; `begin` has set it. For one thread at a time."""

    lake: KeptOpen
    name: str
    is_of_bus: Callable[[str], bool]
    """Tells by the topic of a batch whether its dead letters are passed on: those of files and replays are not."""
    seen: int = -1
    """The version of `events` up to which the log was read."""
    pending: deque[Pending] = field(default_factory=deque[Pending])

    def catch_up(self) -> None:
        """Read what was committed since; a checkpoint that another process moved is followed."""
        done = self._checkpoint(self.lake.table(_TABLE))
        self.seen = max(self.seen, done)
        while self.pending and self.pending[0].version <= done:
            self.pending.popleft()
        for version, record in self._records(self.lake.table("events").version()):
            if record["dead_letters"] and any(self.is_of_bus(place["topic"]) for place in record["ranges"]):
                self.pending.append(Pending(version, record["batch_id"], record["dead_letters"], record["committed"]))
            if len(self.pending) >= _MOST_PENDING:
                break
        if not self.pending and self.seen - done >= _SAVED_EVERY:
            self.passed_on(self.seen)

    def letters(self, batches: Sequence[Pending], columns: list[str]) -> Iterator[pa.Table]:
        """Yield the dead letters of batches, some at a time, without those of users who were erased meanwhile."""
        wanted = pa.array([batch.batch_id for batch in batches], pa.string())
        for place in _places(self.lake, set(wanted.to_pylist())):
            yield from _rows(place, wanted, columns)

    def passed_on(self, version: int) -> None:
        """Move the checkpoint to a version of `events`; a crash before it passes the same on again."""
        letters = self.lake.table(_TABLE)
        while self._checkpoint(letters) < version and not _saved(self.lake, letters, self.name, version):
            letters = self.lake.table(_TABLE)
        while self.pending and self.pending[0].version <= version:
            self.pending.popleft()

    def _checkpoint(self, letters: DeltaTable) -> int:
        return letters.transaction_version(self.name) or 0

    def _records(self, newest: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (version, record) of the commits that were not seen; where the log was cleaned, from its copy."""
        try:
            for version, actions in self.lake.log(self.seen, newest):
                self.seen = version
                yield from ((version, record) for record in recorded(version, actions))
        except LookupError:
            complete_commits(self.lake, newest)
            for record in _copied_records(self.lake, self.seen, newest):
                self.seen = record["version"]
                yield record["version"], record
            self.seen = newest


def _copied_records(lake: Lake, after: int, upto: int) -> list[dict[str, Any]]:
    """Return the records of commits with dead letters from the table of commits, in their order."""
    found = pa.concat_tables(read_file(path, _TOLD) for path in data_files(lake.table("commits")))
    new = pc.and_(pc.greater(found["version"], after), pc.less_equal(found["version"], upto))
    return found.filter(pc.and_(new, pc.greater(found["dead_letters"], 0))).sort_by("version").to_pylist()


def _saved(lake: Lake, letters: DeltaTable, name: str, version: int) -> bool:
    """Commit a checkpoint on the version of a handle; return whether nobody else committed meanwhile."""
    try:
        publish(letters, [], {name: version})
    except CommitFailedError:
        return False
    make_durable([lake.entry(_TABLE, letters.version() + 1)])
    return True


def _places(lake: Lake, wanted: set[str]) -> Iterator[_Place]:
    """Yield where the rows of batches are: a batch has a file of its own until it is merged with others."""
    table = lake.table(_TABLE)
    files = set(data_files(table))
    own = {batch_id: f"{lake.folder(_TABLE)}/{batch_id}.parquet" for batch_id in wanted}
    for batch_id, path in own.items():
        if path in files:
            wanted = wanted - {batch_id}
            with open_file(path) as file:
                groups = file.num_row_groups
            yield from (_Place(path, group) for group in range(groups))
    yield from _merged_places(lake, table, wanted)


def _merged_places(lake: Lake, table: DeltaTable, wanted: set[str]) -> Iterator[_Place]:
    """Look through the files, the youngest first, until all batches are found; each is in one file only."""
    actions = pa.table(table.get_add_actions(flatten=True)).select(["path", "modification_time"]) if wanted else None
    for path in actions.sort_by([("modification_time", "descending")])["path"].to_pylist() if actions else ():
        place = f"{lake.folder(_TABLE)}/{path}"
        with open_file(place) as file:
            held = [_batch_ids(file, group) & wanted for group in range(file.num_row_groups)]
        yield from (_Place(place, group) for group, found in enumerate(held) if found)
        wanted = wanted.difference(*held)
        if not wanted:
            return


def _batch_ids(file: Any, row_group: int) -> set[str]:
    return set(pc.unique(file.read_row_group(row_group, ["batch_id"])["batch_id"]).to_pylist())


def _rows(place: _Place, wanted: pa.Array, columns: list[str]) -> Iterator[pa.Table]:
    with open_file(place.file) as file:
        group = file.metadata.row_group(place.row_group)
        cells = sum(group.column(number).num_values for number in range(group.num_columns))
        size = group.total_byte_size + cells * _CELL_BYTES
        rows = max(1, min(_MOST_ROWS, _CHUNK_BYTES * group.num_rows // max(1, size)))
        for batch in file.iter_batches(rows, [place.row_group], [*columns, "batch_id"]):
            found = pa.table(batch)
            yield found.filter(pc.is_in(found["batch_id"], value_set=wanted))
