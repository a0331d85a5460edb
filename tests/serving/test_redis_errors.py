"""Error replies of Redis, and invalid content in place of a document: one message each, with a remedy."""

import re
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from pipelines.errors import ConfigurationError, KarmalakeError, TransientError
from pipelines.serving.client import connect
from pipelines.serving.read import LeaderboardEntry, published, read_leaderboard, read_rank, read_reputation
from pipelines.settings import RedisSettings, Settings
from tests.services.ports import HOST
from tests.services.redis_server import RedisServer
from tests.services.waiting import wait_for
from tests.serving.conftest import PrivateValkey, always, documents, publish, served, stamp

_RANKED = documents(ann=1).with_columns(all_time_score=1.0)


class _Answering(socketserver.BaseRequestHandler):
    """Answers every command with the configured line."""

    def handle(self) -> None:
        server: Any = self.server
        with suppress(ConnectionError):
            while received := self.request.recv(65_536):
                self.request.sendall(server.line * len(re.findall(rb"\*\d+\r\n\$", received)))


@contextmanager
def _answering(line: bytes) -> Iterator[RedisSettings]:
    """Yield the settings of a server that answers every command with this line."""
    server: Any = socketserver.ThreadingTCPServer((HOST, 0), _Answering)
    server.daemon_threads, server.block_on_close, server.line = True, False, line
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    with server:
        thread.start()
        try:
            yield RedisSettings(url=SecretStr(f"redis://{HOST}:{server.server_address[1]}/0"), socket_timeout_seconds=2)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("-LOADING Redis is loading", TransientError, "still loading its data; then try again"),
        ("-BUSY Redis is busy running a script", TransientError, "SCRIPT KILL"),
        (
            "-MASTERDOWN Link with MASTER is down",
            TransientError,
            "lost its primary: name the primary in KARMALAKE_REDIS",
        ),
        ("-READONLY You can't write", TransientError, "a replica: name the primary in KARMALAKE_REDIS_URL"),
        ("-OOM command not allowed", TransientError, "memory is full: raise its maxmemory"),
        ("-MISCONF Redis is configured to save", TransientError, "cannot save to disk: its log says why"),
        ("-NOREPLICAS Not enough good replicas", TransientError, "fewer replicas than its min-replicas-to-write"),
        (
            "-CLUSTERDOWN Hash slot not served",
            ConfigurationError,
            "a node of a cluster: write redis.cluster:// instead",
        ),
        ("-MOVED 3999 127.0.0.1:6381", ConfigurationError, "a node of a cluster: write redis.cluster:// instead"),
        ("-ASK 3999 127.0.0.1:6381", ConfigurationError, "a node of a cluster: write redis.cluster:// instead"),
        (
            "-ERR DB index is out of range",
            ConfigurationError,
            "no database with this number: correct KARMALAKE_REDIS_URL",
        ),
        ("-ERR invalid DB index", ConfigurationError, "no database with this number: correct KARMALAKE_REDIS_URL"),
        ("-NOAUTH Authentication required.", ConfigurationError, "refused access.*Check the user and password"),
        (
            "-WRONGPASS invalid username-password pair",
            ConfigurationError,
            "refused access.*Check the user and password",
        ),
        ("-NOPERM this user has no permissions", ConfigurationError, "refused access.*what this user may do"),
        (
            "-ERR unknown command",
            ConfigurationError,
            "Redis 5 or later, or Valkey, with no command disabled",
        ),
        ("-WRONGTYPE Operation against a key", ConfigurationError, "One of these keys has an unexpected type.*TYPE"),
        ("-ERR max number of clients reached", TransientError, "did not answer while reading: max number of clients"),
        ("HTTP/1.1 400 Bad Request", TransientError, "did not answer while reading"),
        (":7", ConfigurationError, "is not valid JSON"),
        ("+OK", ConfigurationError, "is not valid JSON"),
    ],
)
def test_every_error_reply_has_a_message_and_a_remedy(line: str, kind: type[KarmalakeError], message: str) -> None:
    """For any reply of the server, one message contains the reply and what to do."""
    with _answering(f"{line}\r\n".encode()) as cache:
        settings = Settings(redis=cache)
        with pytest.raises(kind, match=message) as caught:
            read_reputation("ann", settings)
        assert "\n" not in str(caught.value)


