"""An erasure removes every byte that it reaches, and refuses or lists what it does not reach (`erasable`)."""

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
from pipelines.lake.mentions import Mentions
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.tokens import tokenize_bytes
from pipelines.lake.tombstone_file import FILE_NAME, append_tombstones, find_tombstones, read_tombstones
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.lake.upkeep import vacuum, vacuum_when_due
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase, erase_without_documents, mentions_of_erased
from pipelines.operate.erase_limits import list_unreached
from pipelines.operate.replay import compare, fresh, open_replay, replay
from pipelines.operate.verify import verify, verify_erased
from pipelines.refresh import publish_warehouse, refresh_draft, refresh_warehouse
from pipelines.reputation.derive import open_draft
from pipelines.reputation.histories import histories_folder
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.read import read_reputation
from pipelines.settings import CassandraSettings, FeedSettings, Settings
from tests.draining import NOON, assert_verified, drain_all, query, send, valid_records, with_ingest
from tests.services.waiting import wait_for
from tests.test_stream import streaming

_JANE = "jane-doe"
_NAMED = re.compile(rb"jane-doe(?!-2)")
"""jane-doe-2 is another user."""


def value(event_id: str, user: str, **fields: Any) -> bytes:
    row = {"event_id": event_id, "user_id": user, "action_type": "DriverRated", "event_time": NOON, "metadata": []}
    return encode(pa.Table.from_pylist([row | fields], EVENT))[0].as_py()


def _of_jane() -> list[Record]:
    """Return all kinds of records of the user: 3 events, 2 conflicts, 4 dead letters."""
    late = NOON.replace(year=1999)
    return [
        Record(b"jane-doe", value("r-2", _JANE, metadata=[("rating", "5")])),
        Record(b"jane-doe", value("jane-doe/1", _JANE)),
        Record(b"jane-doe", value("jane-doe/2", _JANE)),
        Record(b"jane-doe", value("r-2", _JANE, metadata=[("rating", "1")])),  # a conflict of hers
        Record(b"driver-1", value("jane-doe/1", "driver-1")),  # another user's conflict under her event_id
        Record(b"jane-doe", b"\xff broken"),
        Record(b"driver-1", b"\xff jane-doe broken"),  # undecodable, under another key
        Record(b"driver-1", b"\xff{", [("user", b"jane-doe")]),
        Record(None, value("r-4", _JANE, event_time=late)),
    ]


def _send_of_jane(bus: Settings) -> None:
    """Send and drain the user's records, events before the conflicts with them."""
    for records in (_of_jane()[:3], _of_jane()[3:]):
        send(bus, records)
        drain_all(bus)


def _of_others() -> list[Record]:
    """Return records of other users that mention the user (2 events, 1 conflict, 1 dead letter), and that do not."""
    by_her = [("rating", "1"), ("rater_id", _JANE), ("comment", "jane-doe was cold")]
    return [
        Record(b"driver-1", value("r-1", "driver-1", metadata=by_her)),
        Record(b"driver-2", value("r-5", "driver-2", metadata=[("rater_id", _JANE)])),
        Record(b"driver-1", value("r-1", "driver-1", metadata=[("rater_id", _JANE)])),
        Record(b"driver-1", value("r-3", "driver-1", metadata=by_her, event_time=NOON.replace(year=1999))),
        Record(b"driver-1", b"\xff nobody-else broken"),
        Record(b"jane-doe-2", value("r-6", "jane-doe-2")),
    ]


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a lake, a warehouse, histories and documents that all contain the user."""
    bus = with_ingest(settings, max_batch_records=60, max_dead_letter_run=1_000, max_dead_letter_share=1)
    send(bus, [*valid_records(range(20)), *_of_others(), *_of_jane()[:1]])
    drain_all(bus)
    refresh_warehouse(bus)  # a rebuild writes the base
    _send_of_jane(bus)
    refresh_warehouse(bus)  # a refresh of affected users writes changes, and creates the histories
    publish_warehouse(bus)
    assert read_reputation(_JANE, bus)
    assert histories_folder(bus.warehouse_path).exists()
    return bus


def _found(bus: Settings) -> set[str]:
    """Return the folders of files in data_dir, and the Redis keys, whose decoded content has the user_id as a word."""
    files = {
        _place(path.relative_to(bus.data_dir))
        for path in bus.data_dir.rglob("*")
        if path.is_file() and any(map(_NAMED.search, _texts(path)))
    }
    assert bus.redis.url is not None
    with redis.Redis.from_url(bus.redis.url.get_secret_value()) as client:
        pattern = f"{bus.redis.prefix}[:.]*"
        found = {key.decode() for key in client.scan_iter(match=pattern) if _in_redis(client, key)}
    return files | found


def _place(path: Path) -> str:
    """Return the table of a file of the lake, and the file or folder in data_dir of any other."""
    return "/".join(path.parts[:2]) if path.parts[0] == "lake" else path.parts[0]


def _texts(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file; for a Parquet file also every decoded column, and the statistics of the footer."""
    yield path.name.encode()
    yield path.read_bytes()
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        yield str((file.metadata.to_dict(), file.read().to_pylist())).encode()
    if path.suffix == ".duckdb":
        with duckdb.connect(path, read_only=True) as connection:
            tables = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
            for schema, name in tables:
                yield str(connection.execute(f'FROM "{schema}"."{name}"').fetchall()).encode()


