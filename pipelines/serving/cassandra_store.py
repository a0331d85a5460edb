"""Cassandra as the store of documents, with the same fence as Redis, made of lightweight transactions.

    publications  one row a prefix: what is published, what is being published, and the ticket of whoever publishes
    documents     256 partitions a prefix, by the CRC-32 of the user_id; each knows the highest ticket that wrote to it

Whoever begins takes a ticket greater than any before, by compare-and-set. A chunk of documents is one conditional batch
on one partition: it is applied whole if nobody with a greater ticket has been there, and not at all otherwise. A full
publication claims every partition before it looks at what they hold. So, whatever the order of steps (`fenced`):

- B begins after A: every partition that B has claimed refuses A's chunks from then on. B was told of A, whose
  publication is not finished, so B publishes everything and claims them all.
- A, paused for any time, wakes after B has finished: no chunk of A is applied, and its finish is refused.

A crash leaves what it leaves in Redis: documents of both publications, each whole, and the announcement, so that the
next publication is a full one. A chunk whose answer was lost may be sent again: it is idempotent. Tickets are times, so
that those of before are lower if `publications` is lost. There are no leaderboards: Cassandra keeps no order by score.
"""

import ssl
import time
import uuid
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl

from pipelines.errors import ConfigurationError, FencedError, TransientError
from pipelines.serving.bookkeeping import Held, Stamp
from pipelines.settings import CassandraSettings

try:
    from cassandra import AuthenticationFailed, ConsistencyLevel, DriverException, InvalidRequest, Unauthorized
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
    from cassandra.connection import ConnectionBusy, ConnectionException, ProtocolError
    from cassandra.metadata import protect_name
    from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy
    from cassandra.pool import NoConnectionsAvailable
    from cassandra.protocol import ErrorMessage, RequestValidationException
    from cassandra.query import BatchStatement, dict_factory
except ImportError:
    raise ConfigurationError("Cassandra needs a package more: pip install 'karmalake[cassandra]'") from None

_UNANSWERED = (
    DriverException, ErrorMessage, ConnectionException, ConnectionBusy, NoConnectionsAvailable, ProtocolError
)  # fmt: skip
"""The driver has no one base of its errors."""
_BUCKETS = 256
_CHUNK_DOCUMENTS = 100
_CHUNK_BYTES = 256 * 1024
_AT_ONCE = 16
_ATTEMPTS = 5
_TABLES = (
    """CREATE TABLE IF NOT EXISTS {keyspace}.publications (prefix text PRIMARY KEY, ticket bigint,
        id text, lake_version bigint, as_of_us bigint, policy text, documents bigint, published_at_us bigint,
        next_id text, next_lake_version bigint, next_as_of_us bigint)""",
    """CREATE TABLE IF NOT EXISTS {keyspace}.documents (prefix text, bucket int, user_id blob,
        ticket bigint STATIC, document text, PRIMARY KEY ((prefix, bucket), user_id))""",
)
_HELD = "SELECT * FROM {keyspace}.publications WHERE prefix = ?"
_FIRST = "INSERT INTO {keyspace}.publications (prefix, ticket) VALUES (?, 0) IF NOT EXISTS"
_ANNOUNCE = """UPDATE {keyspace}.publications SET ticket = ?, next_id = ?, next_lake_version = ?, next_as_of_us = ?
    WHERE prefix = ? IF ticket = ?"""
_FINISH = """UPDATE {keyspace}.publications SET id = ?, lake_version = ?, as_of_us = ?, policy = ?, documents = ?,
    published_at_us = ?, next_id = null, next_lake_version = null, next_as_of_us = null
    WHERE prefix = ? IF next_id = ?"""
