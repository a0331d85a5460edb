"""Cassandra as the document store, with the same fence as Redis, built from lightweight transactions.

    publications  one row per prefix: what is published, what is being published, and the ticket of the publisher
    documents     256 partitions per prefix, by the CRC-32 of the user_id; each with the highest ticket that wrote to it

Each publisher begins by taking a ticket greater than all earlier ones, by compare-and-set. A chunk of documents is one
conditional batch on one partition: it is applied whole if no greater ticket has written there, and not at all
otherwise. A full publication claims every partition before it reads which users they store. So, in any interleaving
(`fenced`):

- B begins after A: every partition that B has claimed rejects A's chunks from then on. B sees that the publication of A
  is unfinished, so B publishes everything and claims every partition.
- A, paused for any time, resumes after B has finished: no chunk of A is applied, and its finish is rejected.

A crash leaves the same as in Redis: whole documents of both publications and the announcement, so the next publication
is a full one. Chunks are idempotent: one whose response was lost is sent again. Tickets are timestamps, so earlier ones
are lower even if `publications` is lost. There are no leaderboards: Cassandra has no order by score.
"""

import ssl
import time
import uuid
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl

from pipelines.boundary.extras import extra
from pipelines.boundary.http import excerpt
from pipelines.errors import ConfigurationError, FencedError, TransientError, one_line
from pipelines.serving.publication_state import PublicationState, Stamp
from pipelines.settings import CassandraSettings

with extra("cassandra", "Cassandra"):
    from cassandra import (
        AuthenticationFailed,
        ConsistencyLevel,
        DriverException,
        InvalidRequest,
        Unauthorized,
        Unavailable,
        UnresolvableContactPoints,
    )
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
    from cassandra.connection import ConnectionBusy, ConnectionException, ProtocolError
    from cassandra.metadata import protect_name
    from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy
    from cassandra.pool import NoConnectionsAvailable
    from cassandra.protocol import ErrorMessage, RequestValidationException
    from cassandra.query import BatchStatement, dict_factory

_DRIVER_ERRORS = (
    DriverException, ErrorMessage, ConnectionException, ConnectionBusy, NoConnectionsAvailable, ProtocolError
)  # fmt: skip
"""Errors of the driver, which have no common base class."""
_BUCKETS = 256
_CHUNK_DOCUMENTS = 100
_CHUNK_BYTES = 256 * 1024
_MAX_THREADS = 16
_ATTEMPTS = 5
_TABLES = {
    "publications": """CREATE TABLE IF NOT EXISTS {keyspace}.publications (prefix text PRIMARY KEY, ticket bigint,
        id text, lake_version bigint, as_of_us bigint, policy text, documents bigint, published_at_us bigint,
        next_id text, next_lake_version bigint, next_as_of_us bigint,
        format int, next_format int)""",
    "documents": """CREATE TABLE IF NOT EXISTS {keyspace}.documents (prefix text, bucket int, user_id blob,
        ticket bigint STATIC, document text, PRIMARY KEY ((prefix, bucket), user_id))""",
}
_ADDED = ("format", "next_format")
"""Columns of publications, both int, that earlier releases did not create."""
_EXISTING = "SELECT table_name, default_time_to_live FROM system_schema.tables WHERE keyspace_name = ?"
_COLUMNS = "SELECT column_name FROM system_schema.columns WHERE keyspace_name = ? AND table_name = 'publications'"
_ADD_COLUMN = "ALTER TABLE {keyspace}.publications ADD {column} int"
_HELD = "SELECT * FROM {keyspace}.publications WHERE prefix = ?"
_FIRST = "INSERT INTO {keyspace}.publications (prefix, ticket) VALUES (?, 0) IF NOT EXISTS"
_ANNOUNCE = """UPDATE {keyspace}.publications SET ticket = ?, next_id = ?, next_lake_version = ?, next_as_of_us = ?,
    next_format = ?
    WHERE prefix = ? IF ticket = ?"""
_FINISH = """UPDATE {keyspace}.publications SET id = ?, lake_version = ?, as_of_us = ?, policy = ?, documents = ?,
    published_at_us = ?, format = ?, next_id = null, next_lake_version = null, next_as_of_us = null,
    next_format = null
    WHERE prefix = ? IF next_id = ?"""
