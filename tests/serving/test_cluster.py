"""A Redis Cluster of six real nodes: exact publications, a fence per slot, failovers and moving slots (`fenced`)."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr
from redis.cluster import RedisCluster
from redis.crc import key_slot

from pipelines.errors import ConfigurationError, FencedError, TransientError
from pipelines.operate.doctor import diagnose
from pipelines.operate.erase import erase
from pipelines.operate.verify import verify
from pipelines.refresh import publish_everything, publish_warehouse, refresh_warehouse
from pipelines.serving import cluster_store
from pipelines.serving.client import translate_errors
from pipelines.serving.cluster_store import ClusterPublicationWriter, ClusterStore
from pipelines.serving.digest_cache import DigestCache
from pipelines.serving.keys import fence_key, leaderboard_key, publication_key
from pipelines.serving.publication_state import Stamp
from pipelines.serving.publish import PublishResult
from pipelines.serving.publish import publish as publish_with
from pipelines.serving.read import published, read_leaderboard, read_rank, read_reputation
from pipelines.settings import RedisSettings, Settings
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.services.redis_cluster import TestedCluster
from tests.services.redis_server import RedisServer, refuse_replicas
from tests.services.waiting import wait_for
from tests.serving.conftest import always, documented_rules, documents, documents_of, expected, names, publish, stamp

HOSTILE = ["", "{ann}", "{ann}b", "a{b", "}{", "{}", "*", "\0", "\U0001f600", "new\nline", ".publication"]


@pytest.fixture
def cache(redis_cluster: TestedCluster) -> RedisSettings:
    prefix = f"reputation-{uuid.uuid4().hex[:12]}"
    return RedisSettings(url=SecretStr(redis_cluster.url), prefix=prefix, socket_timeout_seconds=60)


@pytest.fixture
def client(redis_cluster: TestedCluster) -> Iterator[RedisCluster]:
    with redis_cluster.client() as connected:
        yield connected


def served(client: RedisCluster, prefix: str) -> dict[str, str]:
    """Return every document of a prefix, by user_id."""
    keys: list[bytes] = list(client.scan_iter(match=f"{prefix}:*", count=10_000))
    values: list[bytes] = client.mget_nonatomic(keys) if keys else []
    return {key.decode().removeprefix(f"{prefix}:"): value.decode() for key, value in zip(keys, values, strict=True)}


def begin(client: RedisCluster, cache: RedisSettings, shown: Stamp) -> ClusterPublicationWriter:
    return ClusterStore(client, cache.prefix, ()).begin(shown)


def users(*user_ids: str) -> pl.Series:
    return names(*user_ids).cast(pl.Binary)


def test_publications_leave_exactly_the_documents(cache: RedisSettings, client: RedisCluster, tmp_path: Path) -> None:
    """Full, partial and full again, with names that choose their slot by braces; readers compute the same keys."""
    first = documents_of({user: f'{{"score":{n}}}' for n, user in enumerate([*HOSTILE, *map(str, range(500))])})
    assert publish(always(first), stamp(1), cache, tmp_path).full
    assert served(client, cache.prefix) == expected(first)
    second = pl.concat([first.tail(-2), documents(ann=7)])
    result = publish(always(second), stamp(2), cache, tmp_path)
    assert (result.written, result.deleted, result.full) == (1, 2, False)
    assert served(client, cache.prefix) == expected(second)
    assert read_reputation("ann", Settings(redis=cache)) == {"score": 7}
    client.set(f"{cache.prefix}:stranger", "{}")
    assert publish(always(second), stamp(3), cache, tmp_path / "other").deleted == 1
    assert served(client, cache.prefix) == expected(second)


def test_a_refresh_claims_only_the_slots_that_it_writes(
    cache: RedisSettings, client: RedisCluster, tmp_path: Path
) -> None:
    """After one changed and one removed document, two fences name the new publication, and no other."""
    state = DigestCache(tmp_path)
    publish_with(always(documents(ann=1, bob=1, cem=1)), stamp(1), cache, state)
    result = publish_with(always(documents(ann=2, cem=1)), stamp(2), cache, state, names("ann", "bob"))
    assert (result.written, result.deleted, result.full) == (1, 1, False)
    fences = [client.get(fence_key(cache.prefix, slot)) for slot in range(0, 16_384, 1_638)]
    last = client.get(fence_key(cache.prefix, key_slot(f"{cache.prefix}:ann".encode())))
    assert last == client.get(fence_key(cache.prefix, key_slot(f"{cache.prefix}:bob".encode())))
    assert last not in fences
    assert len(set(fences)) == 1


STEPS: dict[str, Callable[[ClusterPublicationWriter], None]] = {
    "write": lambda writer: writer.write(documents(ann=-1)),
    "write elsewhere": lambda writer: writer.write(documents(ghost=-1)),
    "remove": lambda writer: writer.remove(users("ann")),
    "finish": lambda writer: writer.finish(1),
}


def test_an_overtaken_publisher_is_refused_in_every_slot(cache: RedisSettings, client: RedisCluster) -> None:
    """B (newer, or of the same stamp) takes over from A in progress: no step of A has any effect, wherever."""
    for newer in (stamp(1), stamp(2)):
        older = begin(client, cache, stamp(1))
        older.write(documents(ann=1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster_store, "claim_all_slots", lambda _: None)
            begin(client, cache, newer).stored_users()  # dies before it claims
        successor = begin(client, cache, newer)
        assert set(successor.stored_users()) == {b"ann"}
        successor.write(documents(ann=7))
        for step in STEPS.values():
            with pytest.raises(FencedError, match="another publisher has taken over with version"):
                step(older)
        successor.finish(1)
        assert served(client, cache.prefix) == {"ann": '{"score":7}'}
        client.delete(publication_key(cache.prefix))


def test_an_older_publication_may_not_begin(cache: RedisSettings, client: RedisCluster, tmp_path: Path) -> None:
    """It is refused with advice; after the hash is deleted, the older lake replaces everything."""
    publish(always(documents(ann=2, bob=2)), stamp(500), cache, tmp_path / "new")
    with pytest.raises(FencedError, match="and newer"):
        publish(always(documents(ann=1)), stamp(1), cache, tmp_path / "old")
    client.delete(publication_key(cache.prefix))
    publish(always(documents(ann=1)), stamp(1), cache, tmp_path / "old")
    assert served(client, cache.prefix) == expected(documents(ann=1))


def test_the_fence_holds_where_the_hash_was_lost(cache: RedisSettings, client: RedisCluster) -> None:
    """The node of the hash lost the newer publication: the older one may begin, and is refused at the documents."""
    key = publication_key(cache.prefix)
    begin(client, cache, stamp(1)).finish(0)
    before: Any = client.hgetall(key)
    newer = begin(client, cache, stamp(3))
    newer.write(documents(ann=3))
    client.delete(key)
    client.hset(key, mapping=before)
    with pytest.raises(FencedError, match="version 3"):
        begin(client, cache, stamp(2)).write(documents(ann=2, bob=2))
    assert served(client, cache.prefix)["ann"] == '{"score":3}'


def test_an_interrupted_publication_is_repaired(cache: RedisSettings, client: RedisCluster, tmp_path: Path) -> None:
    """What it wrote is replaced or deleted by the next one, which is full."""
    publish(always(documents(ann=1, bob=1)), stamp(1), cache, tmp_path)

    def cut_off(*_: object) -> None:
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_store, "finish_in_cluster", cut_off)
        with pytest.raises(InterruptedError):
            publish(always(documents(ann=2, ghost=2)), stamp(2), cache, tmp_path)
    assert publish(always(documents(ann=3, bob=1)), stamp(3), cache, tmp_path).full
    assert served(client, cache.prefix) == expected(documents(ann=3, bob=1))


def publish_until_done(frame: pl.DataFrame, shown: Stamp, cache: RedisSettings, state: DigestCache) -> PublishResult:
    """Publish as `stream` does: an error that may be temporary is retried."""

    def attempt() -> PublishResult | None:
        try:
            return publish_with(always(frame), shown, cache, state)
        except TransientError:
            return None

    found = wait_for("a complete publication", attempt)
    assert found is not None
    return found


def test_a_primary_dies_while_documents_are_written(
    redis_cluster: TestedCluster, cache: RedisSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of a primary between two chunks: the publication fails, the next one leaves exactly the documents."""
    state = DigestCache(tmp_path)
    before = documents_of({f"user-{n}": "old" * 100 for n in range(6_000)})
    after = documents_of({f"user-{n}": "new" * 100 for n in range(500, 6_500)})
    publish_with(always(before), stamp(1), cache, state)
    primary = redis_cluster.primary_of(f"{cache.prefix}:user-1000")
    replica = redis_cluster.replica_of(primary)
    execute, calls = cluster_store.execute, iter(range(1_000))

    def execute_and_kill(publication: Any, commands: Any) -> None:
        if next(calls) == 2:
            primary.kill()
            redis_cluster.promote(replica)
        execute(publication, commands)

    monkeypatch.setattr(cluster_store, "execute", execute_and_kill)
    with pytest.raises(TransientError):
        publish_with(always(after), stamp(2), cache, state)
    assert publish_until_done(after, stamp(2), cache, state).full
    redis_cluster.rejoin(primary)
    with redis_cluster.client() as client:
        assert served(client, cache.prefix) == expected(after)
    assert not publish_with(always(after), stamp(3), cache, state).full


