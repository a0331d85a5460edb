"""Cassandra holds exactly the documents last published, behind the same fence as Redis, on a real server (`fenced`)."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from cassandra import cluster as cassandra_driver

from pipelines.errors import ConfigurationError, FencedError, TransientError, UsageError
from pipelines.operate.verify import verify
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.serving import cassandra_store
from pipelines.serving.cassandra_store import open_cassandra
from pipelines.serving.read import published, read_leaderboard, read_reputation
from pipelines.settings import CassandraSettings, Settings, load_settings
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.services.cassandra_server import KEYSPACE, CassandraServer
from tests.services.ports import HOST, free_port
from tests.services.requirements import require
from tests.serving.conftest import always, documents, documents_of, names, publish, stamp

pytestmark = pytest.mark.jvm
HOSTILE = [
    "",
    "'; DROP TABLE documents; --",
    "\0nul\0",
    "new\nline",
    "../..",
    "\U0001f600",
    "\u202eright to left",
    "x" * 60_000,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraServer]:
    """Return a node with an empty keyspace."""
    require("cassandra")
    with CassandraServer(tmp_path_factory.mktemp("cassandra")) as server:
        cluster = cassandra_store.Cluster([HOST], port=server.port, protocol_version=5)
        cluster.connect().execute(
            f"CREATE KEYSPACE {KEYSPACE} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
        )
        cluster.shutdown()
        yield server


@pytest.fixture
def store(server: CassandraServer) -> Iterator[CassandraSettings]:
    """Return settings with a separate prefix; every connection of the test is closed after it.

    A connection that is left open reconnects in the background for as long as the process runs.
    """
    prefix = f"p{uuid.uuid4().hex[:8]}"
    settings = CassandraSettings(hosts=(HOST,), port=server.port, keyspace=KEYSPACE, prefix=prefix)
    yield settings
    cassandra_driver._shutdown_clusters()
    cassandra_store._connect.cache_clear()


def served(store: CassandraSettings) -> dict[str, str]:
    """Return every document under the prefix, by user_id."""
    with open_cassandra(store) as opened:
        rows = opened.session.execute(
            "SELECT user_id, document FROM tests.documents WHERE prefix = %s ALLOW FILTERING", [store.prefix]
        )
        return {row["user_id"].decode(): row["document"] for row in rows if row["user_id"] is not None}


def of(frame: pl.DataFrame) -> dict[str, str]:
    return dict(frame.select("user_id", "document").iter_rows())


def test_only_what_changed_is_written(store: CassandraSettings, tmp_path: Path) -> None:
    """The first publication is full, the second writes changed documents and deletes those of missing users."""
    first = documents(**{f"u{n}": n for n in range(500)})
    assert publish(always(first), stamp(1), store, tmp_path).full
    assert served(store) == of(first)
    second = documents(**{f"u{n}": n + (n < 3) for n in range(1, 501)})
    done = publish(always(second), stamp(2), store, tmp_path)
    assert (done.written, done.deleted, done.unchanged, done.full) == (3, 1, 497, False)
    assert served(store) == of(second)
    some = documents(u1=9, u600=1)
    done = publish(always(some), stamp(3), store, tmp_path, names("u1", "u2", "u600"))
    assert (done.written, done.deleted) == (2, 1)
    assert served(store) == {user: text for user, text in (of(second) | of(some)).items() if user != "u2"}


def test_user_ids_and_documents_are_plain_values(store: CassandraSettings, tmp_path: Path) -> None:
    """Any user_id and any size of document is read as written."""
    frame = documents_of({user: json.dumps({"of": user, "more": "x" * 300_000 * (not user)}) for user in HOSTILE})
    publish(always(frame), stamp(1), store, tmp_path)
    settings = Settings(cassandra=store)
    assert [read_reputation(user, settings) for user in HOSTILE] == [json.loads(text) for text in frame["document"]]
    assert read_reputation("nobody", settings) is None
    assert read_reputation("\ud800", settings) is None


def test_tables_that_exist(store: CassandraSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may create nothing can publish; one whose rows expire is refused, since only changes are written."""
    with open_cassandra(store) as opened:
        executed, execute = list[str](), opened.session.execute
        monkeypatch.setattr(opened.session, "execute", lambda *args: executed.append(str(args[0])) or execute(*args))
        with open_cassandra(store):
            assert executed
            assert not [each for each in executed if each.startswith(("CREATE", "ALTER"))]
        execute(f"ALTER TABLE {KEYSPACE}.documents WITH default_time_to_live = 600")
        try:
            with (
                pytest.raises(ConfigurationError, match=rf"run ALTER TABLE {KEYSPACE}\.documents WITH"),
                open_cassandra(store),
            ):
                pass
        finally:
            execute(f"ALTER TABLE {KEYSPACE}.documents WITH default_time_to_live = 0")


