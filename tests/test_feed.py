"""The feed: what changed of what is published, each change once (`feed-equals-reputation`)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from pipelines import feed as feed_module
from pipelines.errors import ConfigurationError, FencedError
from pipelines.feed import Feed, open_feed
from pipelines.lake.erasure import erase_users
from pipelines.lake.score_changes import append_changes, read_changes
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.lake.upkeep import compact
from pipelines.reputation.derive import open_draft
from pipelines.reputation.policy import Policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from tests.reputation import policies
from tests.reputation.history import Event, at
from tests.reputation.policies import EVENTS
from tests.reputation.strategies import histories
from tests.reputation.test_incremental import lake, rebuilt, scratch, stories

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


def info(version: int, moment: int = 0) -> Any:
    as_of = datetime.fromtimestamp(1_700_000_000 + moment, UTC)
    return SimpleNamespace(
        lake_version=version, as_of=as_of, policy=SimpleNamespace(name="default"), policy_version="1"
    )


def record(feed: Feed, version: int, *changed: str, **shown: int) -> None:
    """Record a publication of what is shown of users: a number each; only those in `changed` may differ, if any."""
    frame = pl.DataFrame({"user_id": [*shown], "shown": [str(score) for score in shown.values()]}, _SHOWN)
    named = pl.Series("user_id", changed, dtype=pl.String) if changed else None

    def rows_of(users: pl.Series | None) -> pl.DataFrame:
        return frame if users is None else frame.filter(pl.col("user_id").is_in(users.implode()))

    feed.record(rows_of, named, info(version))


_SHOWN = {"user_id": pl.String, "shown": pl.String}


@pytest.mark.slow
@hypothesis_settings(max_examples=4)
@given(stories(histories(*EVENTS)), policies.whole_policies())
def test_a_replay_gives_reputation(empty: Path, story: list[tuple[list[Event], int]], rules: Policy) -> None:
    """`feed-equals-reputation`: after any refreshes the feed, replayed from zero, is `reputation` of a rebuild."""
    with scratch() as folder:
        settings, commits = _settings(folder / "data", empty), list[list[Event]]()
        with open_draft(folder / "warehouse.duckdb") as draft:
            for part in (story[:2], story[2:]):
                with opened(settings) as feed:
                    for events, as_of in part:
                        commits.append(events)
                        snapshot = lake(folder / "lake", commits)
                        derived = draft.refresh(snapshot, rules, at(as_of))
                        feed.record(draft.tables.shown_rows, derived.changed_users, draft.tables.info)
        rebuilt(folder, snapshot, rules, as_of)
        with Warehouse(folder / "rebuilt" / "warehouse.duckdb") as warehouse:
            assert replayed(changes(settings)) == dict(warehouse.sql(_ROWS).rows())


def test_changes_are_recorded_once(settings: Settings) -> None:
    """`feed-equals-reputation`: the first publication records all users, later ones only what differs."""
    with opened(settings) as feed:
        record(feed, 1, ann=1, bob=1)
        record(feed, 2, "ann", ann=2, bob=1)
        record(feed, 2, "ann", "bob", ann=2)
        record(feed, 3, ann=2)
    assert changes(settings) == [
        (1, "ann", None, "1"), (2, "bob", None, "1"), (3, "ann", "1", "2"), (4, "bob", "1", None)
    ]  # fmt: skip


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


def test_off_writes_nothing(tmp_path: Path) -> None:
    """Without the setting there is no feed."""
    with open_feed(Settings(data_dir=tmp_path)) as feed:
        assert feed is None
    assert not list(tmp_path.iterdir())


def test_a_pinned_policy_has_no_feed(tmp_path: Path) -> None:
    """Two publishers with different policies would record each other's scores as changes."""
    settings = Settings.model_validate(
        {
            "data_dir": tmp_path,
            "feed": {"enabled": True},
            "reputation": {"pinned": True},
            "lake": {"uri": str(tmp_path)},
        }
    )
    with pytest.raises(ConfigurationError, match="one feed"), open_feed(settings):
        pass