def _in_redis(client: redis.Redis, key: bytes) -> bool:
    return bool(_NAMED.search(key) or _NAMED.search(client.dump(key)))  # type: ignore[arg-type]


def _age(file: Path, hours: float) -> None:
    changed = time.time() - hours * 3600
    os.utime(file, (changed, changed))


def test_no_byte_remains_except_listed_mentions(bus: Settings) -> None:
    """After erasure and vacuum, only other users' rows that mention the user contain the id."""
    listed = {"lake/events", "lake/conflicts", "lake/dead_letters", "warehouse.duckdb", "base", "histories"}
    assert _found(bus) > listed
    done = erase(bus, [_JANE])
    assert (done.rows.events, done.rows.conflicts, done.rows.dead_letters) == (3, 2, 4)
    keys = {"metadata rater_id": 3, "metadata comment": 1}
    assert mentions_of_erased(bus) == Mentions(events=2, dead_letters=1, conflicts=1, keys=keys)
    vacuum(open_lake(bus.lake_root), 0)
    assert _found(bus) <= listed
    assert query(bus, "SELECT count(*) FROM events WHERE contains(event_id || user_id, 'jane-doe')") == [(1,)]  # -2
    letters = "SELECT count(*) FROM dead_letters WHERE contains(hex(\"value\"), hex('jane-doe'))"
    assert query(bus, letters) == [(1,)]
    with Warehouse(bus.warehouse_path) as warehouse:
        assert warehouse.sql("FROM reputation WHERE user_id = ?", [_JANE]).height == 0
    assert_verified(bus)
    assert (audit(bus).lost, audit(bus).duplicated) == (0, 0)


def test_no_byte_remains_without_mentions(settings: Settings) -> None:
    """If no other user's event mentions the user, no file and no key contains the id."""
    bus = with_ingest(settings, max_dead_letter_run=1_000, max_dead_letter_share=1)
    send(bus, valid_records(range(20)))
    _send_of_jane(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)
    erase(bus, [_JANE])
    assert not mentions_of_erased(bus)
    vacuum(open_lake(bus.lake_root), 0)
    assert _found(bus) == set()
    assert_verified(bus)
    assert audit(bus).passed


def test_verify_counts_mentions(bus: Settings) -> None:
    """Verification counts other users' events that mention an erased user."""
    erase(bus, [_JANE])
    check = verify_erased(bus)
    assert check.passed
    assert check.name == "no rows of erased users remain"
    assert "2 events, 1 conflict and 1 dead letter of other users (metadata rater_id 3" in check.evidence
    erase(bus, ["driver-1", "driver-2"])
    assert verify_erased(bus).evidence.startswith(f"not looked at: {bus.kafka.topic} and what was copied")


def test_resent_records_of_an_erased_user_are_dropped(bus: Settings) -> None:
    """Resending the records and replaying the topic restore no row of the user, and the counts add up."""
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


def test_a_dead_letter_is_matched_by_whole_words(bus: Settings) -> None:
    """Erasing `driver` erases no dead letter of `driver-1`, nor does `7` erase one with a 17."""
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
def test_an_id_is_found_in_any_encoding(data: bytes) -> None:
    """In text, in malformed JSON, after the length of a Protobuf or Avro string."""
    assert b"jane-doe" in tokenize_bytes(data)


@pytest.mark.parametrize("name", ["n" * 40, "n" * 20, "n" * 48])
@pytest.mark.parametrize("times", [1, 2])
def test_an_id_after_a_length_byte_that_is_a_letter(name: str, times: int) -> None:
    """A length byte that is a letter does not hide the string after it."""
    data = b"\xff" + bytes([len(name) * times]) + name.encode() + b"0more"
    assert name.encode() in tokenize_bytes(data)


