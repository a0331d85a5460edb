"""Retention of the feed: old changes are removed, except the newest one of each user.

So what remains is a whole feed: replayed from zero it gives `reputation`, as before (`feed-equals-reputation`), and
from any number it gives the newest state of each user who changed since. A consumer that comes late misses steps, and
no state; its own value then differs from `before` of the next change of that user. Numbers are never used again.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.errors import TransientError
from pipelines.lake.removal import commit_removal, discard_unused, matching_files, rewrite_files
from pipelines.lake.score_changes import read_relayed
from pipelines.lake.table_files import list_files
from pipelines.lake.tables import SCORE_CHANGES, Lake, data_files, read_rows
from pipelines.settings import FeedSettings

_TABLE = "score_changes"
_COLUMNS = ["number", "user_id", "recorded"]
_ATTEMPTS = 20


def drop_old_changes(lake: Lake, feed: FeedSettings) -> int:
    """Remove changes that were recorded more than `feed.keep_days` ago; return how many.

    The newest change of each user stays, and so does one that is still to be relayed to the topic. Reads three columns
    of the whole table. Raises TransientError when other processes kept committing through all attempts. A crash leaves
    orphan files.
    """
    if feed.keep_days is None:
        return 0
    before = datetime.now(UTC) - timedelta(days=feed.keep_days)
    for _ in range(_ATTEMPTS):
        table = lake.table(_TABLE)
        search = _OldChanges(_droppable(table, before, is_relayed=bool(feed.enabled and feed.topic)))
        rewritten = rewrite_files(lake, _TABLE, table, list_files(table) if len(search.numbers) else [], search)
        try:
            if found := [each for each in rewritten.values() if each]:
                commit_removal(lake, _TABLE, table, found, {})
        except CommitFailedError:
            discard_unused(lake, _TABLE, rewritten)
            continue
        return len(search.numbers)
    raise TransientError(f"other writers kept committing to {lake.folder(_TABLE)}: a later upkeep removes old changes")


def _droppable(table: DeltaTable, before: datetime, *, is_relayed: bool) -> pa.ChunkedArray:
    """Return the numbers of the changes to remove."""
    empty = SCORE_CHANGES.empty_table().select(_COLUMNS)
    rows = pa.concat_tables([empty, *(read_rows(_TABLE, path, _COLUMNS) for path in data_files(table))])
    newest = rows.group_by("user_id").aggregate([("number", "max")])["number_max"]
    is_old = pc.less(rows["recorded"], pa.scalar(before, rows["recorded"].type))
    found = rows["number"].filter(pc.and_not(is_old, pc.is_in(rows["number"], newest)))
    return found.filter(pc.less_equal(found, read_relayed(table))) if is_relayed else found


@dataclass(frozen=True, slots=True)
class _OldChanges:
    """Changes by their numbers."""

    numbers: pa.ChunkedArray

    def find(self, paths: Sequence[str]) -> Collection[str]:
        return matching_files(self, _TABLE, paths, ["number"])

    def match(self, rows: pa.Table) -> pa.BooleanArray:
        return pc.is_in(rows["number"], value_set=self.numbers).combine_chunks()
