"""What an erasure reaches is gone to the last byte; what it does not reach is refused or said (`erasable`)."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import Record
from pipelines.errors import TransientError, UsageError
from pipelines.lake.kept_tombstones import FILE_NAME, keep, read_kept, tombstones_at
from pipelines.lake.mentions import Mentions
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.lake.upkeep import vacuum, vacuum_when_due
from pipelines.lake.words import words_of_bytes
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase, erase_without_documents
from pipelines.operate.erase_limits import beyond_reach
from pipelines.operate.replay import compare, fresh, open_replay, replay
from pipelines.operate.verify import verify, verify_erased
from pipelines.refresh import publish_warehouse, refresh_draft, refresh_warehouse
from pipelines.reputation.by_user import by_user_path
from pipelines.reputation.derive import open_draft
from pipelines.serving.read import read_reputation
from pipelines.settings import Settings
from tests.draining import NOON, assert_verified, drain_all, query, send, valid_records, with_ingest
from tests.services.waiting import wait_for
from tests.test_stream import streaming

_JANE = "jane-doe"
_NAMED = re.compile(rb"jane-doe(?!-2)")
"""jane-doe-2 is another user."""


def _value(event_id: str, user: str, **fields: Any) -> bytes:
    row = {"event_id": event_id, "user_id": user, "action_type": "DriverRated", "event_time": NOON, "metadata": []}
    return encode(pa.Table.from_pylist([row | fields], EVENT))[0].as_py()


def _of_jane() -> list[Record]:
    """Return all ways in which she is in a topic: 3 events, 2 conflicts, 4 dead letters that are hers."""
    late = NOON.replace(year=1999)
    return [
        Record(b"jane-doe", _value("r-2", _JANE, metadata=[("rating", "5")])),
        Record(b"jane-doe", _value("jane-doe/1", _JANE)),
        Record(b"jane-doe", _value("jane-doe/2", _JANE)),
        Record(b"jane-doe", _value("r-2", _JANE, metadata=[("rating", "1")])),  # a conflict of hers
        Record(b"driver-1", _value("jane-doe/1", "driver-1")),  # another user's conflict under her event_id
        Record(b"jane-doe", b"\xff broken"),
        Record(b"driver-1", b"\xff jane-doe broken"),  # undecodable, under another key
        Record(b"driver-1", b"\xff{", [("user", b"jane-doe")]),
        Record(None, _value("r-4", _JANE, event_time=late)),
    ]


def _send_of_jane(bus: Settings) -> None:
    """Send and drain what is hers, her events before what is a conflict with one."""
    for records in (_of_jane()[:3], _of_jane()[3:]):
        send(bus, records)
        drain_all(bus)


def _of_others() -> list[Record]:
    """Return what other users' events say of her: 2 events, 1 conflict and 1 dead letter; and who is not her."""
    by_her = [("rating", "1"), ("rater_id", _JANE), ("comment", "jane-doe was cold")]
    return [
        Record(b"driver-1", _value("r-1", "driver-1", metadata=by_her)),
        Record(b"driver-2", _value("r-5", "driver-2", metadata=[("rater_id", _JANE)])),
        Record(b"driver-1", _value("r-1", "driver-1", metadata=[("rater_id", _JANE)])),
        Record(b"driver-1", _value("r-3", "driver-1", metadata=by_her, event_time=NOON.replace(year=1999))),
        Record(b"driver-1", b"\xff nobody-else broken"),
        Record(b"jane-doe-2", _value("r-6", "jane-doe-2")),
    ]


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a lake, a warehouse, a cache by user and documents, in all of which she is."""
    bus = with_ingest(settings, max_batch_records=60, max_dead_letter_run=1_000, max_dead_letter_share=1)
    send(bus, [*valid_records(range(20)), *_of_others()])
    drain_all(bus)
    refresh_warehouse(bus)
    _send_of_jane(bus)
    refresh_warehouse(bus)  # what was touched: by_user.duckdb is there
    publish_warehouse(bus)
    assert read_reputation(_JANE, bus)
    assert by_user_path(bus.warehouse_path).exists()
    return bus


def _found(bus: Settings) -> set[str]:
    """Return the files under data_dir, by their folder, and the Redis keys, that hold her id as a word, decoded."""
    files = {
        "/".join(path.relative_to(bus.data_dir).parts[:2])
        for path in bus.data_dir.rglob("*")
        if path.is_file() and any(map(_NAMED.search, _texts(path)))
    }
    assert bus.redis.url is not None
    with redis.Redis.from_url(bus.redis.url.get_secret_value()) as client:
        pattern = f"{bus.redis.prefix}[:.]*"
        held = {key.decode() for key in client.scan_iter(match=pattern) if _in_redis(client, key)}
    return files | held


def _texts(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, and of compressed ones every column decoded, with the statistics of the footer."""
    yield path.name.encode()
    yield path.read_bytes()
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        yield str((file.metadata.to_dict(), file.read().to_pylist())).encode()
    if path.suffix == ".duckdb":
        with duckdb.connect(path, read_only=True) as connection:
            tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            yield from (str(connection.execute(f'FROM "{name}"').fetchall()).encode() for (name,) in tables)