def test_refused_without_a_document_store(bus: Settings) -> None:
    """Without its address nothing is changed; with --without-documents only the document remains."""
    bare = bus.model_copy(update={"redis": bus.redis.model_copy(update={"url": None})})
    before = query(bus, "SELECT count(*) FROM events")
    with pytest.raises(UsageError, match=r"redis\.url.*--without-documents"):
        erase(bare, [_JANE])
    assert query(bus, "SELECT count(*) FROM events") == before
    assert not read_tombstones(bus.tombstones_file)
    done = erase_without_documents(bare, [_JANE])
    assert (done.rows.events, done.published) == (3, None)
    assert list(bus.published_dir.glob("*")) == []
    assert read_reputation(_JANE, bus)
    publish_warehouse(bus)
    assert read_reputation(_JANE, bus) is None


def test_refused_if_the_document_store_is_down(bus: Settings) -> None:
    """The erasure is refused before anything is changed."""
    down = bus.redis.model_copy(update={"url": type(bus.redis.url)("redis://127.0.0.1:1")})  # type: ignore[call-arg]
    before = query(bus, "SELECT count(*) FROM events")
    with pytest.raises(TransientError):
        erase(bus.model_copy(update={"redis": down}), [_JANE])
    assert query(bus, "SELECT count(*) FROM events") == before
    assert not read_tombstones(bus.tombstones_file)


def test_a_document_is_deleted_without_a_warehouse(bus: Settings) -> None:
    """The document is deleted even if the warehouse or the publication state is missing."""
    bus.warehouse_path.unlink()
    assert bus.redis.url is not None
    with redis.Redis.from_url(bus.redis.url.get_secret_value()) as client:
        client.delete(f"{bus.redis.prefix}.publication")
    done = erase(bus, [_JANE])
    assert done.published
    assert read_reputation(_JANE, bus) is None
    assert read_reputation("driver-1", bus)


def test_caches_are_deleted(bus: Settings) -> None:
    """Histories and abandoned drafts are deleted, even if no warehouse is derived afterwards."""
    bus.warehouse_path.unlink()
    draft = bus.warehouse_path.with_name(f"{bus.warehouse_path.name}.draft")
    draft.write_bytes(_JANE.encode())
    erase_without_documents(bus, [_JANE])
    assert not histories_folder(bus.warehouse_path).exists()
    assert not draft.exists()


def test_a_rebuild_deletes_the_old_cache(bus: Settings) -> None:
    """While another process holds the warehouse, under a policy that now decays, its next refresh deletes the cache."""
    histories = histories_folder(bus.warehouse_path)
    with open_draft(bus.warehouse_path) as draft:
        assert erase(bus, [_JANE]).refreshed_elsewhere
        assert histories.exists()
        decaying = bus.reputation.model_copy(update={"policy": "decayed-karma"})
        refresh_draft(draft, open_lake(bus.lake_root), bus.model_copy(update={"reputation": decaying}))
        assert not histories.exists()


def test_a_replay_into_a_fresh_lake_excludes_erased_users(bus: Settings, tmp_path: Path) -> None:
    """`replay --into` writes no row of the user and finds no difference, also for a lake in another location."""
    erase(bus, [_JANE])
    beside = fresh(bus, tmp_path / "beside")
    with open_replay(bus, None, None) as replayed:
        replay(replayed, beside, lambda _: None)
        found = compare(bus, beside, replayed)
    assert (found.different, found.extra) == (0, 0)
    assert query(beside, "SELECT count(*) FROM events WHERE user_id = 'jane-doe'") == [(0,)]
    elsewhere = bus.model_copy(update={"lake": bus.lake.model_copy(update={"uri": "s3://a/b"})})
    assert fresh(elsewhere.model_copy(update={"lake": bus.lake}), tmp_path / "other").lake.uri is None


def test_a_recreated_lake_excludes_erased_users(bus: Settings) -> None:
    """After the lake is deleted and drained again, the user stays erased, and another lake can import that."""
    erase(bus, [_JANE])
    shutil.rmtree(bus.lake_root)
    shutil.rmtree(bus.index_dir)
    drain_all(bus)
    lake = open_lake(bus.lake_root)
    assert query(bus, "SELECT count(*) FROM events WHERE user_id = 'jane-doe'") == [(0,)]
    assert open_tombstones(lake, bus).contains(_JANE.encode())
    bus.tombstones_file.unlink()  # the recreated lake has them itself
    send(bus, _of_jane())
    assert drain_all(bus)[-1].total("erased") >= 7
    assert read_tombstones(bus.tombstones_file)
    assert verify_erased(bus).passed
    assert audit(bus).passed


