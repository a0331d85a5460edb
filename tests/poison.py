"""A hostile producer: among the events of others, into one topic partition, poison of every kind, by raw batches.

`Poisoner.send` sends a round of it and remembers what has to become of each: events that count once, dead letters at
known offsets, duplicates and conflicts that change nothing.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.settings import Settings
from tests.fuzz import wire
from tests.fuzz.raw_producer import RawProducer, RefusedError

TOPIC_PARTITION = 0
_MIB = 1024 * 1024
_NOW_MS = int(datetime.now(UTC).timestamp() * 1000)
_VARINT = b"\xff" * 9 + b"\x01"
_RECURSIVE, _ENDLESS, _DEEP, _UNKNOWN = 7, 8, 9, 4_000_000_000
"""Ids of schemas: of writers that nest without end, of arrays of nothing, of JSON, and of none."""
_ODD_USERS = (
    "\x1b]0;title\x07",
    "=cmd|' /C calc'!A0",
    "![x](http://127.0.0.1:1/x.png)",
    "\u202egnirts",
    "a\x00b",
    " ",
    "../..",
)
_TIMES_MS = (-1, 0, _NOW_MS * 1_000, _NOW_MS * 10**6, 253402300799000, 253402300800000, 2**63 - 1)
"""Of records: none, 1970, microseconds, nanoseconds, the ends of the calendar and of the number."""


def with_writers(settings: Settings, folder: Path) -> Settings:
    """Return settings with writers' schemas that are hard on decoders."""
    folder.mkdir(parents=True, exist_ok=True)
    own = json.loads(OWN_SCHEMA)
    first = {"name": "next", "type": ["null", own["name"]]}
    recursive = own | {"fields": [first, *own["fields"], {"name": "b", "type": "bytes"}]}
    endless = own | {"fields": [{"name": "x", "type": {"type": "array", "items": "null"}}, *own["fields"]]}
    (folder / f"{_RECURSIVE}.avsc").write_text(json.dumps(recursive), "utf-8")
    (folder / f"{_ENDLESS}.avsc").write_text(json.dumps(endless), "utf-8")
    (folder / f"{_DEEP}.json").write_text("{}", "utf-8")
    return settings.model_copy(update={"contract": settings.contract.model_copy(update={"schemas_dir": folder})})


@dataclass(slots=True)
class Poisoner:
    """Sends poison, and keeps the account of it."""

    settings: Settings
    rng: random.Random
    sent: int = 0
    """Records and batches of any kind that the broker took."""
    distinct: int = 0
    """Valid events among them, each counted once."""
    letters: set[int] = field(default_factory=set[int])
    """Offsets that have to be dead letters."""
    refused: int = 0
    """Batches that the broker did not take: Apache Kafka looks into them."""

    def send(self, *, bombs: bool) -> None:
        """Send a round: values, envelopes, batches that lie; and with `bombs`, what costs memory or time."""
        address = self.settings.kafka.bootstrap_servers
        assert address is not None
        with RawProducer(address) as producer:
            for value in (*_bad_values(), *(_values_of_hard_writers() if bombs else ())):
                self._to_letters(producer, _one(value, b"poison"), 0)
            for batch in _good_batches(self.rng):
                self._to_events(producer, batch)
            self._to_events(producer, _conflict(self.rng))
            for batch in _lying_batches():
                self._to_letters(producer, batch, _last(batch))
            for batch in _bombs() if bombs else ():
                self._to_letters(producer, batch, _last(batch))

    def _to_letters(self, producer: RawProducer, batch: wire.Batch, delta: int) -> None:
        offset = self._produce(producer, batch)
        if offset is not None:
            self.letters.add(offset + delta)

    def _to_events(self, producer: RawProducer, batch: wire.Batch) -> None:
        """Send it twice: the second time is a duplicate."""
        self.distinct += self._produce(producer, batch) is not None
        self._produce(producer, batch)

    def _produce(self, producer: RawProducer, batch: wire.Batch) -> int | None:
        try:
            offset = producer.send(self.settings.kafka.topic, TOPIC_PARTITION, bytes(batch))
        except RefusedError:
            self.refused += 1
            return None
        self.sent += 1
        return offset


def _one(value: bytes | None, key: bytes | None, headers: wire.Headers = (), ms: int = _NOW_MS) -> wire.Batch:
    return wire.batch_of([wire.record(value, key, headers=headers)], first_ms=ms)


def _last(batch: wire.Batch) -> int:
    """Return where the dead letter of a batch stands: at its last offset."""
    return max(0, batch.records - 1 if batch.last_offset_delta is None else batch.last_offset_delta)