def _in_redis(client: redis.Redis, key: bytes) -> bool:
    return bool(_NAMED.search(key) or _NAMED.search(client.dump(key)))  # type: ignore[arg-type]


def _age(file: Path, hours: float) -> None:
    changed = time.time() - hours * 3600
    os.utime(file, (changed, changed))


def test_every_byte_is_gone_but_what_is_listed(bus: Settings) -> None:
    """After erasure and vacuum, no file and no key holds the id, but for other users' rows that name the user."""
    listed = {"lake/events", "lake/conflicts", "lake/dead_letters", "warehouse.duckdb"}
    assert _found(bus) > listed
    done = erase(bus, [_JANE])
    assert (done.rows.events, done.rows.conflicts, done.rows.dead_letters) == (3, 2, 4)
    keys = {"metadata rater_id": 3, "metadata comment": 1}
    assert done.mentions == Mentions(events=2, dead_letters=1, conflicts=1, keys=keys)
    vacuum(open_lake(bus.lake_root), 0)
    assert _found(bus) <= listed
    assert query(bus, "SELECT count(*) FROM events WHERE contains(event_id || user_id, 'jane-doe')") == [(1,)]  # -2
    letters = "SELECT count(*) FROM dead_letters WHERE contains(hex(\"value\"), hex('jane-doe'))"
    assert query(bus, letters) == [(1,)]
    with duckdb.connect(bus.warehouse_path, read_only=True) as warehouse:
        assert warehouse.execute("SELECT count(*) FROM reputation WHERE user_id = ?", [_JANE]).fetchall() == [(0,)]
    assert_verified(bus)
    assert (audit(bus).lost, audit(bus).doubled) == (0, 0)


def test_nothing_of_the_user_is_listed_where_no_other_names_her(settings: Settings) -> None:
    """Where no other user's event names her, not one byte is left, in any file or key."""
    bus = with_ingest(settings, max_dead_letter_run=1_000, max_dead_letter_share=1)
    send(bus, valid_records(range(20)))
    _send_of_jane(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)
    assert not erase(bus, [_JANE]).mentions
    vacuum(open_lake(bus.lake_root), 0)
    assert _found(bus) == set()
    assert_verified(bus)
    assert audit(bus).passed


def test_verify_counts_what_others_say(bus: Settings) -> None:
    """Verification never says that all is gone while others' events name an erased user: it counts them."""
    erase(bus, [_JANE])
    check = verify_erased(bus)
    assert check.passed
    assert check.name == "rows of erased users are gone"
    assert "2 events, 1 conflicts and 1 dead letters of other users (metadata rater_id 3" in check.evidence
    erase(bus, ["driver-1", "driver-2"])
    assert verify_erased(bus).evidence == ""


def test_what_arrives_again_stays_out(bus: Settings) -> None:
    """The same records once more, and a replay of the topic, bring no row of hers back, and everything adds up."""
    erase(bus, [_JANE])
    send(bus, _of_jane())
    record = drain_all(bus)[-1]
    assert (record.total("erased"), record.total("accepted"), record.total("dead_letters")) == (8, 1, 0)
    assert query(bus, "SELECT user_id FROM events WHERE event_id = 'jane-doe/1'") == [("driver-1",)]  # its first now
    with open_replay(bus, None, None) as replayed:
        replay(replayed, bus, lambda _: None)
    left = verify_erased(bus)
    assert left.passed, left.evidence
    assert_verified(bus)
    assert audit(bus).passed


