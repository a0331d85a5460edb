"""A hostile producer: sends bad records and record batches of every kind to one topic partition.

`Poisoner.send` sends a round of them and records the expected outcome: events that count once, dead letters at known
offsets, duplicates and conflicts without effect.
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
"""Schema ids: of a recursive schema, of an array of nulls, of a JSON schema, and an unknown one."""
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
"""Record times: unset, 1970, microseconds, nanoseconds, the limits of the calendar and of int64."""


def with_writers(settings: Settings, folder: Path) -> Settings:
    """Return settings with writer schemas that are expensive or dangerous to decode."""
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
    """Sends bad records, and counts them by expected outcome."""

    settings: Settings
    rng: random.Random
    sent: int = 0
    """Records and batches that the broker accepted."""
    distinct: int = 0
    """Distinct valid events among them."""
    letters: set[int] = field(default_factory=set[int])
    """Offsets that must be dead letters."""
    refused: int = 0
    """Batches that the broker refused: Apache Kafka validates them."""

    def send(self, *, bombs: bool) -> None:
        """Send a round of values, envelopes and invalid batches; with `bombs`, also ones that cost memory or time."""
        address = self.settings.kafka.bootstrap_servers
        assert address is not None
        with RawProducer(address) as producer:
            for value in (*_bad_values(), *(_expensive_values() if bombs else ())):
                self._send_bad(producer, _one(value, b"poison"), 0)
            for batch in _good_batches(self.rng):
                self._send_good(producer, batch)
            self._send_good(producer, _conflict(self.rng))
            for batch in _invalid_batches():
                self._send_bad(producer, batch, _last(batch))
            for batch in _bombs() if bombs else ():
                self._send_bad(producer, batch, _last(batch))

    def _send_bad(self, producer: RawProducer, batch: wire.Batch, delta: int) -> None:
        offset = self._produce(producer, batch)
        if offset is not None:
            self.letters.add(offset + delta)

    def _send_good(self, producer: RawProducer, batch: wire.Batch) -> None:
        """Send a batch twice: the second one is a duplicate."""
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
    """Return the offset delta of a batch's dead letter: its last one."""
    return max(0, batch.records - 1 if batch.last_offset_delta is None else batch.last_offset_delta)


def _bad_values() -> Iterable[bytes | None]:
    """Yield values that are not valid events."""
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


def _expensive_values() -> Iterable[bytes]:
    """Yield values that crash a decoder with SIGSEGV, or keep it busy for minutes."""
    yield _framed(_RECURSIVE, b"\x02" * 150_000)
    yield _framed(_ENDLESS, wire.zigzag(2**40) + b"\0")


def _good_batches(rng: random.Random) -> Iterable[wire.Batch]:
    """Yield valid events with odd user ids, times and headers, each with an id of its own."""
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
    """Return a batch with two events of one id and different payloads: the first one stands."""
    run = rng.randbytes(8).hex()
    first, second = (_event(f"conflict-{run}", metadata=[("rating", stars)]) for stars in ("1", "5"))
    return wire.batch_of([wire.record(first), wire.record(second, delta=1)], first_ms=_NOW_MS)


def _invalid_batches() -> Iterable[wire.Batch]:
    """Yield invalid batches with a correct CRC."""
    good = wire.batch_of([wire.record(b"v")], first_ms=_NOW_MS)
    yield from (replace(good, records=records, last_offset_delta=0) for records in (-1, 0, 2, 2**31 - 1))
    yield replace(good, body=good.body[:-1])
    yield replace(good, body=b"\xff" * 50)
    yield replace(good, body=b"no zstd at all", attributes=wire.ZSTD)
    yield replace(good, body=b"no gzip at all", attributes=wire.GZIP)
    yield wire.batch_of([wire.record(b"v", delta=-9)], first_ms=_NOW_MS)
    yield wire.batch_of([wire.record(b"v", delta=2**40)], first_ms=_NOW_MS)


def _bombs() -> Iterable[wire.Batch]:
    """Yield batches of a few kilobytes that decompress to many megabytes."""
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