def test_a_demoted_primary_is_transient(redis_server: RedisServer, tmp_path: Path) -> None:
    """A publication reports a replica; once that is the primary again, it succeeds."""
    cache = RedisSettings(url=SecretStr(redis_server.url()))
    with closing(redis.Redis.from_url(redis_server.url())) as client:
        client.replicaof(HOST, 1)  # pyright: ignore[reportArgumentType] - the stubs want a text
        with pytest.raises(TransientError, match=r"cannot take commands at present.*a replica: name"):
            publish(always(documents(ann=1)), stamp(1), cache, tmp_path / "state")
        client.replicaof("NO", "ONE")
    assert publish(always(documents(ann=1)), stamp(1), cache, tmp_path / "state").written == 1


@pytest.mark.parametrize(
    ("key", "expected", "act"),
    [
        (":ann", "string", lambda settings: read_reputation("ann", settings)),
        (".publication", "hash", published),
        (".publication", "hash", lambda settings: read_rank("ann", "all_time", settings)),
        (".leaderboard.all_time", "zset", lambda settings: read_leaderboard("all_time", settings)),
        (".leaderboard.all_time", "zset", lambda settings: read_rank("ann", "all_time", settings)),
    ],
)
def test_a_key_of_another_type_is_named(
    settings: Settings, client: redis.Redis, tmp_path: Path, key: str, expected: str, act: Callable[[Settings], Any]
) -> None:
    """The error names key, type and remedy; after it, a publication writes everything again."""
    ranking = settings.model_copy(update={"redis": settings.redis.model_copy(update={"leaderboards": ("all_time",)})})
    publish(always(_RANKED), stamp(1), ranking.redis, tmp_path)
    wrong = settings.redis.prefix + key
    client.delete(wrong)
    client.lpush(wrong, "x")
    message = f"The key {re.escape(wrong)} is a list, but karmalake expects a {expected}.*Delete or rename it"
    with pytest.raises(ConfigurationError, match=message):
        act(ranking)
    client.delete(wrong, f"{settings.redis.prefix}.publication")
    assert publish(always(_RANKED), stamp(1), ranking.redis, tmp_path).full
    assert read_leaderboard("all_time", ranking) == [LeaderboardEntry(1, "ann", 1.0)]
    assert read_reputation("ann", ranking) == {"score": 1}


@pytest.mark.parametrize("key", [".publication", ".leaderboard.all_time"])
def test_a_publication_names_a_key_of_another_type(
    settings: Settings, client: redis.Redis, tmp_path: Path, key: str
) -> None:
    """What it has announced, the next publication repeats."""
    cache = settings.redis.model_copy(update={"leaderboards": ("all_time",)})
    client.set(cache.prefix + key, "x")
    with pytest.raises(ConfigurationError, match=rf"The key {re.escape(cache.prefix + key)} is a string"):
        publish(always(_RANKED), stamp(1), cache, tmp_path)
    client.delete(cache.prefix + key)
    assert publish(always(_RANKED), stamp(1), cache, tmp_path).full
    assert served(client, cache.prefix) == {"ann": '{"score":1}'}


@pytest.mark.parametrize(
    "document", [b"\xff\xfe", b"", b"7", b"[]", b"null", b'"ann"', b"{", b"[" * 100_000, b"9" * 5_000, b"<html>"]
)
def test_an_invalid_document_is_reported(settings: Settings, client: redis.Redis, document: bytes) -> None:
    """Content of another program: the error names the key, and what to do."""
    client.set(f"{settings.redis.prefix}:ann", document)
    with pytest.raises(
        ConfigurationError, match=rf"key {settings.redis.prefix}:ann is not (valid JSON|a JSON object).*publish --full"
    ):
        read_reputation("ann", settings)


@pytest.mark.parametrize("line", [":1", "+OK", "*2\r\n%1\r\n+a\r\n+b\r\n+c", "*2\r\n*0\r\n+a"])
def test_a_response_of_another_shape_is_no_traceback(line: str) -> None:
    """The client's parsers raise what Python raises for a value of another type: the server is not Redis."""
    reads = (published, lambda settings: read_leaderboard("all_time", settings))
    with _answering(f"{line}\r\n".encode()) as cache:
        for read in reads:
            with pytest.raises((TransientError, ConfigurationError), match=r"may not be Redis|does not write"):
                read(Settings(redis=cache))


