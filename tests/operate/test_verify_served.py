"""Each advice of verify, followed literally, makes verify pass (`fresh`, `erasable`, `once`)."""

import ast
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis

from pipelines.lake import removal
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.index import DedupIndex
from pipelines.lake.tables import open_lake
from pipelines.operate import verify, verify_served
from pipelines.operate.check import Advice, Check
from pipelines.operate.erase import erase
from pipelines.refresh import publish_everything, publish_views, publish_warehouse, refresh_draft, refresh_warehouse
from pipelines.reputation.derive import open_draft
from pipelines.reputation.export import export_warehouse
from pipelines.reputation.policy_file import load_policy
from pipelines.serving.client import connect
from pipelines.serving.digest_cache import open_digest_cache
from pipelines.serving.read import read_leaderboard, read_reputation
from pipelines.settings import Settings
from tests.commands import KARMALAKE, run
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.lake.builders import make_events

_USER = "u-1"
Spoil = Callable[[Settings, pytest.MonkeyPatch], None]


@pytest.fixture
def served(settings: Settings) -> Settings:
    """Return settings of a warehouse whose documents and one leaderboard are published."""
    return _published(settings)


@pytest.fixture(scope="module")
def world(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return the same for the tests that spoil only Redis, and leave it repaired."""
    names = {
        "data_dir": tmp_path_factory.mktemp("served") / "data",
        "kafka": local_settings.kafka.model_copy(update={"topic": "served", "group_id": "served"}),
        "redis": local_settings.redis.model_copy(update={"prefix": "served"}),
    }
    return _published(local_settings.model_copy(update=names))


def _published(settings: Settings) -> Settings:
    redis_settings = settings.redis.model_copy(update={"leaderboards": ("all_time",)})
    bus = with_ingest(settings.model_copy(update={"redis": redis_settings}))
    send(bus, valid_records(range(30), "TransactionCompleted"))
    drain_all(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)
    return bus


def _more_events(bus: Settings) -> None:
    send(bus, valid_records(range(30, 60), "TransactionCompleted"))
    drain_all(bus)


def _derive_more(bus: Settings, _: pytest.MonkeyPatch) -> None:
    _more_events(bus)
    refresh_warehouse(bus)


def _restore_an_old_warehouse(bus: Settings, _: pytest.MonkeyPatch) -> None:
    old = bus.warehouse_path.with_suffix(".old")
    export_warehouse(bus.warehouse_path, old)
    _more_events(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)
    old.replace(bus.warehouse_path)


def _lose_the_warehouse(bus: Settings, _: pytest.MonkeyPatch) -> None:
    bus.warehouse_path.unlink()


def _in_redis(change: Callable[[redis.Redis, str], object]) -> Callable[[Settings], None]:
    def spoil(bus: Settings) -> None:
        with closing(connect(bus.redis)) as client:
            change(client, bus.redis.prefix)

    return spoil


def _replaced(key: str, put: Callable[[redis.Redis, str], object]) -> Callable[[Settings], None]:
    def change(client: redis.Redis, prefix: str) -> None:
        client.delete(prefix + key)
        put(client, prefix + key)

    return _in_redis(change)


def _cut_off_an_erasure(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(removal, "replace_files", killed)
        with pytest.raises(InterruptedError):
            erase(bus, [_USER])


def _put_ids_into_the_index(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DedupIndex.extend

    def extend_with_extra_ids(self: DedupIndex, new: object, version: int) -> None:
        real(self, self.classify(make_events(["none"])).new, self.version)
        real(self, new, version)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(DedupIndex, "extend", extend_with_extra_ids)
        _more_events(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)


_SPOILED: dict[str, tuple[Advice, Spoil]] = {
    "another warehouse": (Advice.PUBLISH, _derive_more),
    "an older warehouse": (Advice.REFRESH, _restore_an_old_warehouse),
    "no warehouse": (Advice.REFRESH, _lose_the_warehouse),
    "an erasure that was cut off": (Advice.FINISH_ERASURE, _cut_off_an_erasure),
    "a wrong index": (Advice.REBUILD_INDEX, _put_ids_into_the_index),
}
_SPOILED_IN_REDIS: dict[str, tuple[Advice | None, Callable[[Settings], None]]] = {
    "a newer lake is served": (
        Advice.REPLACE_NEWER,
        _in_redis(lambda client, prefix: client.hset(f"{prefix}.publication", "lake_version", 999)),
    ),
    "no document": (Advice.PUBLISH_FULL, _in_redis(lambda client, prefix: client.delete(f"{prefix}:{_USER}"))),
    "another document": (Advice.PUBLISH_FULL, _replaced(f":{_USER}", lambda client, key: client.set(key, "{}"))),
    "a document too many": (Advice.PUBLISH_FULL, _replaced(":stranger", lambda client, key: client.set(key, "{}"))),
    "no user_id": (
        Advice.PUBLISH_FULL,
        _in_redis(lambda client, prefix: client.set(f"{prefix}:".encode() + b"\xff", "{}")),
    ),
    "a place too many": (
        Advice.PUBLISH_FULL,
        _in_redis(lambda client, prefix: client.zadd(f"{prefix}.leaderboard.all_time", {"stranger": 1})),
    ),
    "a leaderboard too many": (
        Advice.PUBLISH_FULL,
        _in_redis(lambda client, prefix: client.zadd(f"{prefix}.leaderboard.last_7_days", {_USER: 1})),
    ),
    "no object": (None, _replaced(f":{_USER}", lambda client, key: client.set(key, "7"))),
    "no JSON": (None, _replaced(f":{_USER}", lambda client, key: client.set(key, b"\xff"))),
    "a hash for a document": (None, _replaced(f":{_USER}", lambda client, key: client.hset(key, "a", "b"))),
    "a list for a leaderboard": (
        None,
        _replaced(".leaderboard.all_time", lambda client, key: client.lpush(key, "a")),
    ),
    "a string for the bookkeeping": (None, _replaced(".publication", lambda client, key: client.set(key, "x"))),
    "foreign bookkeeping": (None, _replaced(".publication", lambda client, key: client.hset(key, "id", b"\xff"))),
}  # fmt: skip
"""Problems with their advice; None if the advice is in an error message (`serving/redis_errors.py`)."""


@pytest.mark.parametrize("what", list(_SPOILED))
def test_each_advice_makes_verify_pass(served: Settings, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Verify reports the problem in one line with advice; after following it, every check passes."""
    advice, spoil = _SPOILED[what]
    assert _failed_checks(served) == []
    spoil(served, monkeypatch)
    _assert_repaired_by(served, advice)
    assert what == "an erasure that was cut off" or read_reputation(_USER, served) is not None


@pytest.mark.parametrize("spoil", [_restore_an_old_warehouse, _lose_the_warehouse])
def test_the_process_that_holds_the_warehouse_is_waited_for(
    served: Settings, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    """Beside `stream`, a refresh would wait for a minute, and be refused: that process replaces the warehouse."""
    spoil(served, monkeypatch)
    advice = Advice.WAIT.format(seconds=served.reputation.derive_interval_seconds, holder=f"process {os.getpid()}")
    with open_draft(served.warehouse_path) as draft:
        failed = _failed_checks(served)
        assert failed
        assert [each.evidence for each in failed if not each.evidence.endswith(f": {advice}")] == []
        refresh_draft(draft, open_lake(served.lake_root), served)
        draft.publish()
        publish_warehouse(served)
        assert _failed_checks(served) == []


@pytest.mark.parametrize("what", list(_SPOILED_IN_REDIS))
def test_each_advice_repairs_redis(world: Settings, what: str) -> None:
    """Whatever is wrong with a key, in one line with advice; after following it, every check passes."""
    advice, spoil = _SPOILED_IN_REDIS[what]
    spoil(world)
    _assert_repaired_by(world, advice)
    assert read_reputation(_USER, world) is not None
    assert "stranger" not in {row.user_id for row in read_leaderboard("all_time", world, top=100)}


def test_a_step_of_decay_is_waited_for(served: Settings) -> None:
    """A document of the step before is right while others have the next one; an older or another one is not."""
    decaying = served.model_copy(
        update={"reputation": served.reputation.model_copy(update={"policy": "decayed-karma"})}
    )
    refresh_warehouse(decaying)
    publish_everything(decaying)
    _step_and_publish(decaying, 1, _USER, "u-2")
    (check,) = verify_served.verify_served(decaying)
    assert (check.passed, check.evidence) == (True, "7 users compared, 0 differ, 5 wait for their step of decay")
    document = read_reputation("u-3", decaying) or {}
    document["reputation_all_time"]["events"] += 1
    with closing(connect(decaying.redis)) as client:
        client.set(f"{decaying.redis.prefix}:u-3", json.dumps(document))
    (check,) = verify_served.verify_served(decaying)
    assert not check.passed
    assert "1 differ, 4 wait for their step of decay, for example ['u-3']" in check.evidence
    _step_and_publish(decaying, 2, _USER, "u-2", "u-3")
    (check,) = verify_served.verify_served(decaying)
    assert not check.passed
    assert check.evidence.startswith("7 users compared, 4 differ, for example")


def _step_and_publish(decaying: Settings, hours: int, *users: str) -> None:
    """Replace the warehouse by that of some hours after now, and publish the documents of some users."""
    snapshot, policy = take_snapshot(open_lake(decaying.lake_root)), load_policy("decayed-karma")
    with open_draft(decaying.warehouse_path) as draft, open_digest_cache(decaying.published_dir) as state:
        draft.refresh(snapshot, policy, datetime.now(UTC) + timedelta(hours=hours))
        draft.publish()
        some = pl.Series("user_id", users)
        publish_views(draft.tables.info, draft.tables.document_parts, decaying, state, some)


def _assert_repaired_by(served: Settings, advice: Advice | None) -> None:
    failed = _failed_checks(served)
    assert failed
    assert all("\n" not in each.evidence for each in failed)
    expected = str(advice or "run `karmalake publish --full`").partition("{")[0]
    assert any(expected in each.evidence for each in failed)
    _follow(served, next(each.evidence for each in failed if expected in each.evidence))
    assert _failed_checks(served) == []


def test_every_advice_is_tested() -> None:
    """A new advice needs a case above; the checks contain no other advice to run a command."""
    followed = {advice for advice, _ in (_SPOILED | _SPOILED_IN_REDIS).values() if advice}
    assert followed | {Advice.WAIT} == set(Advice)
    for module in (verify, verify_served):
        source = Path(module.__file__).read_text(encoding="utf-8")
        texts = [str(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
        assert [text for text in texts if "`karmalake " in text] == []


@pytest.mark.parametrize("document", [None, b"{}", b"7", b"\xff"])
def test_a_full_publication_repairs_documents(world: Settings, document: bytes | None) -> None:
    """An incremental publication writes nothing, since nothing changed; a full one writes the document."""
    with closing(connect(world.redis)) as client:
        client.delete(f"{world.redis.prefix}:{_USER}")
        if document is not None:
            client.set(f"{world.redis.prefix}:{_USER}", document)
    assert publish_warehouse(world).written == 0
    (failed,) = _failed_checks(world)
    assert failed.passed is False
    assert "`karmalake publish --full`" in failed.evidence
    assert publish_everything(world).full
    assert _failed_checks(world) == []
    assert read_reputation(_USER, world) is not None


def test_served_users_are_read_in_bounded_pages(world: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of unknown documents are counted in bounded chunks, and deleted by a full publication."""
    monkeypatch.setattr("pipelines.operate.verify_served._MAX_USERS", 1_000)
    sizes: list[int] = []
    real = verify_served._unknown_users

    def counting(connection: Any, members: Any) -> Any:
        sizes.append(len(members))
        return real(connection, members)

    monkeypatch.setattr("pipelines.operate.verify_served._unknown_users", counting)
    monkeypatch.setattr("pipelines.serving.user_scan._SCAN_COUNT", 100)
    with closing(connect(world.redis)) as client:
        client.mset({f"{world.redis.prefix}:stranger-{n}": "{}" for n in range(7_000)})
    (failed,) = _failed_checks(world)
    assert "7,000 documents" in failed.evidence
    assert max(sizes) < 2_000
    assert publish_everything(world).deleted == 7_000
    assert _failed_checks(world) == []


def _failed_checks(bus: Settings) -> list[Check]:
    """Return the checks that do not pass, but for an index that the next start of ingest rebuilds."""
    return [
        each
        for each in verify.verify(bus)
        if each.passed is not True and not (each.passed is None and "next start of ingest" in each.evidence)
    ]


def _follow(bus: Settings, evidence: str) -> None:
    """Follow the advice: delete what it names, then run its commands."""
    named = re.search(r"[Tt]he (?:Redis )?key (\S+)", evidence)
    if named and re.search("[Dd]elete", evidence):
        with closing(connect(bus.redis)) as client:
            client.delete(named[1])
    if "start ingest" in evidence:
        shutil.rmtree(bus.index_dir)
        _karmalake(bus, "drain")
    for command in re.findall("`karmalake ([^`]+)`", evidence):
        _karmalake(bus, *command.split(), *(["--yes", _USER] if command == "erase" else []))


def _karmalake(bus: Settings, *arguments: str) -> None:
    assert bus.redis.url is not None
    values = {
        "KARMALAKE_DATA_DIR": str(bus.data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": bus.kafka.bootstrap_servers or "",
        "KARMALAKE_KAFKA_TOPIC": bus.kafka.topic,
        "KARMALAKE_KAFKA_GROUP_ID": bus.kafka.group_id,
        "KARMALAKE_REDIS_URL": bus.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": bus.redis.prefix,
        "KARMALAKE_REDIS_LEADERBOARDS": ",".join(bus.redis.leaderboards),
    }
    done = run([*KARMALAKE, *arguments], env=os.environ | values)
    assert done.returncode == 0, done.stdout + done.stderr
