"""Publishing beside refreshes: whatever a publication meets, the documents of all noted users are published later."""

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
import redis

from pipelines.errors import FencedError, TransientError
from pipelines.feed import Feed, open_feed
from pipelines.lake.score_changes import read_changes
from pipelines.lake.tables import create_lake, open_lake
from pipelines.live_publisher import LivePublisher
from pipelines.reputation.derive import DerivationResult
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.recent_events import RECENT
from pipelines.reputation.user_rows import HASHES
from pipelines.serving.digest_cache import open_digest_cache
from pipelines.serving.publish import PublishResult
from pipelines.settings import FeedSettings, Settings
from tests.services.waiting import wait_for
from tests.serving.conftest import always, documents, expected, names, publish, served, stamp

_POLICY = load_policy("default")


class World:
    """A publisher over a draft whose documents a test sets."""

    def __init__(self, publisher: LivePublisher, failures: list[None], results: list[PublishResult]) -> None:
        self.publisher, self.failures, self.results, self.version = publisher, failures, results, 0
        self.asked: list[set[str] | None] = []

    def refresh(self, frame: pl.DataFrame, *changed: str) -> None:
        """Publish the documents of the draft, of which those of some users changed."""
        self.publisher.add(names(*changed))
        self.publisher.publish(cast("DerivationResult", None), self.tables(frame))

    def finish(self, frame: pl.DataFrame) -> None:
        self.publisher.finish(cast("DerivationResult", None), self.tables(frame))

    def tables(self, frame: pl.DataFrame) -> Any:
        self.version += 1
        moment = datetime.fromtimestamp(1_700_000_000 + self.version, UTC)
        info = SimpleNamespace(
            lake_version=self.version, as_of=moment, policy=_POLICY, policy_version="1", erasures=0, merges=""
        )

        def document_parts(users: pl.Series | None, _ranked: object) -> Iterable[pl.DataFrame]:
            self.asked.append(None if users is None else set(users))
            return always(frame)(users)

        def shown_rows(users: pl.Series) -> pl.DataFrame:
            return pl.concat(always(frame)(users)).select("user_id", shown="document")

        def recent_events(since: pl.DataFrame) -> pl.DataFrame:
            events = {"user_id": since["user_id"], "t": 0, "cause": "new event", "event_id": since["user_id"] + "-1"}
            return pl.DataFrame(events, RECENT)

        def documents_and_shown(users: pl.Series, ranked: object) -> tuple[pl.DataFrame, pl.DataFrame]:
            return pl.concat(document_parts(users, ranked)), shown_rows(users)

        def users_from(position: int, count: int) -> tuple[pl.Series, int]:
            """As if the users, in their order, had hashes at equal distances."""
            users, distance = frame["user_id"], HASHES // frame.height
            start = -(-position // distance)
            end = min(frame.height, start + count)
            return users[start:end], HASHES if end == frame.height else end * distance

        return SimpleNamespace(
            info=info,
            users_from=users_from,
            document_parts=document_parts,
            documents_and_shown=documents_and_shown,
            shown_rows=shown_rows,
            shown_users=lambda: frame["user_id"],
            recent_events=recent_events,
        )


@contextmanager
def publishing(settings: Settings, folder: Path, feed: Feed | None = None) -> Generator[World]:
    failures: list[None] = []
    results: list[PublishResult] = []
    with open_digest_cache(folder) as digests, ThreadPoolExecutor(1) as pool:

        def published(_derived: DerivationResult, result: PublishResult) -> None:
            results.append(result)

        publisher = LivePublisher(settings, digests, pool, published, lambda: failures.append(None), feed)
        yield World(publisher, failures, results)


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> Generator[World]:
    with publishing(settings, tmp_path / "published") as made:
        yield made


@contextmanager
def blocked_writes(patch: pytest.MonkeyPatch, then: Callable[[], None] = lambda: None) -> Generator[threading.Event]:
    """Let publications wait before they write until the event is set, and then call `then`."""
    from pipelines.serving import redis_store  # noqa: PLC0415

    go, write = threading.Event(), redis_store.write

    def waiting(*arguments: Any) -> None:
        assert go.wait(60)
        then()
        write(*arguments)

    patch.setattr("pipelines.serving.redis_store.write", waiting)
    try:
        yield go
    finally:
        go.set()
        patch.undo()


def fail() -> None:
    raise TransientError("no answer")


def fail_to_publish_ann(world: World, patch: pytest.MonkeyPatch) -> None:
    """Publish ann and bob; then let the publication of ann's new document fail, after `refresh` has returned."""
    world.refresh(documents(ann=1, bob=1))
    with blocked_writes(patch, fail) as go:
        world.refresh(documents(ann=2, bob=1), "ann")
        go.set()
        wait_for("the failure to be reported", lambda: bool(world.failures))


def test_the_next_refresh_does_not_wait_for_the_store(
    world: World, client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`publish` returns while the store is being written; the documents are those of that refresh."""
    world.refresh(documents(ann=1, bob=1))
    with blocked_writes(monkeypatch) as go:
        world.refresh(documents(ann=2, bob=1), "ann")
        assert served(client, settings.redis.prefix)["ann"] == '{"score":1}'
        go.set()
        world.finish(documents(ann=3, bob=1))
    assert served(client, settings.redis.prefix) == expected(documents(ann=2, bob=1))
    world.refresh(documents(ann=3, bob=1), "ann")
    world.finish(documents(ann=3, bob=1))
    assert served(client, settings.redis.prefix) == expected(documents(ann=3, bob=1))
    assert world.asked == [None, {"ann"}, {"ann"}]


def test_users_of_a_failed_publication_are_published_by_the_next(
    world: World, client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is raised once, `on_failure` is called, and the next publication has the users of both."""
    fail_to_publish_ann(world, monkeypatch)
    with pytest.raises(TransientError, match="no answer"):
        world.refresh(documents(ann=2, bob=2), "bob")
    world.refresh(documents(ann=2, bob=2))
    assert served(client, settings.redis.prefix) == expected(documents(ann=2, bob=2))


def test_the_last_turn_does_not_end_by_an_earlier_failure(
    world: World, client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `settle`, the users of a failed publication are published, without raising its error."""
    fail_to_publish_ann(world, monkeypatch)
    world.publisher.settle()
    world.refresh(documents(ann=2, bob=2), "bob")
    assert served(client, settings.redis.prefix) == expected(documents(ann=2, bob=2))


def test_after_a_failure_each_publication_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until one succeeds, so that an outage is one outage, not a failure every other turn."""
    world.refresh(documents(ann=1))
    with blocked_writes(monkeypatch, fail) as go:
        go.set()
        world.refresh(documents(ann=2), "ann")
        for _ in range(3):
            with pytest.raises(TransientError, match="no answer"):
                world.refresh(documents(ann=2))
    world.refresh(documents(ann=2))
    assert [result.written for result in world.results] == [1, 1]


def test_a_store_that_was_emptied_gets_all_documents(world: World, client: redis.Redis, settings: Settings) -> None:
    """The publication of one user finds that nothing is there; all documents of the newest refresh are published."""
    world.refresh(documents(ann=1, bob=1))
    client.flushdb()
    world.refresh(documents(ann=2, bob=1), "ann")
    world.finish(documents(ann=2, bob=2))
    assert served(client, settings.redis.prefix) == expected(documents(ann=2, bob=2))


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a round add two users to each publication."""
    monkeypatch.setattr("pipelines.live_publisher._ROUND_USERS", 2)


@pytest.mark.usefixtures("pairs")
def test_a_round_adds_some_users_to_each_publication(world: World, client: redis.Redis, settings: Settings) -> None:
    """Beside those who changed, until all had their turn."""
    world.refresh(documents(ann=1, bob=1, cid=1, dan=1, eve=1))
    world.publisher.begin_round()
    after = documents(ann=2, bob=2, cid=2, dan=2, eve=2)
    for changed in (["eve"], [], [], []):
        assert world.publisher.is_in_round() == (changed == ["eve"] or len(world.asked) < 4)
        world.refresh(after, *changed)
    world.finish(after)
    assert world.asked == [None, {"ann", "bob", "eve"}, {"cid", "dan"}, {"eve"}, set()]
    assert served(client, settings.redis.prefix) == expected(after)


@pytest.mark.usefixtures("pairs")
def test_a_round_that_begins_in_another_has_all_users(world: World, client: redis.Redis, settings: Settings) -> None:
    """It continues where that one is, and then with those who were before."""
    world.refresh(documents(ann=1, bob=1, cid=1, dan=1))
    world.publisher.begin_round()
    world.refresh(documents(ann=2, bob=2, cid=2, dan=2))
    world.publisher.begin_round()
    newest = documents(ann=3, bob=3, cid=3, dan=3)
    for _ in range(2):
        world.refresh(newest)
    assert not world.publisher.is_in_round()
    world.finish(newest)
    assert world.asked == [None, {"ann", "bob"}, {"cid", "dan"}, {"ann", "bob"}]
    assert served(client, settings.redis.prefix) == expected(newest)


@pytest.mark.usefixtures("pairs")
def test_a_failure_in_a_round_costs_no_document(world: World, client: redis.Redis, settings: Settings) -> None:
    """The users whom the failed publication added, and those whom the next one could not, are published later."""
    world.refresh(documents(ann=1, bob=1, cid=1, dan=1, eve=1))
    world.publisher.begin_round()
    after = documents(ann=2, bob=2, cid=2, dan=2, eve=2)
    with pytest.MonkeyPatch.context() as patch, blocked_writes(patch, fail) as go:
        world.refresh(after)
        go.set()
        wait_for("the failure to be reported", lambda: bool(world.failures))
    with pytest.raises(TransientError, match="no answer"):
        world.refresh(after)
    assert world.publisher.is_in_round()
    assert world.asked == [None, {"ann", "bob"}, {"cid", "dan"}]
    while world.publisher.is_in_round():
        world.refresh(after)
    world.finish(after)
    assert served(client, settings.redis.prefix) == expected(after)


@pytest.mark.usefixtures("pairs")
def test_a_round_waits_while_the_store_is_away(world: World) -> None:
    """Attempts that fail do not add users, each time more: their documents would have to fit in memory."""
    world.refresh(documents(**dict.fromkeys("abcdefghij", 1)))
    world.publisher.begin_round()
    after = documents(**dict.fromkeys("abcdefghij", 2))
    with pytest.MonkeyPatch.context() as patch, blocked_writes(patch, fail) as go:
        go.set()
        world.refresh(after)
        for _ in range(4):
            with pytest.raises(TransientError, match="no answer"):
                world.refresh(after)
    assert max(len(users or ()) for users in world.asked) == 4
    assert world.publisher.is_in_round()


@pytest.mark.usefixtures("pairs")
def test_a_publication_of_all_ends_a_round(world: World, client: redis.Redis, settings: Settings) -> None:
    """A store that was emptied during one gets all documents at once."""
    world.refresh(documents(ann=1, bob=1, cid=1, dan=1))
    world.publisher.begin_round()
    client.flushdb()
    after = documents(ann=2, bob=2, cid=2, dan=2)
    world.refresh(after)
    world.finish(after)
    assert not world.publisher.is_in_round()
    assert served(client, settings.redis.prefix) == expected(after)


def test_a_newer_publisher_ends_it(world: World, settings: Settings, tmp_path: Path) -> None:
    """The fence of the store is raised by the next call (`fenced`)."""
    world.refresh(documents(ann=1))
    publish(always(documents(ann=7)), stamp(1_000), settings.redis, tmp_path / "other")
    world.refresh(documents(ann=2), "ann")
    with pytest.raises(FencedError):
        world.finish(documents(ann=2))


def test_an_error_of_the_feed_costs_no_document(
    settings: Settings, tmp_path: Path, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of a publication is written: its users are published by the next one."""
    fed = settings.model_copy(update={"data_dir": tmp_path / "data", "feed": FeedSettings(enabled=True)})
    create_lake(fed.lake_root)
    with open_feed(fed) as feed, publishing(fed, tmp_path / "published", feed) as world:
        world.refresh(documents(ann=1, bob=1))
        world.finish(documents(ann=1, bob=1))
        with monkeypatch.context() as patch:
            patch.setattr(Feed, "since", lambda *_: (_ for _ in ()).throw(OSError("disk")))
            with pytest.raises(OSError, match="disk"):
                world.refresh(documents(ann=2, bob=1), "ann")
        world.refresh(documents(ann=2, bob=1))
        world.finish(documents(ann=2, bob=1))
    assert served(client, settings.redis.prefix) == expected(documents(ann=2, bob=1))


def test_the_feed_has_every_change_once(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`feed-equals-reputation`: also if a publication fails before it is recorded, or before it is complete."""
    fed = settings.model_copy(update={"data_dir": tmp_path / "data", "feed": FeedSettings(enabled=True)})
    create_lake(fed.lake_root)
    with open_feed(fed) as feed, publishing(fed, tmp_path / "published", feed) as world:
        fail_to_publish_ann(world, monkeypatch)
        with pytest.raises(TransientError):
            world.refresh(documents(ann=2, bob=2), "bob")
        monkeypatch.setattr("pipelines.serving.redis_store.finish", lambda *_: fail())
        with pytest.raises(TransientError):
            world.refresh(documents(ann=2, bob=2))
        monkeypatch.undo()
        world.refresh(documents(ann=2, bob=2))
        world.finish(documents(ann=2, bob=2))
    table = open_lake(fed.lake_root).table("score_changes")
    rows = [row for part in read_changes(table, 0) for row in part.to_pylist()]
    found = sorted((row["number"], row["user_id"], row["after"], row["causes"][0]["event_id"]) for row in rows)
    assert [change[1:] for change in found] == [
        ("ann", '{"score":1}', None), ("bob", '{"score":1}', None),
        ("ann", '{"score":2}', "ann-1"), ("bob", '{"score":2}', "bob-1"),
    ]  # fmt: skip
