"""The feed: each change of what is published of a user, once, in the lake's table `score_changes`.

A publication records its changes after it has written the documents and before it is the published one. They are
changes to what the feed said last (`feed_state.py`), not to what the store holds, so after a crash between the two
nothing is missing and nothing is recorded twice: the next publication finds the rest (`feed-equals-reputation`).
"""

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from pipelines.errors import SQLITE_DAMAGES, FencedError, TransientError, sqlite_code
from pipelines.feed_causes import causes_in_lake, merge_count, with_causes
from pipelines.feed_state import FeedState
from pipelines.lake.score_changes import FeedMovedError, FeedPosition, append_changes, read_position
from pipelines.lake.tables import SCORE_CHANGES, CachedLake, Lake, open_lake
from pipelines.lake.tombstones import Tombstones, open_tombstones
from pipelines.reputation.recent_events import SINCE, RecentEvents
from pipelines.reputation.steps import epoch_us
from pipelines.reputation.warehouse_file import Info
from pipelines.settings import Settings


class Shown(NamedTuple):
    """What a publication shows, as a warehouse or a draft has it."""

    users: Callable[[], pl.Series]
    """Returns all users, like `documents.shown_users`."""
    rows_of: Callable[[pl.Series], pl.DataFrame]
    """Returns what is shown of users: `user_id` and `shown` (String), like `documents.shown_rows`."""
    recent_events: RecentEvents


Record = Callable[[pl.Series | None, Info], int]
"""Records the changes of a publication, and returns their number: of the users who may have changed, or (None) of any.

See `Feed.record`."""
Compare = Callable[[pl.Series], pl.DataFrame]
"""Returns those of some users of whom something else was said. See `Feed._changes`."""
_ATTEMPTS = 20
_PART_USERS = 50_000
"""Users to compare, and changes to write, at a time: the rows of all need not fit."""
_NO_USERS = pl.DataFrame(schema=SINCE)