def test_a_letter_is_hers_only_by_a_whole_word(bus: Settings) -> None:
    """Who is called `driver` takes no dead letter of `driver-1` along, nor `7` one with a 17."""
    send(bus, [Record(b"driver-1", b"\xff driver-1 17 x7"), Record(b"17", b"\xff 17")])
    drain_all(bus)
    before = query(bus, "SELECT count(*) FROM dead_letters")
    assert erase(bus, ["driver", "7", "doe"]).rows.dead_letters == 0
    assert query(bus, "SELECT count(*) FROM dead_letters") == before


@pytest.mark.parametrize(
    "data",
    [
        b"\xff jane-doe broken",
        b'{"user_id": "jane-doe", "x',
        b'{"name": "jane-doe, then',
        b"\x0a\x03r-1\x12\x08jane-doe\x1a\x01A",
        b"\x06r-1\x10jane-doe0DriverRated",
        b"to: jane-doe.",
        b"jane-doe",
    ],
)
def test_where_an_id_is_found(data: bytes) -> None:
    """In text, in broken JSON, behind the length of a Protobuf or an Avro string."""
    assert b"jane-doe" in words_of_bytes(data)


@pytest.mark.parametrize("name", ["n" * 40, "n" * 20, "n" * 48])
@pytest.mark.parametrize("times", [1, 2])
def test_a_length_that_is_a_letter(name: str, times: int) -> None:
    """A length byte that is itself a character of text does not hide the string behind it."""
    data = b"\xff" + bytes([len(name) * times]) + name.encode() + b"0more"
    assert name.encode() in words_of_bytes(data)


def test_refused_without_the_store_of_documents(bus: Settings) -> None:
    """Without its address nothing is changed; said explicitly, what was published last goes, and the document stays."""
    bare = bus.model_copy(update={"redis": bus.redis.model_copy(update={"url": None})})
    before = query(bus, "SELECT count(*) FROM events")
    with pytest.raises(UsageError, match=r"redis\.url.*--without-documents"):
        erase(bare, [_JANE])
    assert query(bus, "SELECT count(*) FROM events") == before
    assert not read_kept(bus.tombstones_file)
    done = erase_without_documents(bare, [_JANE])
    assert (done.rows.events, done.published) == (3, None)
    assert list(bus.published_dir.glob("*")) == []
    assert read_reputation(_JANE, bus)
    publish_warehouse(bus)
    assert read_reputation(_JANE, bus) is None


def test_refused_where_the_store_does_not_answer(bus: Settings) -> None:
    """A store of documents that is down refuses the erasure before anything is changed."""
    down = bus.redis.model_copy(update={"url": type(bus.redis.url)("redis://127.0.0.1:1")})  # type: ignore[call-arg]
    before = query(bus, "SELECT count(*) FROM events")
    with pytest.raises(TransientError):
        erase(bus.model_copy(update={"redis": down}), [_JANE])
    assert query(bus, "SELECT count(*) FROM events") == before
    assert not read_kept(bus.tombstones_file)


def test_a_document_without_a_warehouse_goes(bus: Settings) -> None:
    """Her document is deleted also where the warehouse is missing, and where the publication's bookkeeping is."""
    bus.warehouse_path.unlink()
    assert bus.redis.url is not None
    with redis.Redis.from_url(bus.redis.url.get_secret_value()) as client:
        client.delete(f"{bus.redis.prefix}.publication")
    done = erase(bus, [_JANE])
    assert done.published
    assert read_reputation(_JANE, bus) is None
    assert read_reputation("driver-1", bus)


def test_caches_are_forgotten(bus: Settings) -> None:
    """Index and cache by user are gone, a draft that a kill left too, also where no warehouse is derived after."""
    bus.warehouse_path.unlink()
    draft = bus.warehouse_path.with_name(f"{bus.warehouse_path.name}.draft")
    draft.write_bytes(_JANE.encode())
    assert [file.name for file in bus.index_dir.rglob("*") if file.is_file() and file.name != "lock"]
    erase_without_documents(bus, [_JANE])
    assert [file.name for file in bus.index_dir.rglob("*") if file.is_file() and file.name != "lock"] == []
    assert not by_user_path(bus.warehouse_path).exists()
    assert not draft.exists()