@pytest.mark.parametrize("lost", ["documents", "the hash"])
def test_a_failover_that_loses_a_publication(
    redis_cluster: TestedCluster, cache: RedisSettings, tmp_path: Path, lost: str
) -> None:
    """The promoted replica lacks the last documents, or the whole announcement: the next publication is full.

    The digests of what was written claim more than the cluster holds, but are not used.
    """
    state = DigestCache(tmp_path)
    settings = Settings(redis=cache)
    publish_with(always(documents(ann=1, bob=1)), stamp(1), cache, state)
    assert read_reputation("ann", settings) == {"score": 1}
    key = f"{cache.prefix}:ann" if lost == "documents" else publication_key(cache.prefix)
    primary = redis_cluster.primary_of(key)
    replica = redis_cluster.replica_of(primary)
    assert primary.client.wait(1, 60_000) == 1
    refuse_replicas(primary.client)
    assert not publish_with(always(documents(ann=2, bob=1)), stamp(2), cache, state).full
    primary.kill()
    redis_cluster.promote(replica)
    result = publish_until_done(documents(ann=2, bob=1), stamp(3), cache, state)
    redis_cluster.rejoin(primary)
    assert result.full
    assert read_reputation("ann", settings) == {"score": 2}
    with redis_cluster.client() as client:
        assert served(client, cache.prefix) == expected(documents(ann=2, bob=1))
    assert not publish_with(always(documents(ann=2, bob=1)), stamp(4), cache, state).full