def test_a_restored_copy_is_detected_and_erased_again(bus: Settings, tmp_path: Path) -> None:
    """After a restore from before the erasure, verification reports the rows, and the next erasure removes them."""
    shutil.copytree(bus.lake_root, tmp_path / "copy")
    erase(bus, [_JANE])
    shutil.rmtree(bus.lake_root)
    shutil.copytree(tmp_path / "copy", bus.lake_root)
    check = verify_erased(bus)
    assert (check.passed, "'events': 3" in check.evidence) == (False, True)
    assert erase(bus, [_JANE]).rows.events == 3
    assert verify_erased(bus).passed
    assert_verified(bus)


def test_tombstones_are_imported(bus: Settings, tmp_path: Path) -> None:
    """From a file, a data_dir or a lake; a path without tombstones is refused with advice."""
    erase(bus, [_JANE])
    places = [str(bus.tombstones_file), str(bus.data_dir), bus.lake_root]
    assert {find_tombstones(place) for place in places} == {read_tombstones(bus.tombstones_file)}
    with pytest.raises(UsageError, match=r"holds no tombstones: name a tombstones\.txt"):
        find_tombstones(str(tmp_path))
    other = bus.model_copy(update={"data_dir": tmp_path / "other"})
    drain_all(other)
    ((events,),) = query(other, "SELECT count(*) FROM events WHERE user_id = 'jane-doe'")
    assert events >= 2
    assert erase_without_documents(other, [], find_tombstones(bus.lake_root)).rows.events == events
    assert verify_erased(other).passed


def test_a_torn_line_is_not_a_tombstone(tmp_path: Path) -> None:
    """A line torn by a power cut is skipped, and lines appended after it are intact."""
    file, whole = tmp_path / FILE_NAME, tombstone(b"a", "k")
    append_tombstones(file, [whole])
    file.write_text(file.read_text() + "k:12ab")
    append_tombstones(file, [other := tombstone(b"b", "k")])
    assert read_tombstones(file) == {whole, other}


def test_the_unreached_locations_are_named(settings: Settings, tmp_path: Path) -> None:
    """Topics, notification streams and webhooks, history, backups and Dagster are listed by name."""
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[destinations.app]\nkind = "redis_stream"\nkey = "told"\n'
        '[destinations.crm]\nkind = "webhook"\nurl = "https://crm.example/hook"\nsecret_env = "S"\n'
        '[[rules]]\nname = "all"\nactions = ["A"]\nto = ["app", "crm"]\ntext = "x"\n'
    )
    changes = {"notify": settings.notify.model_copy(update={"rules": rules}), "feed": FeedSettings(enabled=True)}
    changes["cassandra"] = CassandraSettings(hosts=("node",))
    listed = "\n".join(list_unreached(settings.model_copy(update=changes), Mentions()))
    topic = settings.kafka.topic
    topics = (topic, f"{topic}.dlq", f"{topic}.notify.dlq", "karmalake.scores.notify.dlq")
    for name in (*topics, "stream told", "crm.example", "tombstones.txt", "Dagster", "files of Cassandra"):
        assert name in listed


def test_the_command_lists_what_it_did_not_reach(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a document store it exits 2; else it says when bytes are deleted, what remains, or that no row was."""
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
    for phrase in ("24 h", "karmalake stream", "not reached", f"the topic {bus.kafka.topic}", "not counted here"):
        assert phrase in " ".join(done.output.split())
    assert "check the spelling" not in done.output
    counted = CliRunner().invoke(app, ["erase", "--yes", "--count-mentions", _JANE])
    assert counted.exit_code == 0, counted.output
    assert "2 events, 1 conflict and" in " ".join(counted.output.split())
    assert "no row of these users: check the spelling, unless they were erased before" in counted.output


def test_vacuum_when_due(bus: Settings) -> None:
    """It runs the first time, after each interval, and after the clock was set back."""
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
    """The stream derives and publishes without the user, vacuums when due, and leaves no byte of the user."""
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 0.2})
    bus = with_ingest(settings.model_copy(update={"reputation": reputation}))
    orphan = Path(create_lake(bus.lake_root).root) / "events" / "orphan.parquet"
    orphan.write_bytes(b"x")
    _age(orphan, hours=30)
    send(bus, [*valid_records(range(20)), Record(b"jane-doe", value("r-2", _JANE))])
    with streaming(bus):
        wait_for("the document", lambda: read_reputation(_JANE, bus))
        wait_for("the vacuum of an old orphan", lambda: not orphan.exists())
        assert erase(bus, [_JANE]).refreshed_elsewhere
        wait_for("the document to go", lambda: read_reputation(_JANE, bus) is None)
    vacuum(open_lake(bus.lake_root), 0)
    assert _found(bus) == set()
    assert [check for check in verify(bus) if check.passed is False] == []