_CLAIM = "UPDATE {keyspace}.documents SET ticket = ? WHERE prefix = ? AND bucket = ? IF ticket <= ?"
_CLAIM_FIRST = "UPDATE {keyspace}.documents SET ticket = ? WHERE prefix = ? AND bucket = ? IF ticket = null"
_SET = "INSERT INTO {keyspace}.documents (prefix, bucket, user_id, document) VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM {keyspace}.documents WHERE prefix = ? AND bucket = ? AND user_id = ?"
_USERS = "SELECT user_id FROM {keyspace}.documents WHERE prefix = ? AND bucket = ?"
_READ = "SELECT document FROM {keyspace}.documents WHERE prefix = ? AND bucket = ? AND user_id = ?"
_Change = tuple[bytes, str | None]
"""A user, and the document to be set; None deletes it."""


@dataclass(frozen=True, slots=True)
class CassandraStore:
    """Documents under a prefix; `run` executes a statement of this module with values and returns its rows."""

    session: Any
    prefix: str
    prepared: Callable[[str], Any]
    leaderboards: tuple[str, ...] = ()

    def run(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Return the rows of a statement."""
        return list(self.session.execute(self.prepared(statement), values))

    def held(self) -> Held:
        """Return what is published and what is being published."""
        row = next(iter(self.run(_HELD, self.prefix)), {})
        return Held(
            row.get("id"),
            _stamp(self.prefix, row, ""),
            row.get("documents") or 0,
            (),
            row.get("published_at_us") or 0,
            row.get("next_id"),
            _stamp(self.prefix, row, "next_"),
            0,
        )

    def complete_id(self) -> str | None:
        """Return the id of what is published, unless a publication is in progress."""
        return self.held().complete_id

    def begin(self, stamp: Stamp) -> "CassandraWriting":
        """Announce a publication, and take a ticket for it."""
        publication_id = uuid.uuid4().hex
        for _ in range(_ATTEMPTS):
            self.run(_FIRST, self.prefix)
            held, last = self.held(), self.run(_HELD, self.prefix)[0]["ticket"]
            if last is None:
                raise foreign_content(self.prefix, "has no ticket in the table publications")
            for other in (held.published, held.announced):
                if other is not None and other.order > stamp.order:
                    raise FencedError(_refusal(self.prefix, stamp, other))
            ticket = max(last + 1, time.time_ns() // 1_000)
            values = (ticket, publication_id, stamp.lake_version, stamp.as_of_us, self.prefix, last)
            if _applied(self.run(_ANNOUNCE, *values)):
                previous = held.publication_id if held.announced_id is None else None
                return CassandraWriting(self, stamp, publication_id, previous, ticket)
        raise TransientError(
            f"others began to publish to {self.prefix} in Cassandra at the same moment, {_ATTEMPTS} times in a row: "
            "publish again, from one publisher at a time"
        )


@dataclass(frozen=True, slots=True)
class CassandraWriting:
    """A publication in progress."""

    store: CassandraStore
    stamp: Stamp
    id: str
    previous_id: str | None
    ticket: int

    def held(self) -> pl.Series:
        """Claim every partition, and return the users who have a document there."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = threads.map(self._claimed, range(_BUCKETS))
            return pl.Series([user for users in found for user in users], dtype=pl.Binary)

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents."""
        users = documents["user_id"].cast(pl.Binary)
        self._apply(zip(users, documents["document"], strict=True))

    def remove(self, users: pl.Series) -> None:
        """Delete documents."""
        self._apply((user, None) for user in users)

    def finish(self, documents: int) -> None:
        """Make it the published one."""
        stamp, prefix = self.stamp, self.store.prefix
        shown = (self.id, stamp.lake_version, stamp.as_of_us, stamp.policy, documents, time.time_ns() // 1_000)
        if _applied(self.store.run(_FINISH, *shown, prefix, self.id)):
            return
        held = self.store.held()
        if held.publication_id != self.id or held.announced_id is not None:  # else done before, and the answer was lost
            raise self._taken_over()

    def _claimed(self, bucket: int) -> list[bytes]:
        self._conditionally(bucket, [])
        rows = self.store.run(_USERS, self.store.prefix, bucket)
        return [row["user_id"] for row in rows if row["user_id"] is not None]

    def _apply(self, changes: Iterable[_Change]) -> None:
        by_bucket = sorted(changes, key=lambda change: (_bucket(change[0]), change[0]))
        buckets = [list(group) for _, group in groupby(by_bucket, lambda change: _bucket(change[0]))]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(self._apply_to_bucket, buckets))

    def _apply_to_bucket(self, changes: list[_Change]) -> None:
        for chunk in _chunks(changes):
            self._conditionally(_bucket(chunk[0][0]), chunk)

    def _conditionally(self, bucket: int, changes: list[_Change]) -> None:
        """Apply changes to a partition, all or none, if nobody with a greater ticket has been there."""
        store, place = self.store, (self.store.prefix, bucket)
        for claim, condition in ((_CLAIM, (self.ticket,)), (_CLAIM_FIRST, ())):
            batch = BatchStatement()
            batch.add(store.prepared(claim), (self.ticket, *place, *condition))
            for user, document in changes:
                statement, values = (_DELETE, ()) if document is None else (_SET, (document,))
                batch.add(store.prepared(statement), (*place, user, *values))
            if _applied(list(store.session.execute(batch))):
                return
        raise self._taken_over()

    def _taken_over(self) -> FencedError:
        return FencedError(
            f"publishing lake version {self.stamp.lake_version} to {self.store.prefix} in Cassandra was ended: another "
            "publisher has taken over. Nothing needs to be done; run only one publisher to avoid this"
        )


@contextmanager
def open_cassandra(settings: CassandraSettings) -> Generator[CassandraStore]:
    """Yield the store of the settings, on a connection that is kept; its tables are made if they are missing."""
    with _explained(settings, "publishing"):
        store = _connected(settings)
        for table in _TABLES:
            store.session.execute(_in(settings.keyspace, table))
        yield store


def read_document(settings: CassandraSettings, user_id: str) -> str | None:
    """Return a user's document; errors are TransientError or ConfigurationError."""
    user = user_id.encode("utf-8", "surrogatepass")
    with _explained(settings, "reading"):
        rows = _connected(settings).run(_READ, settings.prefix, _bucket(user), user)
    return rows[0]["document"] if rows else None


def read_users(settings: CassandraSettings) -> Iterator[pl.Series]:
    """Yield the users (Binary) who have a document, a partition at a time; errors as for `read_document`."""
    with _explained(settings, "reading"):
        store = _connected(settings)
        for bucket in range(_BUCKETS):
            rows = store.run(_USERS, store.prefix, bucket)
            yield pl.Series([row["user_id"] for row in rows if row["user_id"] is not None], dtype=pl.Binary)


def read_held(settings: CassandraSettings) -> Held:
    """Return what is published and what is being published; errors as for `read_document`."""
    with _explained(settings, "reading"):
        return _connected(settings).held()


def _connected(settings: CassandraSettings) -> CassandraStore:
    """Return the connection that is kept for these settings."""
    return _connect(settings)  # pyright: ignore[reportArgumentType] # frozen, so pydantic makes it hashable


@lru_cache(maxsize=8)
def _connect(settings: CassandraSettings) -> CassandraStore:
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
        consistency_level=ConsistencyLevel.QUORUM,
        serial_consistency_level=ConsistencyLevel.SERIAL,
        request_timeout=settings.request_timeout_seconds,
        row_factory=dict_factory,
    )
    password = settings.password.get_secret_value() if settings.password else ""
    cluster = Cluster(
        settings.hosts,
        port=settings.port,
        auth_provider=PlainTextAuthProvider(settings.user, password) if settings.user else None,
        ssl_context=_ssl_context(settings.ssl_cafile) if settings.ssl_cafile else None,
        connect_timeout=settings.request_timeout_seconds,  # pyright: ignore[reportArgumentType] # any number of seconds
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        protocol_version=5,
    )
    try:
        session = cluster.connect()
    except BaseException:
        cluster.shutdown()
        raise
    return CassandraStore(session, settings.prefix, _preparing(session, settings.keyspace))


