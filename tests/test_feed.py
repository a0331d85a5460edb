"""The feed: what changed of what is published, each change once (`feed-equals-reputation`)."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from pipelines import feed as feed_module
from pipelines.errors import IO, FencedError, TransientError, exit_status_of
from pipelines.feed import Feed, Shown, open_feed
from pipelines.feed_state import FeedState
from pipelines.lake.erasure import erase_users
from pipelines.lake.feed_retention import drop_old_changes
from pipelines.lake.score_changes import append_changes, read_changes
from pipelines.lake.tables import Lake, Snapshot, create_lake, open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.lake.upkeep import compact
from pipelines.refresh import refresh_draft
from pipelines.reputation.derive import DerivationResult, Draft, open_draft
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.merged_users import Aliases
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.recent_events import RECENT, SINCE, recent_in_warehouse
from pipelines.reputation.user_rows import HASHES
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from tests.reputation import policies
from tests.reputation.history import DAY, NOW, Event, at, us
from tests.reputation.policies import EVENTS
from tests.reputation.strategies import histories
from tests.reputation.test_incremental import lake, rebuilt, scratch, stories
from tests.share import count

DEFAULT = load_policy("default")
_ROWS = "SELECT user_id, CAST(to_json(shown) AS VARCHAR) FROM reputation AS shown"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a lake without an event."""
    return Path(create_lake(tmp_path_factory.mktemp("empty") / "lake").root)


@pytest.fixture
def settings(tmp_path: Path, empty: Path) -> Settings:
    return _settings(tmp_path, empty)


def _settings(folder: Path, empty: Path) -> Settings:
    shutil.copytree(empty, folder / "lake")
    return Settings.model_validate({"data_dir": folder, "feed": {"enabled": True}})


@contextmanager
def opened(settings: Settings) -> Iterator[Feed]:
    with open_feed(settings) as feed:
        assert feed is not None
        yield feed


def changes(settings: Settings) -> list[tuple[Any, ...]]:
    """Return number, user_id, before and after of every change, by number."""
    table = open_lake(settings.lake_root).table("score_changes")
    rows = [row for part in read_changes(table, 0) for row in part.to_pylist()]
    return sorted((row["number"], row["user_id"], row["before"], row["after"]) for row in rows)


def replayed(found: list[tuple[Any, ...]]) -> dict[str, str]:
    """Replay a feed from zero: each change continues the one before, and numbers have no gap."""
    said: dict[str, str] = {}
    for expected, (number, user_id, before, after) in enumerate(found, start=1):
        assert (number, said.pop(user_id, None)) == (expected, before)
        assert before != after
        said |= {user_id: after} if after is not None else {}
    return said


def info(version: int, removals: int = 0, merges: str = "") -> Any:
    as_of = datetime.fromtimestamp(1_700_000_000, UTC)
    return SimpleNamespace(
        lake_version=version, as_of=as_of, policy=DEFAULT, policy_version="1", erasures=removals, merges=merges
    )


def of_draft(draft: Draft) -> Shown:
    tables = draft.tables
    return Shown(tables.shown_users, tables.shown_rows, tables.recent_events)


def record(feed: Feed, version: int, *changed: str, removals: int = 0, merges: str = "", **shown: int) -> int:
    """Record a publication of what is shown of users: a number each; only those in `changed` may differ, if any.

    Return the number of changes.
    """
    frame = pl.DataFrame({"user_id": [*shown], "shown": [str(score) for score in shown.values()]}, _SHOWN)
    named = pl.Series("user_id", changed, dtype=pl.String) if changed else None
    return feed.record(of_frame(frame), named, info(version, removals, merges))


