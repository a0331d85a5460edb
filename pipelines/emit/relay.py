"""From the outbox to the bus: every committed row is sent at least once, each user's in order, and then deleted.

A batch is one transaction of the service's database: lock rows, send them, wait for all brokers' acknowledgement
(acks=all), delete them, commit. There is no high-water mark: what is in the table is not sent yet, so a row whose
transaction commits late with a lower sequence is simply there the next time. A crash at any step, of the relay, the
broker or the database, leaves rows that were sent but not deleted: they are sent again, and the copies are dropped
downstream (`once`).

Several relays share the work through `FOR UPDATE SKIP LOCKED`: a relay's lock is its transaction, which a crash
releases, so there is no lease to expire. Skipping alone would let a relay overtake another within a user. So a relay
looks at the table once more after locking and holds back, of each user, whatever stands behind a row that is not its
own. The rows of a user who is held back do not use up the look at others: the search goes on without that user, so a
relay that hangs holds up only the users whose rows it has locked.
A row that is gone by then is acknowledged, or committed only later. Two relays may still send the same row (one
lost its connection and does not know it yet); each sends a user's rows in their order and from the first that nobody
acknowledged, so the first arrivals are in order too.
The database walks over rows that were deleted but are still seen by an old snapshot (a long report, a replica), so most
looks begin where the oldest row was some seconds ago (`_Floor`); every few seconds one begins at the start of the
table, for the row of a transaction that took longer.
SQLite knows no row locks: the relay reads, lets go of the file, and deletes afterwards, so that it never keeps the
service from writing. A second relay there is harmless, and of no use.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from sqlalchemy import Connection, Engine, bindparam, delete, select

from pipelines.bus import clients
from pipelines.emit.outbox import database
from pipelines.emit.outbox.table import OUTBOX
from pipelines.emit.outbox.waking import Alarm, alarm
from pipelines.emit.producer import Delivery, Record, delivering
from pipelines.errors import TransientError
from pipelines.settings import KafkaSettings

_LOG = logging.getLogger(__name__)
MAX_ROWS = 1_000
_MAX_PASSES = 10
_FULL_LOOK_SECONDS = 5.0
_FULL_LOOK_SHARE = 20
"""A look from the start of the table is repeated after this many times what it took, at least."""
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Relayed:
    """One batch that the broker has acknowledged and the database has deleted."""

    rows: int
    bytes: int
    """Of keys and values."""
    seconds: float


Report = Callable[[Relayed], None]


@contextlib.contextmanager
def open_relay(address: str, kafka: KafkaSettings) -> Generator["Relay"]:
    """Yield a relay between the database at `address` and the topic of `kafka`; errors as in `relay_once`."""
    with database.open_database(address) as engine, delivering(kafka) as delivery:
        yield Relay(engine, kafka, delivery)


@dataclass(slots=True)
class _Floor:
    """The sequence below which there are no rows but those of long transactions.

    It is the oldest row of the last look but one from the start of the table, at least `_FULL_LOOK_SECONDS` ago.
    """

    sequence: int = 0
    coming: int = 0
    end: int = 0
    """Behind every row that was seen."""
    due: float = 0.0

    def looked(self, oldest: int | None, began: float) -> None:
        """Note the oldest row of a look from the start of the table, locked or not; None where there is none."""
        now = monotonic()
        self.sequence, self.coming = self.coming, self.end if oldest is None else oldest
        self.due = now + max(_FULL_LOOK_SECONDS, _FULL_LOOK_SHARE * (now - began))


@dataclass(frozen=True, slots=True)
class Relay:
    """An open database with an outbox, and an open producer."""

    engine: Engine
    kafka: KafkaSettings
    delivery: Delivery
    floor: _Floor = field(default_factory=_Floor)


class _Waiting(NamedTuple):
    sequence: int
    user_id: str
    payload: bytes


def relay_once(opened: Relay, max_rows: int = MAX_ROWS) -> Relayed:
    """Send the oldest rows, at most `max_rows`, that no other relay has in hand, and delete them.

    Returns `rows=0` if nothing can be sent now. Raises TransientError if the broker or the database did not answer:
    the rows stay, some of them perhaps sent; open another relay, this one's producer is of no more use. Raises
    ConfigurationError if the broker or the database refuses. A crash leaves as much.
    """
    started = monotonic()
    with database.translated(opened.engine, "relaying the outbox"), opened.engine.connect() as connection:
        rows = _claim(connection, max_rows, opened.floor)
        if connection.dialect.name == "sqlite":
            connection.rollback()
        size = _send(opened, rows)
        _delete(connection, rows)
        connection.commit()
    return Relayed(len(rows), size, monotonic() - started)


def relay_waiting(opened: Relay, report: Report, max_rows: int = MAX_ROWS) -> None:
    """Send what waits, batch by batch, until nothing can be sent; `report` hears of each batch."""
    while (done := relay_once(opened, max_rows)).rows:
        report(done)


def relay(
    address: str,
    kafka: KafkaSettings,
    stopping: threading.Event,
    report: Report,
    report_outage: Callable[[TransientError], None],
    max_rows: int = MAX_ROWS,
    report_turn: Callable[[], None] = lambda: None,
) -> None:
    """Send rows as they are committed, until `stopping` is set; the batch in hand is finished first.

    A broker or a database that does not answer only delays: `report_outage` hears of every try, and rows stay where
    they are. `report_turn` hears of each look at the outbox, found rows or not. What another try cannot mend is raised:
    ConfigurationError.
    """
    while not stopping.is_set():
        try:
            with open_relay(address, kafka) as opened, alarm(opened.engine) as waking:
                _until_stopped(opened, waking, stopping, report, max_rows, report_turn)
        except TransientError as error:
            report_outage(error)
            stopping.wait(_RETRY_SECONDS)


def _until_stopped(
    opened: Relay,
    waking: Alarm,
    stopping: threading.Event,
    report: Report,
    max_rows: int,
    report_turn: Callable[[], None],
) -> None:
    while not stopping.is_set():
        done = relay_once(opened, max_rows)
        report_turn()
        if done.rows:
            report(done)
        else:
            waking(stopping, _POLL_SECONDS)


def _claim(connection: Connection, max_rows: int, floor: _Floor) -> list[_Waiting]:
    """Lock the oldest rows that no other relay has locked; return those that may be sent, in their order."""
    begin = first = _begin(connection, floor)
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
        "%d users of the outbox are held back from row %d on: another relay has locked their rows and does not go on",
        len(held_back), first,
    )  # fmt: skip
    return []


def _begin(connection: Connection, floor: _Floor) -> int:
    """Return the sequence that a look begins at: 0 where it is time for one from the start of the table."""
    began = monotonic()
    if began < floor.due:
        return floor.sequence
    oldest = select(OUTBOX.c.sequence).order_by(OUTBOX.c.sequence).limit(1)
    floor.looked(connection.execute(oldest).scalar(), began)
    return 0


def _lock(connection: Connection, begin: int, max_rows: int, without: set[str]) -> list[_Waiting]:
    """Lock the oldest rows from sequence `begin` on that no other relay has locked and that are of other users."""
    columns = (OUTBOX.c.sequence, OUTBOX.c.aggregateid, OUTBOX.c.payload)
    wanted = [OUTBOX.c.sequence >= begin, *([OUTBOX.c.aggregateid.not_in(sorted(without))] if without else [])]
    oldest = select(*columns).where(*wanted).order_by(OUTBOX.c.sequence).limit(max_rows)
    return [_Waiting(*row) for row in connection.execute(oldest.with_for_update(skip_locked=True))]


def _present(connection: Connection, begin: int, last: int) -> list[tuple[int, str]]:
    """Return sequence and user_id of all committed rows of a range, locked or not."""
    columns = (OUTBOX.c.sequence, OUTBOX.c.aggregateid)
    rows = select(*columns).where(OUTBOX.c.sequence.between(begin, last)).order_by(OUTBOX.c.sequence)
    return [(sequence, user_id) for sequence, user_id in connection.execute(rows)]


def _in_order(locked: Sequence[_Waiting], present: Sequence[tuple[int, str]], held_back: set[str]) -> list[_Waiting]:
    """Return the locked rows before which no row of the same user is present that is not locked by us.

    Users with such a row are added to `held_back`.
    """
    ours = {row.sequence: row for row in locked}
    sendable: list[_Waiting] = []
    for sequence, user_id in present:
        if sequence not in ours:
            held_back.add(user_id)
        elif user_id not in held_back:
            sendable.append(ours[sequence])
    return sendable


def _send(opened: Relay, rows: Sequence[_Waiting]) -> int:
    """Send the rows and wait until all are acknowledged; return their bytes."""
    size = 0
    for row in rows:
        key = row.user_id.encode()
        with clients.translated(opened.kafka, f"sending row {row.sequence} of the outbox"):
            opened.delivery.send(Record(key, row.payload))
        size += len(key) + len(row.payload)
    with clients.translated(opened.kafka, f"sending {len(rows)} rows of the outbox"):
        opened.delivery.wait()
    return size


def _delete(connection: Connection, rows: Sequence[_Waiting]) -> None:
    """Delete by primary key, one by one: for a list MySQL may scan the table, into the locks of other relays."""
    if rows:
        one = delete(OUTBOX).where(OUTBOX.c.sequence == bindparam("sent"))
        connection.execute(one, [{"sent": row.sequence} for row in rows])