def _ssl_context(cafile: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(cafile))
    except OSError as error:  # that of ssl too
        raise ConfigurationError(f"cassandra.ssl_cafile names {cafile}, which cannot be used: {error}") from None


def _preparing(session: Any, keyspace: str) -> Callable[[str], Any]:
    """Return what prepares each statement of this module, and each only once, whichever thread asks first.

    The driver forgets a statement whose last object is gone, so that of two of the same the one in use may be unknown
    to it. Names hold their keyspace, or the server may know the statement by another id than the driver.
    """
    lock = Lock()

    @lru_cache
    def prepared(statement: str) -> Any:
        return session.prepare(_in(keyspace, statement))

    def prepared_once(statement: str) -> Any:
        with lock:
            return prepared(statement)

    return prepared_once


def _in(keyspace: str, statement: str) -> str:
    return statement.format(keyspace=protect_name(keyspace))


@contextmanager
def _explained(settings: CassandraSettings, doing: str) -> Generator[None]:
    where = f"Cassandra at {', '.join(settings.hosts)}:{settings.port}, keyspace {settings.keyspace}"
    try:
        yield
    except NoHostAvailable as error:
        if any(isinstance(each, AuthenticationFailed) for each in _reasons(error)):
            raise ConfigurationError(f"{where} refused access: check cassandra.user and cassandra.password") from None
        raise TransientError(f"{where} did not answer while {doing}: check that it runs, or try again") from error
    except (InvalidRequest, RequestValidationException, Unauthorized) as error:
        raise ConfigurationError(
            f"{where} refused {doing}: {error}; is the keyspace there, and may we use it?"
        ) from error
    except _UNANSWERED as error:
        raise TransientError(f"{where} could not go on {doing}: {error}; try again") from error