def _bad_values() -> Iterable[bytes | None]:
    """Yield values that are no events."""
    yield from (bytes([field]) + _VARINT for field in (0x0A, 0x12, 0x1A, 0x22, 0x2A))
    yield from (None, b"", b"\xff" * 40, b"\xff" * 900_000, b"[" * 150_000, b"\x0a\x02\xff\xfe")
    yield _framed(_UNKNOWN, b"x")
    yield _framed(_DEEP, b"[" * 300_000)
    yield _framed(_DEEP, b'{"event_id":' * 3_000)
    now = datetime.now(UTC)
    for changes in (
        {"event_id": "x" * 70_000},
        {"user_id": "x" * 300},
        {"action_type": "x" * 300},
        {"metadata": [("k", "x" * 70_000)]},
        {"event_id": ""},
        {"event_time": datetime(1999, 1, 1, tzinfo=UTC)},
        {"event_time": now + timedelta(days=400)},
        {"event_time": datetime(9999, 12, 31, tzinfo=UTC)},
    ):
        yield _event("never", **changes)


def _values_of_hard_writers() -> Iterable[bytes]:
    """Yield values that end a decoder by SIGSEGV, or hold it for minutes."""
    yield _framed(_RECURSIVE, b"\x02" * 150_000)
    yield _framed(_ENDLESS, wire.zigzag(2**40) + b"\0")


def _good_batches(rng: random.Random) -> Iterable[wire.Batch]:
    """Yield valid events of odd people, in odd envelopes; each has an id of its own."""
    run = rng.randbytes(8).hex()
    for number, user in enumerate(_ODD_USERS):
        yield _one(_event(f"odd-{run}-{number}", user_id=user), b"k")
    for number, ms in enumerate(_TIMES_MS):
        yield _one(_event(f"time-{run}-{number}"), b"k", ms=ms)
    headers = [(b"\xff\xfe", b"1"), (b"", None), (b"\x1b[2J", b"\xff"), *((b"h%d" % n, b"v") for n in range(200))]
    yield _one(_event(f"headers-{run}"), b"k", headers=headers)
    yield _one(_event(f"keyless-{run}"), None)
    nothing = [("target_event_id", f"nothing-{run}")]
    yield _one(_event(f"retraction-{run}", action_type="RatingRetracted", metadata=nothing), b"k")


def _conflict(rng: random.Random) -> wire.Batch:
    """Return a batch with two events of one id that say different things: the first one stands."""
    run = rng.randbytes(8).hex()
    first, second = (_event(f"conflict-{run}", metadata=[("rating", stars)]) for stars in ("1", "5"))
    return wire.batch_of([wire.record(first), wire.record(second, delta=1)], first_ms=_NOW_MS)


def _lying_batches() -> Iterable[wire.Batch]:
    """Yield batches with a CRC that is right and nothing else that is."""
    good = wire.batch_of([wire.record(b"v")], first_ms=_NOW_MS)
    yield from (replace(good, records=records, last_offset_delta=0) for records in (-1, 0, 2, 2**31 - 1))
    yield replace(good, body=good.body[:-1])
    yield replace(good, body=b"\xff" * 50)
    yield replace(good, body=b"no zstd at all", attributes=wire.ZSTD)
    yield replace(good, body=b"no gzip at all", attributes=wire.GZIP)
    yield wire.batch_of([wire.record(b"v", delta=-9)], first_ms=_NOW_MS)
    yield wire.batch_of([wire.record(b"v", delta=2**40)], first_ms=_NOW_MS)


def _bombs() -> Iterable[wire.Batch]:
    """Yield batches of a few kilobytes that are very large inside."""
    yield wire.batch_of([wire.record(bytes(127 * _MIB))], codec=wire.ZSTD, first_ms=_NOW_MS)
    yield wire.batch_of([wire.record(bytes(140 * _MIB))], codec=wire.ZSTD, first_ms=_NOW_MS)
    yield wire.batch_of([wire.record(b"")] * 20 + [wire.record(bytes(160 * _MIB))], codec=wire.ZSTD, first_ms=_NOW_MS)


def _framed(schema_id: int, value: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + value


def _event(name: str, **changes: object) -> bytes:
    row = {
        "event_id": name,
        "user_id": "victim",
        "action_type": "DriverRated",
        "event_time": datetime.now(UTC) - timedelta(hours=1),
        "metadata": [("rating", "5")],
    }
    [value] = encode(pa.Table.from_pylist([row | changes], EVENT)).to_pylist()
    return value