def test_a_slot_moves_during_publications(
    redis_cluster: TestedCluster, cache: RedisSettings, client: RedisCluster, tmp_path: Path
) -> None:
    """Until the move ends, nothing is written to the slot and a full publication is refused; then both work."""
    state, settings = DigestCache(tmp_path), Settings(redis=cache)
    publish_with(always(documents(ann=1, bob=1)), stamp(1), cache, state)
    assert read_reputation("ann", settings) == {"score": 1}
    source = redis_cluster.primary_of(f"{cache.prefix}:ann")
    others = (member for member in redis_cluster.members if member.is_primary and member is not source)
    with redis_cluster.move(key_slot(f"{cache.prefix}:ann".encode()), next(others)) as move:
        with pytest.raises(TransientError, match="slots of the cluster are being moved"):
            publish(always(documents(ann=2, bob=1)), stamp(2), cache, tmp_path / "full")
        source.client.migrate("127.0.0.1", move.target.port, fence_key(cache.prefix, move.slot), 0, 60_000)
        writer = begin(client, cache, stamp(3))
        with (
            pytest.raises(TransientError, match="Slots are being moved to another node"),
            translate_errors(client, "publishing", {}),
        ):
            writer.write(documents(ann=3))
        assert read_reputation("ann", settings) == {"score": 1}
        move.move_keys()
        assert read_reputation("ann", settings) == {"score": 1}
        writer.write(documents(ann=3))
    writer.write(documents(bob=3))
    writer.finish(2)
    assert read_reputation("ann", settings) == {"score": 3}
    assert publish_with(always(documents(ann=4, bob=4)), stamp(4), cache, state).full
    assert served(client, cache.prefix) == expected(documents(ann=4, bob=4))


def test_leaderboards_follow_the_documents(cache: RedisSettings, client: RedisCluster, tmp_path: Path) -> None:
    """Ranks and scores of the last publication; a leaderboard that is no longer configured is deleted."""
    ranked = cache.model_copy(update={"leaderboards": ("all_time",)})
    settings = Settings(redis=ranked)
    scored = documents(ann=1, bob=2, cem=3).with_columns(all_time_score=pl.Series([1.0, 2.0, None]))
    publish(always(scored), stamp(1), ranked, tmp_path)
    assert [(row.user_id, row.rank) for row in read_leaderboard("all_time", settings)] == [("bob", 1), ("ann", 2)]
    publish(always(scored.head(1)), stamp(2), ranked, tmp_path)
    assert [row.user_id for row in read_leaderboard("all_time", settings)] == ["ann"]
    assert (read_rank("ann", "all_time", settings), read_rank("bob", "all_time", settings)) == (1, None)
    publish(always(documents(ann=1)), stamp(3), cache, tmp_path)
    assert client.exists(leaderboard_key(cache.prefix, "all_time")) == 0