def _reasons(error: Any) -> list[Exception]:
    """Return what each node said."""
    return list(error.errors.values()) if isinstance(error.errors, dict) else [error]


def _chunks(changes: list[_Change]) -> Iterator[list[_Change]]:
    chunk: list[_Change] = []
    size = 0
    for change in changes:
        chunk.append(change)
        size += len(change[0]) + len(change[1] or "")
        if len(chunk) == _CHUNK_DOCUMENTS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _bucket(user: bytes) -> int:
    return zlib.crc32(user) % _BUCKETS


def _applied(rows: list[dict[str, Any]]) -> bool:
    """Return whether a conditional statement was applied; of a batch that was not, every row says so."""
    return bool(rows[0]["[applied]"])


def _stamp(prefix: str, row: dict[str, Any], kind: str) -> Stamp | None:
    if row.get(f"{kind}id") is None:
        return None
    stamp = Stamp(row[f"{kind}lake_version"], row[f"{kind}as_of_us"], row.get(f"{kind}policy") or "")
    try:
        _ = stamp.as_of, stamp.lake_version + 0
    except (TypeError, OverflowError):
        raise foreign_content(prefix, f"has no valid {kind}lake_version or {kind}as_of_us in publications") from None
    return stamp


def foreign_content(prefix: str, what: str) -> ConfigurationError:
    """Return the error for a row under a prefix that karmalake has not written."""
    return ConfigurationError(
        f"a row of prefix {prefix} in Cassandra {what}: something else writes there. Find out what; delete the row of "
        "this prefix in the table publications, if it is that one, and run `karmalake publish --full`"
    )


def _refusal(prefix: str, stamp: Stamp, newer: Stamp) -> str:
    return (
        f"cannot publish lake version {stamp.lake_version} as of {stamp.as_of.isoformat()} to {prefix} in Cassandra: "
        f"version {newer.lake_version} as of {newer.as_of.isoformat()} is published, or being published, and newer. If "
        "that one comes from a lake which this one replaces, or from a wrong clock, delete the row of this prefix in "
        "the table publications, and publish again"
    )