def test_a_rebuild_forgets_the_cache_of_before(bus: Settings) -> None:
    """Beside a process that keeps the warehouse, by a policy that decays by now: its next refresh removes the cache."""
    by_user = by_user_path(bus.warehouse_path)
    with open_draft(bus.warehouse_path) as draft:
        assert erase(bus, [_JANE]).kept
        assert by_user.exists()
        decaying = bus.reputation.model_copy(update={"policy": "decayed-karma"})
        refresh_draft(draft, open_lake(bus.lake_root), bus.model_copy(update={"reputation": decaying}))
        assert not by_user.exists()


def test_a_fresh_lake_of_a_replay_knows_who_was_erased(bus: Settings, tmp_path: Path) -> None:
    """`replay --into` writes nothing of hers, finds the lake right, and does so from a lake elsewhere too."""
    erase(bus, [_JANE])
    beside = fresh(bus, tmp_path / "beside")
    with open_replay(bus, None, None) as replayed:
        replay(replayed, beside, lambda _: None)
        found = compare(bus, beside, replayed.stretch)
    assert (found.different, found.made_up) == (0, 0)
    assert query(beside, "SELECT count(*) FROM events WHERE user_id = 'jane-doe'") == [(0,)]
    elsewhere = bus.model_copy(update={"lake": bus.lake.model_copy(update={"uri": "s3://a/b"})})
    assert fresh(elsewhere.model_copy(update={"lake": bus.lake}), tmp_path / "other").lake.uri is None


def test_a_recreated_lake_keeps_her_out(bus: Settings) -> None:
    """The lake is deleted and drained again under a new id: she stays out, and another lake can take that over."""
    erase(bus, [_JANE])
    shutil.rmtree(bus.lake_root)
    shutil.rmtree(bus.index_dir)
    drain_all(bus)
    lake = open_lake(bus.lake_root)
    assert query(bus, "SELECT count(*) FROM events WHERE user_id = 'jane-doe'") == [(0,)]
    assert open_tombstones(lake, bus).names(_JANE.encode())
    bus.tombstones_file.unlink()  # the recreated lake has them itself
    send(bus, _of_jane())
    assert drain_all(bus)[-1].total("erased") >= 7
    assert read_kept(bus.tombstones_file)
    assert verify_erased(bus).passed
    assert audit(bus).passed


def test_a_restored_copy_is_told_and_erased_again(bus: Settings, tmp_path: Path) -> None:
    """A copy from before the erasure, put back: verification names her rows, the next erasure removes them."""
    shutil.copytree(bus.lake_root, tmp_path / "copy")
    erase(bus, [_JANE])
    shutil.rmtree(bus.lake_root)
    shutil.copytree(tmp_path / "copy", bus.lake_root)
    check = verify_erased(bus)
    assert (check.passed, "'events': 3" in check.evidence) == (False, True)
    assert erase(bus, [_JANE]).rows.events == 3
    assert verify_erased(bus).passed
    assert_verified(bus)


def test_tombstones_are_taken_over(bus: Settings, tmp_path: Path) -> None:
    """From a file, a data_dir or a lake; a place without any is refused with what to name."""
    erase(bus, [_JANE])
    places = [str(bus.tombstones_file), str(bus.data_dir), bus.lake_root]
    assert {tombstones_at(place) for place in places} == {read_kept(bus.tombstones_file)}
    with pytest.raises(UsageError, match=r"holds no tombstones: name a tombstones\.txt"):
        tombstones_at(str(tmp_path))
    other = bus.model_copy(update={"data_dir": tmp_path / "other"})
    drain_all(other)
    ((events,),) = query(other, "SELECT count(*) FROM events WHERE user_id = 'jane-doe'")
    assert events >= 2
    assert erase_without_documents(other, [], tombstones_at(bus.lake_root)).rows.events == events
    assert verify_erased(other).passed