def of_frame(frame: pl.DataFrame) -> Shown:
    """Return what a publication shows: `user_id` and `shown`."""

    def rows_of(users: pl.Series) -> pl.DataFrame:
        return frame.filter(pl.col("user_id").is_in(users.implode()))

    def recent_events(_since: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(schema=RECENT)

    return Shown(lambda: frame["user_id"], rows_of, recent_events)


_SHOWN = {"user_id": pl.String, "shown": pl.String}


@pytest.mark.slow
@hypothesis_settings(max_examples=count(2, 10))
@given(stories(histories(*EVENTS)), policies.whole_policies())
def test_a_replay_gives_reputation(empty: Path, story: list[tuple[list[Event], int]], rules: Policy) -> None:
    """`feed-equals-reputation`: after any refreshes the feed, replayed from zero, is `reputation` of a rebuild.

    Each change names the events that became known since the user's last one.
    """
    assert_feed_equals_reputation(empty, story, rules)


@pytest.mark.slow
@hypothesis_settings(max_examples=count(2, 10))
@given(stories(histories(*EVENTS)), policies.raters(), policies.everything())
def test_a_replay_gives_reputation_where_raters_have_weights(
    empty: Path, story: list[tuple[list[Event], int]], table: dict[str, Any], others: dict[str, Any]
) -> None:
    """`feed-equals-reputation`: also where an event of one user changes the weights of ratings of others."""
    rules = policies.policy(**policies.allowed((others | {"raters": table},))[0])
    assert_feed_equals_reputation(empty, story, rules)


def assert_feed_equals_reputation(empty: Path, story: list[tuple[list[Event], int]], rules: Policy) -> None:
    """Record a story in two openings of the feed, and compare its replay with a rebuild, its causes with a model."""
    moments = list[int]()
    with scratch() as folder:
        settings, commits = _settings(folder / "data", empty), list[list[Event]]()
        with open_draft(folder / "warehouse.duckdb") as draft:
            for part in (story[:2], story[2:]):
                with opened(settings) as feed:
                    for events, as_of in part:
                        commits.append(events)
                        snapshot = lake(folder / "lake", commits)
                        derived = draft.refresh(snapshot, rules, at(as_of))
                        moments.append(as_of)
                        assert_scan_agrees(draft, snapshot, moments)
                        for users in published_in_turn(draft, derived):
                            feed.record(of_draft(draft), users, draft.tables.info)
        rebuilt(folder, snapshot, rules, as_of)
        with Warehouse(folder / "rebuilt" / "warehouse.duckdb") as warehouse:
            assert replayed(changes(settings)) == dict(warehouse.sql(_ROWS).rows())
        assert_new_events_are_named(rows_by_number(settings), commits)


def published_in_turn(draft: Draft, derived: DerivationResult) -> Iterator[pl.Series | None]:
    """Yield the users whose documents `stream` publishes: those who changed, and after a step of decay, all in turn."""
    yield derived.changed_users
    position = 0 if derived.has_decayed and derived.changed_users is not None else HASHES
    while position < HASHES:
        users, position = draft.tables.users_from(position, 2)
        yield users


def assert_scan_agrees(draft: Draft, snapshot: Snapshot, moments: list[int]) -> None:
    """Check that the histories say of the time since the refresh before what a scan of the lake says."""
    (version, as_of), users = max(enumerate([0, *moments[:-1]])), draft.tables.shown_users()
    since = users.to_frame().select("user_id", lake_version=pl.lit(version), as_of_us=pl.lit(as_of)).cast(SINCE)
    with open_lake_views(snapshot) as connection:
        scanned = recent_in_warehouse(connection, draft.tables.info, since)
    assert sorted(draft.tables.recent_events(since).rows()) == sorted(scanned.rows())


_OF_TIME = {"left the window", "penalty expired"}


def assert_new_events_are_named(found: list[dict[str, Any]], commits: list[list[Event]]) -> None:
    """Check by a plain model: the events of a user that a publication knows, and that of the last change did not."""
    last = dict[str, tuple[int, int]]()
    start = found[0]["lake_version"] if found else 0
    for row in found:
        version, as_of = row["lake_version"], us(row["as_of"])
        before, since = last.get(row["user_id"], (-1, 0))
        assert row["causes"]
        named = {each["event_id"] for each in row["causes"] if each["event_id"] and each["cause"] not in _OF_TIME}
        expected = {
            event.event_id
            for number, events in enumerate(commits[:version], start=1)
            for event in events
            if event.user_id == row["user_id"] and event.t < as_of and (number > before or event.t >= since)
        }
        is_start = (version, as_of) == (start, us(found[0]["as_of"]))
        assert named == (set() if is_start else expected)
        last[row["user_id"]] = (version, as_of)
        if row["after"] is None:
            del last[row["user_id"]]


def rows_by_number(settings: Settings) -> list[dict[str, Any]]:
    table = open_lake(settings.lake_root).table("score_changes")
    return sorted((row for part in read_changes(table, 0) for row in part.to_pylist()), key=lambda row: row["number"])


@pytest.mark.slow
def test_causes_of_changes(settings: Settings, tmp_path: Path) -> None:
    """Events by their ids, newest last; and where none is: the window moved, a penalty expired, another policy."""
    rules = Policy.model_validate(_EXPIRING)
    paid = [Event(f"paid-{day}", "ann", "Paid", NOW - day * DAY) for day in (1, 6)]
    fined, later = Event("fined", "ann", "Fined", NOW - DAY), Event("later", "ann", "Paid", NOW + DAY // 2)
    pardon = Event("pardon", "ann", "Retracted", NOW, {"target_event_id": "fined"})
    renamed, commits = rules.model_copy(update={"name": "renamed"}), list[list[Event]]()
    with opened(settings) as feed, open_draft(tmp_path / "warehouse.duckdb") as draft:
        for events, days, policy in [
            ([paid[0], paid[1], fined], 0, rules), ([later], 1, rules), ([], 1.5, rules), ([], 4, rules),
            ([pardon], 4, rules), ([Event(f"many-{n:02}", "ann", "Paid", NOW) for n in range(25)], 4, renamed),
        ]:  # fmt: skip
            commits.append(events)
            derived = draft.refresh(lake(tmp_path / "lake", commits), policy, at(int(NOW + days * DAY)))
            feed.record(of_draft(draft), derived.changed_users, draft.tables.info)
    found = [
        [*((each["cause"], each["event_id"]) for each in row["causes"]), row["more_causes"]]
        for row in rows_by_number(settings)
    ]
    many = [("new event", f"many-{n:02}") for n in range(6, 25)]
    assert found == [
        [("start", None), 0],
        [("new event", "later"), 0],
        [("left the window", "paid-6"), 0],
        [("penalty expired", "fined"), 0],
        [("retraction", "pardon"), 0],
        [*many, ("policy", None), 6],
    ]


_EXPIRING = {
    "name": "expiring",
    "version": "1",
    "windows_days": [7],
    "retraction": {"actions": ["Retracted"], "target": "target_event_id"},
    "actions": {"Paid": {"points": 1}, "Fined": {"points": -5, "penalties_expire_after_days": 3}},
}


def test_points_from_time_are_a_cause(settings: Settings, tmp_path: Path) -> None:
    """A day that begins changes scores without an event, in a refresh as in a rebuild."""
    rules = Policy.model_validate(_EXPIRING | {"time": {"member": {"points": 1, "every": "day"}}})
    snapshot = lake(tmp_path / "lake", [[Event("paid", "ann", "Paid", NOW - DAY)]])
    with opened(settings) as feed, open_draft(tmp_path / "warehouse.duckdb") as draft:
        for days in (0.5, 1.5):
            derived = draft.refresh(snapshot, rules, at(int(NOW + days * DAY)))
            feed.record(of_draft(draft), derived.changed_users, draft.tables.info)
    (_, row) = rows_by_number(settings)
    assert row["causes"] == [{"cause": "points from time", "event_id": None}]


def test_merges_and_removals_are_causes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no event; a change with nothing behind it that is on record says so."""
    monkeypatch.setattr("pipelines.feed_causes._removed", lambda *_: {"bob"})
    merge = SimpleNamespace(user_id="cid", merged_into="ann")
    monkeypatch.setattr("pipelines.feed_causes.merges_of", lambda _snapshot: [merge])
    monkeypatch.setattr("pipelines.feed_causes.aliases", lambda _merges: Aliases({"cid": "ann"}))
    with opened(settings) as feed:
        record(feed, 1, ann=1, bob=1, cid=1, dan=1)
        record(feed, 2, ann=2, bob=2, dan=2, removals=1, merges="1 id")
    found = {row["user_id"]: [each["cause"] for each in row["causes"]] for row in rows_by_number(settings)[4:]}
    assert found == {
        "ann": ["account merged"], "bob": ["events removed"], "cid": ["account merged"], "dan": ["recomputed"]
    }  # fmt: skip


def test_changes_are_recorded_once(settings: Settings) -> None:
    """`feed-equals-reputation`: the first publication records all users, later ones only what differs, and count it."""
    with opened(settings) as feed:
        assert record(feed, 1, ann=1, bob=1) == 2
        assert record(feed, 2, "ann", ann=2, bob=1) == 1
        assert record(feed, 2, "ann", "bob", ann=2) == 1
        assert record(feed, 3, **{"ann": 2, "ann\0": 1}) == 1
        assert record(feed, 3, **{"ann": 2, "ann\0": 1}) == 0
        assert record(feed, 4, "ann\0", **{"ann": 2, "ann\0": 2}) == 1
    assert changes(settings) == [
        (1, "ann", None, "1"), (2, "bob", None, "1"), (3, "ann", "1", "2"), (4, "bob", "1", None),
        (5, "ann\0", None, "1"), (6, "ann\0", "1", "2"),
    ]  # fmt: skip


def test_all_users_are_compared_in_parts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`feed-equals-reputation`: memory does not hold the rows of all users, and a publication is one commit."""
    monkeypatch.setattr(feed_module, "_PART_USERS", 2)
    asked = list[list[str]]()
    monkeypatch.setattr(FeedState, "of", _noting(FeedState.of, asked))
    names = [f"user-{n}" for n in range(5)]
    table = open_lake(settings.lake_root).table("score_changes")
    for version in (1, 2):
        with opened(settings) as feed:
            assert record(feed, version, **dict.fromkeys(names[version - 1 :], version)) == len(names)
    assert max(map(len, asked)) == 2
    assert replayed(found := changes(settings)) == dict.fromkeys(names[1:], "2")
    assert [user for _, user, *_ in found] == names + names
    table.update_incremental()
    assert table.transaction_version("feed:number") == 10
    (of_first, of_second) = (entry for entry in table.history() if entry["operation"] == "WRITE")
    assert of_first["version"] == of_second["version"] + 1


def _noting(of: Callable[[FeedState, pl.Series], pl.DataFrame], asked: list[list[str]]) -> Any:
    def noting(state: FeedState, users: pl.Series) -> pl.DataFrame:
        asked.append(users.to_list())
        return of(state, users)

    return noting


def test_a_failure_between_two_parts_leaves_no_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`feed-equals-reputation`: the next publication records all of them."""
    monkeypatch.setattr(feed_module, "_PART_USERS", 2)
    number = iter(range(10))
    whole = feed_module.with_causes

    def failing(*arguments: Any) -> pl.DataFrame:
        if next(number) == 1:
            raise OSError("no space")
        return whole(*arguments)

    monkeypatch.setattr(feed_module, "with_causes", failing)
    with opened(settings) as feed:
        with pytest.raises(OSError, match="no space"):
            record(feed, 1, ann=1, bob=1, cid=1)
        assert not [*Path(settings.lake_root, "score_changes").glob("*.parquet")]
        record(feed, 1, ann=1, bob=1, cid=1)
    assert replayed(changes(settings)) == {"ann": "1", "bob": "1", "cid": "1"}


@pytest.mark.parametrize("lost", ["nothing", "state", "last changes"])
def test_a_crash_loses_and_repeats_nothing(settings: Settings, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`feed-equals-reputation`: killed after the commit, before the state has it; or the state is gone, or older."""
    with opened(settings) as feed:
        record(feed, 1, ann=1, bob=1)
        if lost == "last changes":
            monkeypatch.setattr("pipelines.feed_state.FeedState.apply", lambda *_: None)
        record(feed, 2, ann=2, bob=1)
    monkeypatch.undo()
    if lost == "state":
        settings.feed_path.write_bytes(b"not a database" * 1000)
    with opened(settings) as feed:
        record(feed, 2, ann=2, bob=1)
        record(feed, 3, "bob", ann=2, bob=3)
    assert replayed(found := changes(settings)) == {"ann": "2", "bob": "3"}
    assert len(found) == 4


def test_a_full_disk_is_temporary(settings: Settings) -> None:
    """Where the state is the first to find no room: the changes are in the lake, and with room nothing is repeated."""
    users = {f"user-{number}": number for number in range(500)}
    with opened(settings) as feed:
        record(feed, 1, ann=1)
        feed._state._database.execute("PRAGMA max_page_count = 1")  # no more than there are
        with pytest.raises(sqlite3.OperationalError, match="full") as raised:
            record(feed, 2, ann=1, **users)
        assert exit_status_of(raised.value) == IO
        feed._state._database.execute("PRAGMA max_page_count = 1000000")
        record(feed, 2, ann=1, **users)
        record(feed, 3, "ann", ann=2, **users)
    assert replayed(changes(settings)) == {name: str(score) for name, score in (users | {"ann": 2}).items()}


def test_a_state_that_is_damaged_under_a_publisher(settings: Settings) -> None:
    """It is made again from the lake; the error, of a look-up or while recording, is temporary."""
    users = pl.Series(["ann", "bob"])
    with opened(settings) as feed:
        record(feed, 1, ann=1, bob=1)
        damage(settings.feed_path)
        with pytest.raises(TransientError, match="damaged"):
            feed.since(users)
        record(feed, 2, ann=2, bob=1)
        damage(settings.feed_path)
        with pytest.raises(TransientError, match="damaged"):
            record(feed, 3, ann=3, bob=1)
        record(feed, 3, ann=3, bob=1)
        assert dict(feed.since(users).select("user_id", "lake_version").rows()) == {"ann": 3, "bob": 1}
    assert replayed(changes(settings)) == {"ann": "3", "bob": "1"}


def damage(file: Path) -> None:
    """Let the schema of a database name pages that it does not have."""
    with closing(sqlite3.connect(file)) as database, database:
        (version,) = database.execute("PRAGMA schema_version").fetchone()
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_schema SET rootpage = 9999")
        database.execute(f"PRAGMA schema_version = {version + 1}")


def test_an_older_publisher_is_refused(settings: Settings, tmp_path: Path) -> None:
    """`fenced`: of two publishers the older one records nothing; one at the same stamp compares all users first."""
    with opened(settings) as first, opened(settings) as second:
        record(first, 1, ann=1, bob=1)
        record(second, 2, ann=2, bob=2)
        with pytest.raises(FencedError, match="version 2"):
            record(first, 1, "ann", ann=1, bob=1)
        record(first, 2, "ann", ann=3, bob=3)
    assert replayed(changes(settings)) == {"ann": "3", "bob": "3"}


def test_a_commit_in_between_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fenced`: what another publisher commits after the position was read leads to another comparison."""
    with opened(settings) as first, opened(settings) as second:
        record(first, 1, ann=1, bob=1)

        def overtaken(*arguments: Any) -> None:
            monkeypatch.undo()
            record(second, 2, ann=2, bob=1)
            append_changes(*arguments)

        monkeypatch.setattr(feed_module, "append_changes", overtaken)
        record(first, 2, "bob", ann=2, bob=2)
    assert replayed(changes(settings)) == {"ann": "2", "bob": "2"}


def test_erased_users_leave_the_feed(settings: Settings) -> None:
    """`erasable`: no row names an erased user, also not that of a publication that was in progress."""
    lake = open_lake(settings.lake_root)
    with opened(settings) as feed:
        record(feed, 1, ann=1, bob=1)
        erased = erase_users(lake, open_tombstones(lake, settings), ["ann"])
        record(feed, 2, "ann", "bob", ann=2, bob=2)
        record(feed, 3, "ann", bob=2)
    assert erased.score_changes == 1
    assert changes(settings) == [(2, "bob", None, "1"), (3, "bob", "1", "2")]
    assert b"ann" not in b"".join(path.read_bytes() for path in settings.data_dir.glob("score_changes.sqlite*"))


def test_a_state_of_an_older_format_is_rebuilt(settings: Settings) -> None:
    """Files of number 1 lack an index that look-ups name."""
    with opened(settings) as feed:
        record(feed, 1, ann=1, bob=1)
    with closing(sqlite3.connect(settings.feed_path)) as older:
        older.executescript("DROP INDEX said_since; PRAGMA user_version = 1")
    with opened(settings) as feed:
        record(feed, 2, ann=2, bob=1)
    with closing(FeedState(settings.feed_path)) as state:
        assert dict(state.since(pl.Series(["ann", "bob"])).select("user_id", "lake_version").rows()) == {
            "ann": 2,
            "bob": 1,
        }
    assert changes(settings) == [(1, "ann", None, "1"), (2, "bob", None, "1"), (3, "ann", "1", "2")]


def test_a_compaction_changes_nothing(settings: Settings) -> None:
    """Files that were merged are read whole when the state has to be rebuilt."""
    with opened(settings) as feed:
        for version in range(1, 5):
            record(feed, version, ann=version, bob=1)
    compact(open_lake(settings.lake_root), 2)
    settings.feed_path.unlink()
    with opened(settings) as feed:
        record(feed, 5, ann=5, bob=1)
    assert replayed(changes(settings)) == {"ann": "5", "bob": "1"}


class _Opened(Lake):
    """Notes which tables are opened."""

    names: ClassVar[list[str]] = []

    def table(self, name: str) -> DeltaTable:
        self.names.append(name)
        return Lake.table(self, name)


def test_a_refresh_opens_no_table_of_the_feed(settings: Settings, tmp_path: Path) -> None:
    """Off costs nothing; readers of the warehouse see the feed of the moment of its publication."""
    lake = _Opened(settings.lake_root)
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        refresh_draft(draft, lake, settings)
        assert "score_changes" not in lake.names
        with opened(settings) as feed:
            record(feed, 1, ann=1)
        draft.publish()
    with Warehouse(tmp_path / "warehouse.duckdb") as warehouse:
        assert warehouse.changes()["user_id"].to_list() == ["ann"]


def test_off_writes_nothing(tmp_path: Path) -> None:
    """Without the setting there is no feed."""
    with open_feed(Settings(data_dir=tmp_path)) as feed:
        assert feed is None
    assert not list(tmp_path.iterdir())


def test_retention_keeps_a_whole_feed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`feed-equals-reputation`: the newest change of each user stays, also of one who is gone; numbers go on."""
    lake, days = open_lake(settings.lake_root), settings.feed.model_copy(update={"keep_days": 1, "topic": ""})
    with opened(settings) as feed:
        for version in range(1, 4):
            record(feed, version, ann=version, bob=1, **({"cid": 1} if version < 3 else {}))
        assert drop_old_changes(lake, settings.feed) == drop_old_changes(lake, days) == 0
        monkeypatch.setattr("pipelines.lake.feed_retention.datetime", _Tomorrow)
        assert drop_old_changes(lake, days.model_copy(update={"topic": "t"})) == 0  # not relayed yet
        assert drop_old_changes(lake, days) == 3
        assert drop_old_changes(lake, days) == 0
        assert [(number, user, after) for number, user, _, after in changes(settings)] == [
            (2, "bob", "1"), (5, "ann", "3"), (6, "cid", None)
        ]  # fmt: skip
        record(feed, 4, "ann", ann=4, bob=1)
    settings.feed_path.unlink()
    with opened(settings) as feed:
        record(feed, 4, ann=4, bob=1)
        record(feed, 5, ann=4, bob=2)
    assert [change[:2] for change in changes(settings)[3:]] == [(7, "ann"), (8, "bob")]


class _Tomorrow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(days=1, hours=1)
