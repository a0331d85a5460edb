"""The feed: each change of what is published of a user, once, in the lake's table `score_changes`.

A publication records its changes after it has written the documents and before it is the published one. They are
changes to what the feed said last (`feed_state.py`), not to what the store holds, so after a crash between the two
nothing is missing and nothing is recorded twice: the next publication finds the rest (`feed-equals-reputation`).
"""

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from pipelines.errors import FencedError, TransientError
from pipelines.feed_causes import merge_count, with_causes
from pipelines.feed_state import FeedState, as_said
from pipelines.lake.score_changes import FeedMovedError, FeedPosition, append_changes, read_position
from pipelines.lake.tables import SCORE_CHANGES, CachedLake, Lake, create_lake
from pipelines.lake.tombstones import Tombstones, open_tombstones
from pipelines.reputation.recent_events import RECENT, SINCE, RecentEvents
from pipelines.reputation.steps import epoch_us
from pipelines.reputation.warehouse_file import Info
from pipelines.settings import Settings

ShownRows = Callable[[pl.Series | None], pl.DataFrame]
"""Returns what is shown of users, or of all (None): `user_id` and `shown` (String), like `documents.shown_rows`."""


class Shown(NamedTuple):
    """What a publication shows, as a warehouse or a draft has it."""

    rows_of: ShownRows
    recent_events: RecentEvents


Record = Callable[[pl.Series | None, Info], None]
"""Records the changes of a publication: of the users who may have changed, or (None) of any. See `Feed.record`."""
_ATTEMPTS = 20
_NOTHING = pl.DataFrame(schema=RECENT)


class Feed:
    """Records the changes of one publisher's publications. Not thread-safe."""

    def __init__(self, lake: Lake, state: FeedState, tombstones: Tombstones) -> None:
        self._lake, self._state, self._tombstones = lake, state, tombstones
        self._number: int | None = None
        """The last number after the last call; None before the first one."""

    def since(self, users: pl.Series) -> pl.DataFrame:
        """Return the publication that last said something of each of some users (String), as SINCE."""
        said = self._state.since(users).lazy()
        return _since(users.to_frame("user_id").lazy().join(said, on="user_id", how="left"))

    def record(self, shown: Shown, changed: pl.Series | None, info: Info) -> None:
        """Record how what is shown differs from what the feed said last, as the changes of one publication.

        changed: the only users (String) who may differ since the last call that returned; None: any may. All users are
        compared the first time, and after another publisher has recorded changes: then `shown.rows_of` gets None.
        info: what the publication reflects.
        Users who are erased are left out. Raises FencedError if the feed has changes of a newer publication,
        TransientError if the lake cannot be committed to, and like `shown`.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._record(shown, changed, info)
            except FeedMovedError:
                continue
        raise TransientError("other writers kept committing to the lake's table score_changes: publish again")

    def _record(self, shown: Shown, changed: pl.Series | None, info: Info) -> None:
        table = self._lake.table("score_changes")
        position = read_position(table)
        _require_newest(position, info)
        self._tombstones.catch_up_changes(table)
        self._state.sync(table, position)
        users = changed if position.number == self._number else None
        changes = self._without_erased(self._changes(shown.rows_of(users), users))
        reached = _after(position, changes.height, info)
        if changes.height:
            recent = shown.recent_events(_since(changes.lazy())) if position.number else _NOTHING
            changes = with_causes(changes, recent, self._lake, position, info)
            rows = _rows(changes, reached, info)
            append_changes(self._lake, table, rows, reached)
            self._state.apply(as_said(pl.DataFrame(rows)), position.number, reached.number)
        self._number = reached.number

    def _changes(self, shown: pl.DataFrame, users: pl.Series | None) -> pl.DataFrame:
        """Return users of whom something else was said, by user_id: `before` and `after`, and what SAID says else."""
        said = self._state.all() if users is None else self._state.of(users)
        joined = said.rename({"shown": "before"}).join(
            shown.rename({"shown": "after"}), on="user_id", how="full", coalesce=True
        )
        return joined.filter(pl.col("before").ne_missing(pl.col("after"))).sort("user_id")

    def _without_erased(self, changes: pl.DataFrame) -> pl.DataFrame:
        users = changes.select("user_id").to_arrow(compat_level=pl.CompatLevel.oldest())["user_id"]
        return changes.filter(~pl.Series(self._tombstones.match_users(users)))


@contextmanager
def open_feed(settings: Settings) -> Generator[Feed | None]:
    """Yield the feed of a lake; None if `feed.enabled` is not set."""
    if not settings.feed.enabled:
        yield None
        return
    lake = CachedLake(create_lake(settings.lake_root).root)
    with closing(FeedState(settings.feed_path)) as state:
        yield Feed(lake, state, open_tombstones(lake, settings))


def _require_newest(position: FeedPosition, info: Info) -> None:
    if position.order > (info.lake_version, epoch_us(info.as_of)):
        raise FencedError(
            f"cannot record changes of lake version {info.lake_version} as of {info.as_of.isoformat()}: the feed has "
            f"changes of version {position.lake_version}, from a publication that is newer. Run only one publisher; "
            "after a wrong clock, the next commit of the lake ends this"
        )


def _after(position: FeedPosition, changes: int, info: Info) -> FeedPosition:
    """Return the position after so many changes."""
    return replace(
        position,
        number=position.number + changes,
        lake_version=info.lake_version,
        as_of_us=epoch_us(info.as_of),
        removals=info.erasures,
        merges=merge_count(info),
    )


def _since(said: pl.LazyFrame) -> pl.DataFrame:
    """Return the publication (SINCE) of each row of what was said; before all of them for users who are new."""
    moments = [pl.col("lake_version").fill_null(-1), pl.col("as_of_us").fill_null(0)]
    return said.select("user_id", *moments).cast(SINCE).collect()


def _rows(changes: pl.DataFrame, position: FeedPosition, info: Info) -> pa.Table:
    """Return changes as rows of the table, the last of which has the position's number."""
    numbered = changes.with_columns(
        number=pl.int_range(position.number - changes.height + 1, position.number + 1),
        policy=pl.lit(f"{info.policy.name}@{info.policy_version}"),
        lake_version=pl.lit(info.lake_version, pl.Int64),
        as_of=pl.lit(info.as_of, pl.Datetime("us", "UTC")),
        recorded=pl.lit(datetime.now(UTC), pl.Datetime("us", "UTC")),
    )
    return numbered.select(SCORE_CHANGES.names).to_arrow().cast(SCORE_CHANGES)