def test_an_error_of_the_client_is_not_blamed_on_the_fields(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the fields that were read are parsed: an error before that has another cause."""

    def fail(*_: object) -> None:
        raise OverflowError("timestamp out of range")

    monkeypatch.setattr("redis.Redis.hgetall", fail)
    with pytest.raises(OverflowError, match="timestamp out of range"):
        published(settings)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "x"},
        {"id": "x", "lake_version": "one", "as_of_us": "1"},
        {"id": "x", "lake_version": "1", "as_of_us": "9" * 30},
        {"id": "x", "lake_version": "1", "as_of_us": "1", "published_at_us": "-" + "9" * 30},
        {"id": "x", "lake_version": "1", "as_of_us": "1", "documents": "many"},
        {"next_id": "x", "next_lake_version": "1"},
        {b"\xff": b"\xff"},
    ],
)
def test_a_foreign_publication_state_is_reported(
    settings: Settings, client: redis.Redis, tmp_path: Path, fields: Mapping[Any, Any]
) -> None:
    """Reader and publisher report the same error; after deleting the key, the next publication is full."""
    key = f"{settings.redis.prefix}.publication"
    client.hset(key, mapping=dict(fields))
    message = rf"key {re.escape(key)} has fields that karmalake does not write"
    for act in (
        lambda: published(settings),
        lambda: publish(always(documents(ann=1)), stamp(1), settings.redis, tmp_path),
    ):
        with pytest.raises(ConfigurationError, match=message):
            act()
    client.delete(key)
    assert publish(always(documents(ann=1)), stamp(1), settings.redis, tmp_path).full


def test_an_invalid_member_is_reported(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    """Every user_id is UTF-8."""
    ranking = settings.model_copy(update={"redis": settings.redis.model_copy(update={"leaderboards": ("all_time",)})})
    publish(always(_RANKED), stamp(1), ranking.redis, tmp_path)
    client.zadd(f"{settings.redis.prefix}.leaderboard.all_time", {b"\xff": 5})
    with pytest.raises(ConfigurationError, match="has a member that is not a user_id"):
        read_leaderboard("all_time", ranking)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?decode_responses=true", "has the option decode_responses, which karmalake sets itself: remove it"),
        ("?encoding=latin-1", "has the option encoding, which"),
        ("?protocol=3", "has the option protocol, which"),
        ("?health_check_interval=5&decode_responses=true", "has the option decode_responses, which"),
        ("?max_connections=1", "has the option max_connections, which"),
        (
            "?socket_timeout=3",
            "has the option socket_timeout: remove it, and set KARMALAKE_REDIS_SOCKET_TIMEOUT_SECONDS",
        ),
        ("?health_check_interval=abc", "has the option health_check_interval with an invalid value"),
        ("?client_name=two words", "has the option client_name with an invalid value"),
        ("?db=-1", "has the option db with an invalid value"),
        ("?db=", "has the option db with an invalid value"),
        ("?sokket_timeout=1", "has an unsupported option: .*no options but db, username"),
        ("?ssl_cert_reqs=none", r"has the option ssl_cert_reqs, but does not start with rediss://"),
        ("/0?db=1", "gives the same option twice"),
        ("?db=1&db=2", "gives the same option twice"),
        ("/abc", "must look like redis://"),
        ("/1/2", "must look like redis://"),
        ("/0#1", "must look like redis://"),
        ("/0?decode_responses", "must look like redis://"),
    ],
)
def test_an_option_of_the_address_is_refused_by_its_name(options: str, message: str) -> None:
    """redis-py would accept each, and decode differently or use another database; nothing is announced."""
    for place in ("h:6379", "u:s3cret@h:6379"):
        with pytest.raises(ConfigurationError, match=message) as caught:
            connect(RedisSettings(url=SecretStr(f"redis://{place}{options}")))
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://h:0/0", "unix://", "unix:///", "rediss://h?ssl_cert_reqs=maybe", "redis://h:99999"]
)
def test_an_invalid_address_is_refused(url: str) -> None:
    """Port 0, a socket without a path, and invalid TLS values are refused."""
    with pytest.raises(ConfigurationError, match="KARMALAKE_REDIS_URL"):
        connect(RedisSettings(url=SecretStr(url)))


def test_supported_options_are_accepted(private_valkey: Callable[..., PrivateValkey], tmp_path: Path) -> None:
    """A client name, a health check of idle connections, a database by option."""
    server = private_valkey()
    address = str(server.settings.url.get_secret_value() if server.settings.url else "").removesuffix("/0")
    url = SecretStr(f"{address}?db=3&client_name=karma&health_check_interval=5&socket_keepalive=yes")
    publish(always(documents(ann=1)), stamp(1), RedisSettings(url=url), tmp_path / "state")
    assert server.client.info("keyspace")["db3"]["keys"] == 2
    with closing(connect(RedisSettings(url=url))) as client:
        wait_for("the name", lambda: client.client_getname() in {b"karma", "karma"})
