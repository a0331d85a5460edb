"""The relay: sends every committed outbox row to the bus at least once, in order per user, then deletes it.

A batch is one transaction of the service's database: lock rows, send them, wait for the acknowledgement of all in-sync
replicas (acks=all), delete them, commit. There is no high-water mark: a row in the table is not sent yet, so a row that
commits late with a lower sequence is found by the next scan. A crash of the relay, the broker or the database at any
step leaves rows that were sent but not deleted: they are sent again, and the copies are dropped downstream (`once`).

Several relays share the work through `FOR UPDATE SKIP LOCKED`. A relay's lock is its transaction, which a crash
releases, so there is no lease to expire. With SKIP LOCKED alone, one relay could overtake another within a user. So a
relay reads the range once more after locking and holds back each user's rows after a row that it has not locked. The
scan continues without the users held back, so a relay that hangs blocks only the users whose rows it has locked.
A row that has disappeared by then is acknowledged, or commits later. Two relays may still send the same row (one has
lost its connection and does not know it yet). Each sends a user's rows in order, from the first unacknowledged one, so
first arrivals are in order too.
The database walks over deleted rows that an old snapshot still sees (a long report, a replica). So most scans begin
where the oldest row was some seconds ago (`_ScanFloor`); every few seconds one begins at the start of the table, for
rows of long transactions.
SQLite has no row locks: the relay reads, releases the file, and deletes afterwards, so that it never blocks the
service's writes. A second relay there is harmless and useless.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from time import monotonic
from typing import NamedTuple, cast

from sqlalchemy import Connection, Engine, bindparam, delete, select

from pipelines.boundary.stopping import ending_all
from pipelines.bus import clients
from pipelines.emit.outbox import database
from pipelines.emit.outbox.table import OUTBOX
from pipelines.emit.outbox.waiter import Waiter, open_waiter
from pipelines.emit.producer import BulkProducer, Record, open_producer
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import KafkaSettings

_LOG = logging.getLogger(__name__)
MAX_ROWS = 1_000
_MAX_PASSES = 10
_FULL_SCAN_SECONDS = 5.0
_FULL_SCAN_SHARE = 20
"""A scan from the start of the table is repeated after this many times its own duration, at least."""
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class RelayedBatch:
    """A batch that the broker acknowledged and the database deleted."""

    rows: int
    bytes: int
    """Of keys and values."""
    seconds: float


Report = Callable[[RelayedBatch], None]


@contextlib.contextmanager
def open_relay(address: str, kafka: KafkaSettings) -> Generator["Relay"]:
    """Yield a relay between the database at `address` and the topic of `kafka`. Raises like `relay_once`."""
    with database.open_database(address) as engine, open_producer(kafka) as producer:
        yield Relay(engine, kafka, producer)


@dataclass(slots=True)
class _ScanFloor:
    """The sequence below which only long transactions still have rows: where most scans begin.

    It is the oldest row of the full scan before the last one, at least `_FULL_SCAN_SECONDS` ago.
    """

    sequence: int = 0
    next_sequence: int = 0
    """The floor after the next full scan."""
    end: int = 0
    """Last sequence seen + 1."""
    full_scan_due: float = 0.0
    """By the monotonic clock, in seconds."""

    def record_full_scan(self, oldest: int | None, began: float) -> None:
        """Record the oldest row of a full scan, locked or not; None if the table was empty."""
        now = monotonic()
        self.sequence, self.next_sequence = self.next_sequence, self.end if oldest is None else oldest
        self.full_scan_due = now + max(_FULL_SCAN_SECONDS, _FULL_SCAN_SHARE * (now - began))


@dataclass(frozen=True, slots=True)
class Relay:
    """An open database with an outbox, and an open producer."""

    engine: Engine
    kafka: KafkaSettings
    producer: BulkProducer
    floor: _ScanFloor = field(default_factory=_ScanFloor)


class _Row(NamedTuple):
    sequence: int
    user_id: str
    payload: bytes


def relay_once(opened: Relay, max_rows: int = MAX_ROWS) -> RelayedBatch:
    """Send the oldest rows, at most `max_rows`, that no other relay has locked, and delete them.

    Return `rows=0` if nothing can be sent now. Raises TransientError if the broker or the database does not answer,
    ConfigurationError if one of them rejects the request. After an error or a crash the rows stay, some perhaps sent;
    after an error open another relay, since the producer of this one is unusable.
    """
    started = monotonic()
    with database.translate_errors(opened.engine, "relaying the outbox"), opened.engine.connect() as connection:
        rows = _claim(connection, max_rows, opened.floor)
        if connection.dialect.name == "sqlite":
            connection.rollback()
        size = _send(opened, rows)
        _delete(connection, rows)
        connection.commit()
    return RelayedBatch(len(rows), size, monotonic() - started)


def relay_pending(opened: Relay, report: Report, max_rows: int = MAX_ROWS) -> None:
    """Send pending rows, batch by batch, until nothing can be sent; call `report` after each batch."""
    while (done := relay_once(opened, max_rows)).rows:
        report(done)


def relay(
    address: str,
    kafka: KafkaSettings,
    stopping: threading.Event,
    report: Report,
    report_outage: Callable[[TransientError], None],
    max_rows: int = MAX_ROWS,
    report_poll: Callable[[], None] = lambda: None,
) -> None:
    """Send rows as they are committed, until `stopping` is set; the current batch is finished first.

    The command waits at most 5 s for that batch: rows that are not deleted by then are sent again at the next start.

    If the broker or the database does not answer, rows stay and are retried; `report_outage` is called for each failed
    attempt, `report` for each batch, `report_poll` for each poll of the outbox, with rows or without. Raises
    ConfigurationError for errors that a retry cannot fix.
    """
    with ending_all(stopping):
        while not stopping.is_set():
            try:
                with open_relay(address, kafka) as opened, open_waiter(opened.engine) as wait:
                    _relay_until_stopped(opened, wait, stopping, report, max_rows, report_poll)
            except TransientError as error:
                report_outage(error)
                stopping.wait(_RETRY_SECONDS)


def _relay_until_stopped(
    opened: Relay,
    wait: Waiter,
    stopping: threading.Event,
    report: Report,
    max_rows: int,
    report_poll: Callable[[], None],
) -> None:
    while not stopping.is_set():
        done = relay_once(opened, max_rows)
        report_poll()
        if done.rows:
            report(done)
        else:
            wait(stopping, _POLL_SECONDS)


def _claim(connection: Connection, max_rows: int, floor: _ScanFloor) -> list[_Row]:
    """Lock the oldest rows that no other relay has locked; return those that may be sent, in order."""
    begin = first = _scan_start(connection, floor)
    held_back: set[str] = set()
    for _ in range(_MAX_PASSES):
        locked = _lock(connection, begin, max_rows, held_back)
        if not locked:
            return []
        present = _present(connection, begin, locked[-1].sequence)
        begin = locked[-1].sequence + 1
        floor.end = max(floor.end, begin)
        if sendable := _in_order(locked, present, held_back):
            return sendable
    _LOG.warning(
        "%d users of the outbox are held back from row %d on: another relay has locked their rows and hangs",
        len(held_back), first,
    )  # fmt: skip
    return []


def _scan_start(connection: Connection, floor: _ScanFloor) -> int:
    """Return the sequence at which to begin a scan: 0 if a full scan is due."""
    began = monotonic()
    if began < floor.full_scan_due:
        return floor.sequence
    oldest = select(OUTBOX.c.sequence).order_by(OUTBOX.c.sequence).limit(1)
    floor.record_full_scan(connection.execute(oldest).scalar(), began)
    return 0


def _lock(connection: Connection, begin: int, max_rows: int, excluded_users: set[str]) -> list[_Row]:
    """Lock the oldest rows from sequence `begin` on that no other relay has locked, without `excluded_users`."""
    columns = (OUTBOX.c.sequence, OUTBOX.c.aggregateid, OUTBOX.c.payload)
    conditions = [OUTBOX.c.sequence >= begin]
    if excluded_users:
        conditions.append(OUTBOX.c.aggregateid.not_in(sorted(excluded_users)))
    oldest = select(*columns).where(*conditions).order_by(OUTBOX.c.sequence).limit(max_rows)
    return [_as_row(*row) for row in connection.execute(oldest.with_for_update(skip_locked=True))]


def _as_row(sequence: object, user_id: object, payload: object) -> _Row:
    """Return a row as it is sent: a payload of text, such as JSON, in UTF-8.

    SQLite stores values of any type in any column, and tables of other makes have columns of other types. Raises
    ConfigurationError for values whose bytes are uncertain.
    """
    payload = payload.encode() if isinstance(payload, str) else payload
    for column, value, types, needed in (
        ("sequence", sequence, (int, Decimal), "a number"),
        ("aggregateid", user_id, str, "text"),
        ("payload", payload, bytes, "bytes or text"),
    ):
        if not isinstance(value, types):
            raise ConfigurationError(
                f"row {sequence} of the outbox has a value of type {type(value).__name__} in the column {column}, "
                f"where {needed} is needed: correct the type of the column, or what the service writes there"
            )
    return _Row(cast("int", sequence), cast("str", user_id), cast("bytes", payload))


def _present(connection: Connection, begin: int, last: int) -> list[tuple[int, str]]:
    """Return sequence and user_id of all committed rows of a range, locked or not."""
    columns = (OUTBOX.c.sequence, OUTBOX.c.aggregateid)
    rows = select(*columns).where(OUTBOX.c.sequence.between(begin, last)).order_by(OUTBOX.c.sequence)
    return [(sequence, user_id) for sequence, user_id in connection.execute(rows)]


def _in_order(locked: Sequence[_Row], present: Sequence[tuple[int, str]], held_back: set[str]) -> list[_Row]:
    """Return the locked rows that have no earlier row of the same user locked by another relay.

    Add users with such an earlier row to `held_back`.
    """
    ours = {row.sequence: row for row in locked}
    sendable: list[_Row] = []
    for sequence, user_id in present:
        if sequence not in ours:
            held_back.add(user_id)
        elif user_id not in held_back:
            sendable.append(ours[sequence])
    return sendable


def _send(opened: Relay, rows: Sequence[_Row]) -> int:
    """Send the rows and wait for their acknowledgement; return their size in bytes."""
    size = 0
    for row in rows:
        key = row.user_id.encode()
        with clients.translate_errors(opened.kafka, f"sending row {row.sequence} of the outbox"):
            opened.producer.send(Record(key, row.payload))
        size += len(key) + len(row.payload)
    with clients.translate_errors(opened.kafka, f"sending {len(rows)} rows of the outbox"):
        opened.producer.flush()
    return size


def _delete(connection: Connection, rows: Sequence[_Row]) -> None:
    """Delete one by one by primary key: for a list, MySQL may scan the table and hit other relays' locks."""
    if rows:
        one = delete(OUTBOX).where(OUTBOX.c.sequence == bindparam("sent"))
        connection.execute(one, [{"sent": row.sequence} for row in rows])