def test_an_older_publication_is_refused(store: CassandraSettings, tmp_path: Path) -> None:
    """It changes nothing; an equal stamp may publish again (`fenced`)."""
    publish(always(documents(ann=2)), stamp(2), store, tmp_path / "one")
    with pytest.raises(FencedError, match="newer"):
        publish(always(documents(ann=1)), stamp(1), store, tmp_path / "two")
    assert served(store) == {"ann": '{"score":2}'}
    assert publish(always(documents(ann=3)), stamp(2), store, tmp_path / "two").full


def test_a_paused_publisher_changes_nothing_after_another_has_published(
    store: CassandraSettings, tmp_path: Path
) -> None:
    """At any step it resumes, also for users unknown to the other publisher (`fenced`)."""
    users = [f"u{n}" for n in range(300)]
    with open_cassandra(store) as opened:
        sleeper = opened.begin(stamp(1))
        sleeper.stored_users()
        sleeper.write(documents(early=1))
        newer = documents(ann=2)
        assert publish(always(newer), stamp(2), store, tmp_path).full
        for step in (
            lambda: sleeper.write(documents(**dict.fromkeys(users, 1))),
            lambda: sleeper.remove(pl.Series([b"ann"], dtype=pl.Binary)),
            lambda: sleeper.finish(1),
        ):
            with pytest.raises(FencedError, match="another publisher has taken over"):
                step()
    assert served(store) == of(newer)
    info = published(Settings(cassandra=store))
    assert info
    assert (info.stamp, info.documents) == (stamp(2), 1)


def test_an_interrupted_publication_is_followed_by_a_full_one(store: CassandraSettings, tmp_path: Path) -> None:
    """The same holds after the loss of the tables: tickets keep increasing."""
    publish(always(documents(ann=1)), stamp(1), store, tmp_path)
    with open_cassandra(store) as opened:
        opened.begin(stamp(2)).write(documents(bob=1))
        assert opened.complete_id() is None
        assert publish(always(documents(ann=1)), stamp(2), store, tmp_path).full
        assert served(store) == {"ann": '{"score":1}'}
        opened.session.execute("DELETE FROM tests.publications WHERE prefix = %s", [store.prefix])
        assert publish(always(documents(cem=1)), stamp(1), store, tmp_path).full
    assert served(store) == {"cem": '{"score":1}'}


def test_a_finish_whose_answer_was_lost(store: CassandraSettings) -> None:
    """It is done; repeating it changes nothing."""
    with open_cassandra(store) as opened:
        writing = opened.begin(stamp(1))
        writing.finish(0)
        writing.finish(0)
        assert opened.complete_id() == writing.id


def test_the_whole_pipeline(settings: Settings, store: CassandraSettings) -> None:
    """From the bus to a document, and `verify` compares it with the lake."""
    bus = with_ingest(settings.model_copy(update={"cassandra": store}))
    send(bus, valid_records(range(50)))
    drain_all(bus)
    refresh_warehouse(bus)
    assert publish_warehouse(bus).written == 7
    assert read_reputation("u-3", bus)
    assert [check for check in verify(bus) if check.passed is not True] == []
    with pytest.raises(UsageError, match="leaderboards require Redis"):
        read_leaderboard("all_time", bus)


