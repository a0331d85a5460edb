"""What the feed adds to refreshes and publications: each commit is refreshed once, with the feed beside it.

Without the feed: the refresh, and the documents of the changed users. With it, what is shown of them and what happened
to them as well, in the same thread, and then the commit of the changes, which `karmalake stream` makes in the thread
that writes to the store, while the next refresh is computed. Writing to the store is not measured: it adds to both. The
ratios are of processor time, which other processes of the machine change little.
"""

import statistics
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import polars as pl

from benchmarks.lakes import AS_OF, add_events, make_lake
from benchmarks.report import MeasurementError, require_count, save_results
from pipelines.feed import Feed, Shown
from pipelines.feed_state import FeedState
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.score_changes import read_position
from pipelines.lake.tables import Lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.reputation.derive import Draft, open_draft
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import Settings

USERS, EVENTS = 200_000, 1_000_000
_COMMITS, _REPEATED = (100, 1_000, 10_000), 9
_COLUMNS = ("commit", "changes", "on / off", "with commit / off")


def run(folder: Path) -> None:
    """Measure commits of several sizes, each several times, on one draft of one lake."""
    lake, settings = make_lake(folder / "lake", EVENTS, USERS), Settings(data_dir=folder)
    with open_draft(settings.warehouse_path) as draft, closing(FeedState(settings.feed_path)) as state:
        feed = Feed(lake, state, open_tombstones(lake, settings))
        draft.rebuild(take_snapshot(lake), load_policy("default"), AS_OF)
        feed.record(_shown(draft), None, draft.tables.info)
        _refresh(lake, draft, feed, 1, 0)  # orders the events by user
        rows = [_measured(lake, draft, feed, size, number) for number, size in enumerate(_COMMITS)]
    save_results("feed", _COLUMNS, rows, "on / off", note="ratios of medians of processor time")


def _measured(lake: Lake, draft: Draft, feed: Feed, size: int, number: int) -> tuple[object, ...]:
    before = read_position(lake.table("score_changes")).number
    turns = [_refresh(lake, draft, feed, size, 1 + number * _REPEATED + turn) for turn in range(_REPEATED)]
    off, on, with_commit = map(statistics.median, zip(*turns, strict=True))
    changes = read_position(lake.table("score_changes")).number - before
    return size, changes // _REPEATED, on / off, with_commit / off


def _refresh(lake: Lake, draft: Draft, feed: Feed, size: int, minute: int) -> tuple[float, float, float]:
    """Refresh after a commit; return processor seconds without the feed, with its rows, and with its commit, too."""
    as_of = AS_OF + timedelta(minutes=minute + 1)
    add_events(lake, size, USERS, int((as_of - timedelta(seconds=30)).timestamp()) * 1_000_000, 1)
    started = time.process_time()
    users = draft.refresh(take_snapshot(lake), load_policy("default"), as_of).changed_users
    if users is None:
        raise MeasurementError("a refresh rebuilt everything")
    refreshed = time.process_time()
    list(draft.tables.document_parts(users))  # the first one is slower: neither of the two that are compared is it
    warm = time.process_time()
    (documents,) = draft.tables.document_parts(users)
    made = time.process_time()
    _, shown = draft.tables.documents_and_shown(users)
    recent = draft.tables.recent_events(feed.since(users))
    gathered = time.process_time()
    feed.record(_made(draft, shown, recent), users, draft.tables.info)
    ended = time.process_time()
    require_count("rows of the feed", shown.height, documents.height)
    refresh = refreshed - started
    on = refresh + gathered - made
    return refresh + made - warm, on, on + ended - gathered


def _made(draft: Draft, shown: pl.DataFrame, recent: pl.DataFrame) -> Shown:
    def rows_of(users: pl.Series) -> pl.DataFrame:
        return shown.join(users.to_frame(), on="user_id", how="semi")

    def recent_events(_since: pl.DataFrame) -> pl.DataFrame:
        return recent

    return Shown(draft.tables.shown_users, rows_of, recent_events)


def _shown(draft: Draft) -> Shown:
    return Shown(draft.tables.shown_users, draft.tables.shown_rows, draft.tables.recent_events)