class Feed:
    """Records the changes of one publisher's publications. Not thread-safe."""

    def __init__(self, lake: Lake, state: FeedState, tombstones: Tombstones) -> None:
        self._lake, self._state, self._tombstones = lake, state, tombstones
        self._number: int | None = None
        """The last number after the last call; None before the first one."""

    def since(self, users: pl.Series) -> pl.DataFrame:
        """Return the publication that last said something of each of some users (String), as SINCE.

        Raises TransientError if the state is damaged, like `record`.
        """
        with self._renewing():
            said = self._state.since(users).lazy()
        return _since(users.to_frame("user_id").lazy().join(said, on="user_id", how="left"))

    def record(self, shown: Shown, changed: pl.Series | None, info: Info) -> int:
        """Record how what is shown differs from what the feed said last, as the changes of one publication.

        Return their number.

        changed: the only users (String) who may differ since the last call that returned; None: any may. All users are
        compared the first time, and after another publisher has recorded changes: then `shown.users` is called.
        info: what the publication reflects.
        Users who are erased are left out. Raises FencedError if the feed has changes of a newer publication,
        TransientError if the lake cannot be committed to or the state is damaged, and like `shown`.
        """
        for _ in range(_ATTEMPTS):
            try:
                with self._renewing():
                    return self._record(shown, changed, info)
            except FeedMovedError:
                continue
        raise TransientError("other writers kept committing to the lake's table score_changes: publish again")

    @contextmanager
    def _renewing(self) -> Generator[None]:
        """Replace the state if it turns out to be damaged; the next call compares all users."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if sqlite_code(error) not in SQLITE_DAMAGES:
                raise
            self._state.renew()
            self._number = None
            raise TransientError(
                f"the state of the feed was damaged and is made again from the lake: {error}"
            ) from error

    def _record(self, shown: Shown, changed: pl.Series | None, info: Info) -> int:
        table = self._lake.table("score_changes")
        position = read_position(table)
        _require_newest(position, info)
        self._tombstones.catch_up_now()
        self._state.sync(table, position)
        if changed is None or position.number != self._number:
            changed = pl.concat([shown.users(), self._state.users()]).unique()
        compare = self._comparison(shown, changed)
        different = pl.concat([_NO_USERS, *self._different(compare, changed.sort())])
        reached = _after(position, different.height, info)
        if different.height:
            recent = self._recent(shown, different, position, info)
            parts = _rows(compare, different["user_id"], recent, reached, info)
            held = [*parts] if different.height <= _PART_USERS else None
            append_changes(self._lake, table, held or parts, reached)
            if held:
                self._state.apply(held[0], position.number, reached.number)
            else:  # more than is to be held: they are read again
                table = self._lake.table("score_changes")
                self._state.sync(table, read_position(table))
        self._number = reached.number
        return different.height

    def _comparison(self, shown: Shown, users: pl.Series) -> Compare:
        """Return what compares some of these users, and again for their rows; those of one part are compared once."""
        if users.len() > _PART_USERS:
            return partial(self._changes, shown)
        changes = self._changes(shown, users)
        return lambda some: changes.join(some.to_frame(), on="user_id", how="semi", maintain_order="left")

    def _different(self, compare: Compare, users: pl.Series) -> Iterator[pl.DataFrame]:
        """Yield the publication (SINCE) that last spoke of each user of whom something else is shown now."""
        for part in users.to_frame("user_id").iter_slices(_PART_USERS):
            yield _since(self._without_erased(compare(part["user_id"])).lazy())

    def _changes(self, shown: Shown, users: pl.Series) -> pl.DataFrame:
        """Return users of whom something else was said, by user_id: `before` and `after`, and what SAID says else."""
        said, now = self._state.of(users).rename({"shown": "before"}), shown.rows_of(users).rename({"shown": "after"})
        joined = said.join(now, on="user_id", how="full", coalesce=True)
        return joined.filter(pl.col("before").ne_missing(pl.col("after"))).sort("user_id")

    def _without_erased(self, changes: pl.DataFrame) -> pl.DataFrame:
        users = changes.select("user_id").to_arrow(compat_level=pl.CompatLevel.oldest())["user_id"]
        return changes.filter(~pl.Series(self._tombstones.match_users(users)))

    def _recent(self, shown: Shown, different: pl.DataFrame, position: FeedPosition, info: Info) -> pl.DataFrame | None:
        """Return what happened (RECENT) to users since what was said of them (SINCE); None at the start of the feed."""
        if not position.number:
            return None
        return pl.concat([shown.recent_events(different), *causes_in_lake(self._lake, position, info)])


@contextmanager
def open_feed(settings: Settings) -> Generator[Feed | None]:
    """Yield the feed of a lake; None if `feed.enabled` is not set. Raises UsageError if there is no lake."""
    if not settings.feed.enabled:
        yield None
        return
    lake = CachedLake(open_lake(settings.lake_root).root)
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


def _rows(
    compare: Compare, users: pl.Series, recent: pl.DataFrame | None, reached: FeedPosition, info: Info
) -> Iterator[pa.Table]:
    """Yield the changes of users as rows of the table, some at a time; the last one has the number reached."""
    number = reached.number - users.len()
    for part in users.to_frame().iter_slices(_PART_USERS):
        changes = compare(part["user_id"])
        if changes.height < part.height:  # another process with this state has taken over newer changes
            raise FeedMovedError
        yield _numbered(with_causes(changes, recent, info), number, info)
        number += changes.height


def _numbered(changes: pl.DataFrame, number: int, info: Info) -> pa.Table:
    """Return changes as rows of the table, numbered from the one after a number."""
    numbered = changes.with_columns(
        number=pl.int_range(number + 1, number + 1 + changes.height),
        policy=pl.lit(f"{info.policy.name}@{info.policy_version}"),
        lake_version=pl.lit(info.lake_version, pl.Int64),
        as_of=pl.lit(info.as_of, pl.Datetime("us", "UTC")),
        recorded=pl.lit(datetime.now(UTC), pl.Datetime("us", "UTC")),
    )
    return numbered.select(SCORE_CHANGES.names).to_arrow().cast(SCORE_CHANGES)