def test_a_torn_line_is_no_tombstone(tmp_path: Path) -> None:
    """A line that a power cut tore is passed over, and what is appended behind it is whole."""
    file, whole = tmp_path / FILE_NAME, tombstone(b"a", "k")
    keep(file, [whole])
    file.write_text(file.read_text() + "k:12ab")
    keep(file, [other := tombstone(b"b", "k")])
    assert read_kept(file) == {whole, other}


def test_the_list_names_the_places(settings: Settings, tmp_path: Path) -> None:
    """Topic, its copies, notification streams and webhooks, history, backups and Dagster: each by its own name."""
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[destinations.app]\nkind = "redis_stream"\nkey = "told"\n'
        '[destinations.crm]\nkind = "webhook"\nurl = "https://crm.example/hook"\nsecret_env = "S"\n'
        '[[rules]]\nname = "all"\nactions = ["A"]\nto = ["app", "crm"]\ntext = "x"\n'
    )
    changes = {"notify": settings.notify.model_copy(update={"rules": rules})}
    listed = "\n".join(beyond_reach(settings.model_copy(update=changes), Mentions()))
    topic = settings.kafka.topic
    topics = (topic, f"{topic}.dlq", f"{topic}.notify.dlq")
    for name in (*topics, "stream told", "crm.example", "tombstones.txt", "Dagster"):
        assert name in listed


def test_the_command_ends_with_what_it_left(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses with exit 2 without the store's address; done, it says when bytes go and lists what is not reached."""
    assert bus.kafka.bootstrap_servers
    for name, value in {
        "DATA_DIR": str(bus.data_dir),
        "KAFKA_TOPIC": bus.kafka.topic,
        "KAFKA_BOOTSTRAP_SERVERS": bus.kafka.bootstrap_servers,
        "REDIS_PREFIX": bus.redis.prefix,
    }.items():
        monkeypatch.setenv(f"KARMALAKE_{name}", value)
    refused = CliRunner().invoke(app, ["erase", "--yes", _JANE])
    assert isinstance(refused.exception, UsageError) or refused.exit_code == 2
    assert query(bus, "SELECT count(*) FROM events WHERE user_id = 'jane-doe'") == [(3,)]
    assert bus.redis.url is not None
    monkeypatch.setenv("KARMALAKE_REDIS_URL", bus.redis.url.get_secret_value())
    done = CliRunner().invoke(app, ["erase", "--yes", _JANE])
    assert done.exit_code == 0, done.output
    for said in ("24 h", "karmalake stream", "not reached", f"the topic {bus.kafka.topic}", "2 events, 1 conflicts"):
        assert said in " ".join(done.output.split())


def test_vacuum_when_due(bus: Settings) -> None:
    """It runs when no mark says that it has, then after its interval, and after a clock was set back."""
    lake, mark = open_lake(bus.lake_root), bus.data_dir / "vacuumed"
    orphan = Path(bus.lake_root) / "events" / "orphan.parquet"

    def removed() -> bool:
        orphan.write_bytes(b"x")
        _age(orphan, hours=30)
        return "events/orphan.parquet" in vacuum_when_due(lake, bus.lake, mark)

    assert removed()
    assert not removed()
    _age(mark, hours=6.1)
    assert removed()
    _age(mark, hours=-1)
    assert removed()


@pytest.mark.slow
def test_beside_a_stream(settings: Settings) -> None:
    """It derives and publishes without the user by itself, vacuums when that is due, and leaves no byte behind."""
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 0.2})
    bus = with_ingest(settings.model_copy(update={"reputation": reputation}))
    orphan = Path(create_lake(bus.lake_root).root) / "events" / "orphan.parquet"
    orphan.write_bytes(b"x")
    _age(orphan, hours=30)
    send(bus, [*valid_records(range(20)), Record(b"jane-doe", _value("r-2", _JANE))])
    with streaming(bus):
        wait_for("the document", lambda: read_reputation(_JANE, bus))
        wait_for("the vacuum of an old orphan", lambda: not orphan.exists())
        assert erase(bus, [_JANE]).kept
        wait_for("the document to go", lambda: read_reputation(_JANE, bus) is None)
    vacuum(open_lake(bus.lake_root), 0)
    assert _found(bus) == set()
    assert [check for check in verify(bus) if check.passed is False] == []