_CLAIM = "UPDATE {keyspace}.documents SET ticket = ? WHERE prefix = ? AND bucket = ? IF ticket <= ?"
_CLAIM_FIRST = "UPDATE {keyspace}.documents SET ticket = ? WHERE prefix = ? AND bucket = ? IF ticket = null"
_SET = "INSERT INTO {keyspace}.documents (prefix, bucket, user_id, document) VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM {keyspace}.documents WHERE prefix = ? AND bucket = ? AND user_id = ?"
_USERS = "SELECT user_id FROM {keyspace}.documents WHERE prefix = ? AND bucket = ?"
_READ = "SELECT document FROM {keyspace}.documents WHERE prefix = ? AND bucket = ? AND user_id = ?"
_Change = tuple[bytes, str | None]
"""A user_id (UTF-8) and the document to set; None deletes it."""


@dataclass(frozen=True, slots=True)
class CassandraStore:
    """Documents under a prefix."""

    session: Any
    prefix: str
    prepared: Callable[[str], Any]
    leaderboards: tuple[str, ...] = ()

    def run(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Execute a statement of this module with bound values, and return its rows."""
        return list(self.session.execute(self.prepared(statement), values))

    def read_state(self) -> PublicationState:
        """Read the publication state."""
        row = next(iter(self.run(_HELD, self.prefix)), {})
        return PublicationState(
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
        """Return the id of the published publication; None while another one is in progress or interrupted."""
        return self.read_state().complete_id

    def begin(self, stamp: Stamp) -> "CassandraPublicationWriter":
        """Announce a publication and take a ticket for it; raises FencedError if a newer one is announced."""
        publication_id = uuid.uuid4().hex
        for _ in range(_ATTEMPTS):
            self.run(_FIRST, self.prefix)
            state, last = self.read_state(), self.run(_HELD, self.prefix)[0]["ticket"]
            if last is None:
                raise unexpected_content(self.prefix, "has no ticket in the table publications")
            state.require_known_format(f"the row {self.prefix} of publications in Cassandra")
            for other in (state.published, state.announced):
                if other is not None and other.order > stamp.order:
                    raise FencedError(_refusal(self.prefix, stamp, other))
            ticket = max(last + 1, time.time_ns() // 1_000)
            values = (ticket, publication_id, stamp.lake_version, stamp.as_of_us, stamp.format, self.prefix, last)
            if _applied(self.run(_ANNOUNCE, *values)):
                previous = state.complete_id
                return CassandraPublicationWriter(self, stamp, publication_id, previous, ticket)
        raise TransientError(
            f"other publishers began to publish to {self.prefix} in Cassandra at the same time, {_ATTEMPTS} times in a "
            "row: publish again, from one publisher at a time"
        )


@dataclass(frozen=True, slots=True)
class CassandraPublicationWriter:
    """A publication in progress."""

    store: CassandraStore
    stamp: Stamp
    id: str
    previous_id: str | None
    ticket: int

    def stored_users(self) -> pl.Series:
        """Claim every partition, and return the users who have a document (Binary, UTF-8)."""
        with ThreadPoolExecutor(_MAX_THREADS) as threads:
            found = threads.map(self._claim, range(_BUCKETS))
            return pl.Series([user for users in found for user in users], dtype=pl.Binary)

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents."""
        users = documents["user_id"].cast(pl.Binary)
        self._apply(zip(users, documents["document"], strict=True))

    def remove(self, users: pl.Series) -> None:
        """Delete documents."""
        self._apply((user, None) for user in users)

    def finish(self, documents: int) -> None:
        """Mark this publication as the published one."""
        stamp, prefix = self.stamp, self.store.prefix
        shown = (
            self.id,
            stamp.lake_version,
            stamp.as_of_us,
            stamp.policy,
            documents,
            time.time_ns() // 1_000,
            stamp.format,
        )
        if _applied(self.store.run(_FINISH, *shown, prefix, self.id)):
            return
        state = self.store.read_state()
        done_before = state.publication_id == self.id and state.announced_id is None  # the response was lost
        if not done_before:
            raise self._superseded()

    def _claim(self, bucket: int) -> list[bytes]:
        self._apply_if_owner(bucket, [])
        rows = self.store.run(_USERS, self.store.prefix, bucket)
        return [row["user_id"] for row in rows if row["user_id"] is not None]

    def _apply(self, changes: Iterable[_Change]) -> None:
        by_bucket = sorted(changes, key=lambda change: (_bucket(change[0]), change[0]))
        buckets = [list(group) for _, group in groupby(by_bucket, lambda change: _bucket(change[0]))]
        with ThreadPoolExecutor(_MAX_THREADS) as threads:
            list(threads.map(self._apply_to_bucket, buckets))

    def _apply_to_bucket(self, changes: list[_Change]) -> None:
        for chunk in _chunks(changes):
            self._apply_if_owner(_bucket(chunk[0][0]), chunk)

    def _apply_if_owner(self, bucket: int, changes: list[_Change]) -> None:
        """Apply changes to a partition, all or none, unless a greater ticket has written there."""
        store, place = self.store, (self.store.prefix, bucket)
        for claim, condition in ((_CLAIM, (self.ticket,)), (_CLAIM_FIRST, ())):
            batch = BatchStatement()
            batch.add(store.prepared(claim), (self.ticket, *place, *condition))
            for user, document in changes:
                statement, values = (_DELETE, ()) if document is None else (_SET, (document,))
                batch.add(store.prepared(statement), (*place, user, *values))
            if _applied(list(store.session.execute(batch))):
                return
        raise self._superseded()

    def _superseded(self) -> FencedError:
        return FencedError(
            f"publishing lake version {self.stamp.lake_version} to {self.store.prefix} in Cassandra was stopped: "
            "another publisher has taken over. No action is needed; run only one publisher to avoid this"
        )


@contextmanager
def open_cassandra(settings: CassandraSettings) -> Generator[CassandraStore]:
    """Yield the configured store on a cached connection; creates missing tables.

    Where all exist nothing is created, so a user who may not is enough. Raises ConfigurationError for tables whose rows
    expire.
    """
    with _translate_errors(settings, "publishing"):
        store = _cached_store(settings)
        _require_tables(store, settings.keyspace)
        _add_columns(store, settings.keyspace)
        yield store


def read_document(settings: CassandraSettings, user_id: str) -> str | None:
    """Return a user's document as JSON, None if there is none; raises TransientError or ConfigurationError."""
    user = user_id.encode("utf-8", "surrogatepass")
    with _translate_errors(settings, "reading"):
        rows = _cached_store(settings).run(_READ, settings.prefix, _bucket(user), user)
    return rows[0]["document"] if rows else None


def read_users(settings: CassandraSettings) -> Iterator[pl.Series]:
    """Yield the users (Binary, UTF-8) who have a document, one partition at a time; errors as for `read_document`."""
    with _translate_errors(settings, "reading"):
        store = _cached_store(settings)
        for bucket in range(_BUCKETS):
            rows = store.run(_USERS, store.prefix, bucket)
            yield pl.Series([row["user_id"] for row in rows if row["user_id"] is not None], dtype=pl.Binary)


def read_state(settings: CassandraSettings) -> PublicationState:
    """Read the publication state; errors as for `read_document`."""
    with _translate_errors(settings, "reading"):
        return _cached_store(settings).read_state()


def _cached_store(settings: CassandraSettings) -> CassandraStore:
    """Return the cached store for these settings."""
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
    return CassandraStore(session, settings.prefix, _statement_cache(session, settings.keyspace))


def _ssl_context(cafile: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(cafile))
    except OSError as error:  # includes ssl.SSLError
        raise ConfigurationError(
            f"cassandra.ssl_cafile names {cafile}, which is not a usable CA file: {error}"
        ) from None


def _statement_cache(session: Any, keyspace: str) -> Callable[[str], Any]:
    """Return a function that prepares each statement of this module once, from any thread.

    The driver drops a prepared statement when its last object is garbage-collected. With two objects of the same
    statement, the one in use may then be unknown to the driver. Table names include the keyspace; otherwise server and
    driver may assign different ids to a statement.
    """
    lock = Lock()

    @lru_cache
    def prepared(statement: str) -> Any:
        return session.prepare(_with_keyspace(keyspace, statement))

    def prepared_once(statement: str) -> Any:
        with lock:
            return prepared(statement)

    return prepared_once


def _with_keyspace(keyspace: str, statement: str) -> str:
    return statement.format(keyspace=protect_name(keyspace))


@contextmanager
def _translate_errors(settings: CassandraSettings, doing: str) -> Generator[None]:
    where = f"Cassandra at {', '.join(settings.hosts)}:{settings.port}, keyspace {settings.keyspace}"
    try:
        yield
    except NoHostAvailable as error:
        if any(isinstance(each, AuthenticationFailed) for each in _node_errors(error).values()):
            raise ConfigurationError(f"{where} refused access: check cassandra.user and cassandra.password") from None
        for each in _node_errors(error).values():
            if isinstance(each, Unavailable):
                raise TransientError(
                    f"{where} has {each.alive_replicas} of the {each.required_replicas} replicas up that {doing} "
                    "needs: start the other nodes or, if there are fewer nodes than the replication of the keyspace "
                    "asks for, lower it with ALTER KEYSPACE"
                ) from error
        found = "; ".join(f"{node}: {excerpt(one_line(each), 200)}" for node, each in _node_errors(error).items())
        raise TransientError(
            f"{where} did not answer while {doing} ({found}): check that it is running, or try again"
        ) from error
    except UnresolvableContactPoints:  # its own message is `{}`
        raise TransientError(
            f"{where} cannot be resolved: check cassandra.hosts, which are names without ports (cassandra.port is "
            "theirs), or try again"
        ) from None
    except (InvalidRequest, RequestValidationException, Unauthorized) as error:
        raise ConfigurationError(
            f"{where} refused {doing}: {error}; check that the keyspace exists and cassandra.user may use it"
        ) from error
    except _DRIVER_ERRORS as error:
        raise TransientError(f"{where} failed while {doing}: {error}; try again") from error


def _node_errors(error: Any) -> dict[Any, Exception]:
    """Return the error of each node."""
    return error.errors if isinstance(error.errors, dict) else {"all nodes": error}


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


def _require_tables(store: CassandraStore, keyspace: str) -> None:
    found = {row["table_name"]: row["default_time_to_live"] for row in store.run(_EXISTING, keyspace)}
    for table, statement in _TABLES.items():
        if table not in found:
            store.session.execute(_with_keyspace(keyspace, statement))
        elif seconds := found[table]:
            raise ConfigurationError(
                f"the rows of {keyspace}.{table} in Cassandra expire after {seconds} s, so users without events would "
                f"lose their documents: run ALTER TABLE {protect_name(keyspace)}.{table} WITH default_time_to_live = 0"
                ", then `karmalake publish --full`"
            )


def _add_columns(store: CassandraStore, keyspace: str) -> None:
    """Add the columns that earlier releases did not create."""
    known = {row["column_name"] for row in store.run(_COLUMNS, keyspace)}
    for column in _ADDED:
        if column not in known:
            with suppress(InvalidRequest):  # another publisher has added it
                store.session.execute(_ADD_COLUMN.format(keyspace=protect_name(keyspace), column=column))


def _bucket(user: bytes) -> int:
    return zlib.crc32(user) % _BUCKETS


def _applied(rows: list[dict[str, Any]]) -> bool:
    """Return whether a conditional statement was applied; for a rejected batch every row says that it was not."""
    return bool(rows[0]["[applied]"])


def _stamp(prefix: str, row: dict[str, Any], kind: str) -> Stamp | None:
    if row.get(f"{kind}id") is None:
        return None
    stamp = Stamp(
        row[f"{kind}lake_version"],
        row[f"{kind}as_of_us"],
        row.get(f"{kind}policy") or "",
        row.get(f"{kind}format") or 0,
    )
    try:
        _ = stamp.as_of, stamp.lake_version + 0
    except (TypeError, OverflowError):
        raise unexpected_content(prefix, f"has no valid {kind}lake_version or {kind}as_of_us in publications") from None
    return stamp


def unexpected_content(prefix: str, what: str) -> ConfigurationError:
    """Return the error for a row that karmalake did not write."""
    return ConfigurationError(
        f"a row of prefix {prefix} in Cassandra {what}: another program writes there. Find that program. If the row is "
        "in the table publications, delete the row of this prefix; then run `karmalake publish --full`"
    )


def _refusal(prefix: str, stamp: Stamp, newer: Stamp) -> str:
    return (
        f"cannot publish lake version {stamp.lake_version} as of {stamp.as_of.isoformat()} to {prefix} in Cassandra: "
        f"version {newer.lake_version} as of {newer.as_of.isoformat()} is published, or being published, and newer. "
        "Run `karmalake refresh` first: after a `karmalake stream`, the warehouse is behind what it published. If "
        "that version comes from a lake that this one replaces (restored from a copy, say), or from a wrong clock, "
        "delete the row of this prefix from the table publications and run `karmalake publish --full`"
    )