def test_a_lake_is_served_checked_and_erased(settings: Settings, cache: RedisSettings, client: RedisCluster) -> None:
    """Verify passes, and finds a lost document and one of an unknown user; erasure reaches every node (`erasable`)."""
    ranked = cache.model_copy(update={"leaderboards": ("all_time",)})
    bus = with_ingest(settings.model_copy(update={"redis": ranked}))
    send(bus, valid_records(range(100), "TransactionCompleted"))
    drain_all(bus)
    refresh_warehouse(bus)
    assert publish_warehouse(bus).full
    assert [check for check in verify(bus) if check.passed is False] == []
    client.delete(f"{cache.prefix}:u-2")
    client.set(f"{cache.prefix}:nobody", "{}")
    assert len([check for check in verify(bus) if check.passed is False]) == 2
    assert publish_everything(bus).deleted == 1
    assert next(found for found in diagnose(bus) if found.subject == "cache").ok
    assert erase(bus, ["u-1"]).rows.events > 0
    assert read_reputation("u-1", bus) is None
    assert "u-1" not in {row.user_id for row in read_leaderboard("all_time", bus, top=100)}
    assert [check for check in verify(bus) if check.passed is False] == []


def test_the_documented_permissions_suffice(redis_cluster: TestedCluster, cache: RedisSettings, tmp_path: Path) -> None:
    """Users with the permissions of docs/redis.md publish and read, and errors show no password."""
    for who in ("publisher", "reader"):
        rules = [*documented_rules(who, cache.prefix), *documented_rules(f"{who} in a cluster", cache.prefix)]
        for member in redis_cluster.members:
            member.client.execute_command("ACL SETUSER", who, "reset", "on", f">{who}-s3cret", *rules)
    views = ("all_time",)
    publisher, reader, stranger = (
        cache.model_copy(update={"url": SecretStr(redis_cluster.url_of(who, password)), "leaderboards": views})
        for who, password in (("publisher", "publisher-s3cret"), ("reader", "reader-s3cret"), ("reader", "s3cret"))
    )
    for frame, version in ((documents(ann=1, bob=2), 1), (documents(ann=3), 2)):
        scored = frame.with_columns(all_time_score=pl.lit(1.0))
        publish(always(scored), stamp(version), publisher, tmp_path)
    assert read_reputation("ann", Settings(redis=reader)) == {"score": 3}
    assert read_rank("ann", "all_time", Settings(redis=reader)) == 1
    for refused in (reader, stranger):
        with pytest.raises(ConfigurationError, match="refused access while") as caught:
            publish(always(documents(ann=2).with_columns(all_time_score=1.0)), stamp(3), refused, tmp_path / "other")
        assert "s3cret" not in str(caught.value)


def test_the_wrong_kind_of_address_is_explained(redis_cluster: TestedCluster, redis_server: RedisServer) -> None:
    """A node of a cluster as a server, a server as a cluster, and nodes that do not answer."""
    node = redis_cluster.members[0]
    elsewhere = next(user for user in map(str, range(1_000)) if redis_cluster.primary_of(f"p:{user}") is not node)
    server = RedisSettings(url=SecretStr(f"redis://127.0.0.1:{node.port}"), prefix="p")
    url = redis_server.url().replace("redis://", "redis+cluster://")
    with pytest.raises(ConfigurationError, match=r"redis:// instead of redis\+cluster://"):
        published(Settings(redis=RedisSettings(url=SecretStr(url))))
    with pytest.raises(ConfigurationError, match=r"a node of a cluster: write redis\+cluster://"):
        read_reputation(elsewhere, Settings(redis=server))
    redis_server.kill()
    with pytest.raises(TransientError, match="did not answer while finding the nodes of the cluster") as caught:
        published(Settings(redis=RedisSettings(url=SecretStr(url.replace("://", "://:s3cret@")))))
    assert "s3cret" not in str(caught.value)
