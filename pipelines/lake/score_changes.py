"""The table `score_changes`: what was published of each user, in the order of publications (the feed).

A commit adds the changes of one publication and moves the position of the feed, both or neither. It applies only to the
version that the position was read from, so of two writers the later one fails, and begins again from the position of
the other (`fenced`). Numbers rise by one, without gaps, until an erasure removes the rows of its users.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction

from pipelines.errors import TransientError, one_line
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import make_durable
from pipelines.lake.marks import raise_mark
from pipelines.lake.table_files import write_rows
from pipelines.lake.tables import Lake, data_files, discard_uncommitted, erasures_done, read_rows
from pipelines.lake.transactions import transactions

_TABLE = "score_changes"
_NUMBER, _VERSION, _AS_OF = "feed:number", "feed:lake_version", "feed:as_of_us"
_REMOVALS, _MERGES = "feed:removals", "feed:merges"
"""The application transactions that hold the position."""
_RELAYED = "feed:relayed"
"""The application transaction that holds the last number that is on the topic of the feed."""
_BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class FeedPosition:
    """How far the feed has come."""

    number: int
    """The last number; 0 before the first change."""
    lake_version: int
    """The lake version, and the moment in microseconds since 1970, of the last publication that changed a row."""
    as_of_us: int
    erasures: int
    """How many erasures have been applied to the table."""
    removals: int = 0
    """How many erasures and withdrawals of events, and how many merges of users, that publication reflects."""
    merges: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """The order of publications, as in `serving/publication.py`."""
        return self.lake_version, self.as_of_us


class FeedMovedError(Exception):
    """Another commit came first: read the position again."""


def read_position(table: DeltaTable) -> FeedPosition:
    """Return the position at the version of a handle of `score_changes`."""
    marks = (_NUMBER, _AS_OF, _REMOVALS, _MERGES)
    number, as_of_us, removals, merges = (transactions(table).get(name, 0) for name in marks)
    version = transactions(table).get(_VERSION, -1)
    return FeedPosition(number, version, as_of_us, erasures_done(table), removals, merges)


def append_changes(lake: Lake, table: DeltaTable, parts: Iterable[pa.Table], position: FeedPosition) -> None:
    """Append rows (SCORE_CHANGES), whose last number is that of `position`, durably, on exactly the handle's version.

    parts: the rows by number, some at a time: each part becomes a file, and all are in one commit.
    A crash leaves orphan files, or the commit. Raises FeedMovedError if another commit came first, TransientError if
    the commit cannot be written, and what `parts` raises.
    """
    actions = _write_parts(lake, table, parts)
    marks = {_NUMBER: position.number, _VERSION: position.lake_version, _AS_OF: position.as_of_us}
    marks |= {_REMOVALS: position.removals, _MERGES: position.merges}
    try:
        commit_actions(table, actions, marks)
    except (DeltaError, OSError) as error:
        discard_uncommitted(lake, _TABLE, actions)
        if isinstance(error, CommitFailedError):
            raise FeedMovedError from error
        raise TransientError(f"{lake.folder(_TABLE)} cannot be committed to: {one_line(error)}; try again") from error
    make_durable([lake.entry_path(_TABLE, table.version() + 1)])


def _write_parts(lake: Lake, table: DeltaTable, parts: Iterable[pa.Table]) -> list[AddAction]:
    """Write each part as a file that is named after its last number; an error leaves none."""
    actions = list[AddAction]()
    try:
        for rows in parts:
            actions += write_rows(table, rows, f"{rows['number'][-1].as_py():020}-{uuid4().hex}")
    except Exception:
        discard_uncommitted(lake, _TABLE, actions)
        raise
    return actions


def read_changes(table: DeltaTable, after: int) -> Iterator[pa.Table]:
    """Yield the changes with a number above `after`, some at a time, in no order.

    Reads only the files that may have some: a file is named after its last number until a compaction merges it.
    """
    for path in data_files(table):
        if _last_number(path) > after:
            rows = read_rows(_TABLE, path)
            yield rows.filter(pc.greater(rows["number"], after))


def read_in_order(table: DeltaTable, after: int) -> Iterator[pa.Table]:
    """Yield the changes with a number above `after` by number, about 10,000 or a publication's at a time."""
    for paths in _batches(_bounds(table, after)):
        rows = pa.concat_tables(read_rows(_TABLE, path) for path in paths).sort_by("number")
        yield rows.filter(pc.greater(rows["number"], after))


def _bounds(table: DeltaTable, after: int) -> list[tuple[int, int, int, str]]:
    """Return first and last number, rows and path of the files with changes above `after`, by first number."""
    found = list[tuple[int, int, int, str]]()
    for path in data_files(table):
        if _last_number(path) > after:
            numbers = read_rows(_TABLE, path, ["number"])["number"]
            first, last = (pc.min_max(numbers)[bound].as_py() for bound in ("min", "max"))
            found += [(first, last, len(numbers), path)] if last is not None and last > after else []
    return sorted(found)


def _batches(bounds: Iterable[tuple[int, int, int, str]]) -> Iterator[list[str]]:
    """Yield paths of files whose numbers are all below those of the next; files that a compaction merged overlap."""
    batch, rows, end = list[str](), 0, 0
    for first, last, count, path in bounds:
        if rows >= _BATCH_ROWS and first > end:
            yield batch
            batch, rows = [], 0
        batch, rows, end = [*batch, path], rows + count, max(end, last)
    if batch:
        yield batch


def read_relayed(table: DeltaTable) -> int:
    """Return the last number that is on the topic of the feed, at the version of a handle; 0 before the first."""
    return transactions(table).get(_RELAYED, 0)


def mark_relayed(lake: Lake, number: int) -> None:
    """Record durably that all changes up to a number are on the topic. A crash before that repeats some of them."""
    raise_mark(lake, _TABLE, _RELAYED, number)


def _last_number(path: str) -> float:
    """Return the last number in a file; infinity if its name does not tell."""
    name = path.rpartition("/")[2].partition("-")[0]
    return int(name) if len(name) == len(f"{0:020}") and name.isdecimal() else float("inf")