@pytest.mark.parametrize("document", ["7", "{", "[" * 50_000, ""])
def test_an_invalid_document_is_reported(settings: Settings, store: CassandraSettings, document: str) -> None:
    """Content of another program gives a message, not a traceback."""
    bus = settings.model_copy(update={"cassandra": store})
    with open_cassandra(store) as opened:
        opened.run(cassandra_store._SET, store.prefix, cassandra_store._bucket(b"ann"), b"ann", document)
    with pytest.raises(ConfigurationError, match=rf"a row of prefix {store.prefix} .*publish --full"):
        read_reputation("ann", bus)


@pytest.mark.parametrize("assignments", ["id = 'x'", "id = 'x', lake_version = 1, as_of_us = 9223372036854775807"])
def test_a_foreign_publication_state_is_reported(
    settings: Settings, store: CassandraSettings, tmp_path: Path, assignments: str
) -> None:
    """Reader and publisher report the same error; after deleting the row, the next publication is full."""
    bus = settings.model_copy(update={"cassandra": store})
    where = f"{{keyspace}}.publications SET {assignments} WHERE prefix = ?"
    with open_cassandra(store) as opened:
        opened.run(f"UPDATE {where}", store.prefix)
        for act in (lambda: published(bus), lambda: publish(always(documents(ann=1)), stamp(1), store, tmp_path)):
            with pytest.raises(ConfigurationError, match="has no valid lake_version or as_of_us"):
                act()
        opened.run("DELETE FROM {keyspace}.publications WHERE prefix = ?", store.prefix)
    assert publish(always(documents(ann=1)), stamp(1), store, tmp_path).full


def test_an_unusable_ca_file_is_named(store: CassandraSettings, tmp_path: Path) -> None:
    """A missing file, or one without a certificate."""
    file = tmp_path / "ca.pem"
    secured = store.model_copy(update={"ssl_cafile": file})
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"cassandra.ssl_cafile names .*ca.pem, .*not a usable CA file"):
            publish(always(documents(ann=1)), stamp(1), secured, tmp_path)
        file.write_text("no certificate")


@pytest.mark.parametrize("host", ["127.0.0.1:9042", "no-such-host.invalid"])
def test_an_unresolvable_host_is_named(host: str, tmp_path: Path) -> None:
    """An address that contains a port is no host name either; needs no server."""
    with pytest.raises(TransientError, match=f"Cassandra at {host}:1, .*cannot be resolved: check cassandra.hosts"):
        publish(always(documents(ann=1)), stamp(1), CassandraSettings(hosts=(host,), port=1), tmp_path)


def test_errors_say_what_to_do(store: CassandraSettings, tmp_path: Path) -> None:
    """No node, too few of them, no keyspace, and unsupported leaderboards; no password is shown."""
    absent = CassandraSettings(hosts=(HOST,), port=free_port(), user="u", password="secret", request_timeout_seconds=2)  # type: ignore[arg-type] # noqa: S106
    with pytest.raises(
        TransientError, match=rf"did not answer while publishing \({HOST}:{absent.port}: .*refused"
    ) as caught:
        publish(always(documents(ann=1)), stamp(1), absent, tmp_path)
    assert "secret" not in str(caught.value)
    with open_cassandra(store) as opened:
        replication = "{'class': 'SimpleStrategy', 'replication_factor': 3}"
        opened.session.execute(f"CREATE KEYSPACE replicated WITH replication = {replication}")
    with pytest.raises(TransientError, match="has 1 of the 2 replicas up that publishing needs: start the other"):
        publish(always(documents(ann=1)), stamp(1), store.model_copy(update={"keyspace": "replicated"}), tmp_path)
    with pytest.raises(ConfigurationError, match="refused publishing"):
        publish(always(documents(ann=1)), stamp(1), store.model_copy(update={"keyspace": "nowhere"}), tmp_path)
    environment = {"KARMALAKE_CASSANDRA_HOSTS": "a, b", "KARMALAKE_REDIS_LEADERBOARDS": "all_time"}
    with pytest.raises(ConfigurationError, match="leaderboards"):
        load_settings(environment, tmp_path)
