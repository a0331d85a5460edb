"""Each codec under each attack on a record batch, on Apache Kafka: what the broker lets in, and what becomes of it."""

import struct
from collections.abc import Callable

import pytest

from pipelines.operate.audit import audit
from pipelines.settings import Settings
from tests.draining import assert_verified, drain_all, query, valid_records, with_ingest
from tests.ingest.hostile_batches import ENCODERS, build, rebuilt, varint
from tests.ingest.raw_producer import produce_raw
from tests.services.kafka_cluster import KafkaCluster

pytestmark = pytest.mark.jvm
Encode = Callable[[bytes], bytes]
Attack = Callable[[int, Encode, list[bytes]], bytes]
_NOW_MS = 1_772_539_200_000
_NO_HEADERS = b"\0"


def _record(delta: int, value: bytes | None, key: bytes = b"\2k", headers: bytes = _NO_HEADERS) -> bytes:
    content = varint(-1) if value is None else varint(len(value)) + value
    fields = b"\0\0" + varint(delta) + key + content + headers
    return varint(len(fields)) + fields


def _records(values: list[bytes], key: bytes = b"\2k", headers: bytes = _NO_HEADERS) -> bytes:
    return b"".join(_record(delta, value, key, headers) for delta, value in enumerate(values))


def _batch(payload: bytes, codec: int, **header: int) -> bytes:
    header = {"records_count": 3, "last_offset_delta": 2, "attributes": 0} | header
    return rebuilt(build([(_NOW_MS, None, b"", [])]), payload, **header | {"attributes": header["attributes"] | codec})


def _records_of(make: Callable[[list[bytes]], bytes], **header: int) -> Attack:
    """Return the attack of other records, or another header, in a batch that is compressed well."""
    return lambda codec, encode, values: _batch(encode(make(values)), codec, **header)


def _bytes_of(change: Callable[[bytes], bytes]) -> Attack:
    """Return the attack of changed bytes in a valid batch."""
    return lambda codec, encode, values: change(_batch(encode(_records(values)), codec))


def _streams(codec: int, encode: Encode, values: list[bytes]) -> bytes:
    """Compress each record for itself: the codecs are formats of streams, and several may follow each other."""
    return _batch(b"".join(encode(_record(delta, value)) for delta, value in enumerate(values)), codec)


_MANY_HEADERS = varint(1_000) + (varint(1) + b"h" + varint(-1)) * 1_000
_NOT_TEXT = varint(1) + varint(2) + b"\xff\xfe" + varint(1) + b"x"
_HUGE_HEADER = varint(1) + varint(1) + b"h" + varint(200_000) + bytes(200_000)
_ATTACKS: dict[str, tuple[Attack, str]] = {
    "nothing": (_records_of(_records), "3 3 3 3 3"),
    "several streams": (_streams, "3 3 3 - 3"),
    "bytes after the stream": (
        lambda codec, encode, values: _batch(encode(_records(values)) + b"\0", codec),
        "- d d d -",
    ),
    "a cut stream": (lambda codec, encode, values: _batch(encode(_records(values))[:-3], codec), "- - - - -"),
    "no stream": (lambda codec, _encode, _values: _batch(b"", codec), "- - - - -"),
    "another codec": (lambda codec, encode, values: _batch(encode(_records(values)), codec ^ 7), "- - - - -"),
    "a checksum": (_bytes_of(lambda batch: batch[:17] + bytes([batch[17] ^ 1]) + batch[18:]), "- - - - -"),
    "a format": (_bytes_of(lambda batch: batch[:16] + b"\3" + batch[17:]), "- - - - -"),
    "an epoch": (_bytes_of(lambda batch: batch[:12] + struct.pack(">i", 2**31 - 1) + batch[16:]), "3 3 3 3 3"),
    "a base offset": (_bytes_of(lambda batch: struct.pack(">q", 2**40) + batch[8:]), "- - - - -"),
    "more records": (_records_of(_records, records_count=4, last_offset_delta=3), "- - - - -"),
    "fewer records": (_records_of(_records, records_count=2, last_offset_delta=1), "- - - - -"),
    "a last offset": (_records_of(_records, last_offset_delta=2**31 - 1), "- - - - -"),
    "equal offsets": (_records_of(lambda values: b"".join(_record(0, value) for value in values)), "d - - - -"),
    "a maximum time": (_records_of(_records, max_timestamp=2**62), "3 3 3 3 3"),
    "a control batch": (_records_of(_records, attributes=0x20), "- - - - -"),
    "log-append time": (_records_of(_records, attributes=0x08), "3 3 3 3 3"),
    "unused attributes": (_records_of(_records, attributes=0x40C0), "3 3 3 3 3"),
    "null keys": (_records_of(lambda values: _records(values, varint(-1))), "3 3 3 3 3"),
    "a key shorter than null": (_records_of(lambda values: _records(values, varint(-2))), "d d d d d"),
    "null values": (_records_of(lambda _: b"".join(_record(delta, None) for delta in range(3))), "ddd ddd ddd ddd ddd"),
    "many headers": (_records_of(lambda values: _records(values, headers=_MANY_HEADERS)), "3 3 3 3 3"),
    "huge headers": (_records_of(lambda values: _records(values, headers=_HUGE_HEADER)), "3 3 3 3 3"),
    "header keys beyond UTF-8": (_records_of(lambda values: _records(values, headers=_NOT_TEXT)), "3 3 3 3 3"),
}
"""What is attacked, how, and what becomes of a batch of three events in none, gzip, snappy, lz4 and zstd: `-` if the
broker refuses it, 3 for three events, a `d` for each dead letter."""


@pytest.mark.parametrize("codec", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])
def test_each_attack_on_each_codec(kafka: KafkaCluster, settings: Settings, codec: int) -> None:
    """What a broker lets in is counted once or is a dead letter, and the other batches are events (`not-blocked`)."""
    topic = kafka.new_topic(retention_ms="-1")
    bus = with_ingest(settings.model_copy(update={"kafka": kafka.settings(topic=topic, partitions=1)}))
    accepted: list[str] = []
    for number, (name, (attack, _)) in enumerate(_ATTACKS.items()):
        values = [record.value or b"" for record in valid_records(range(3 * number, 3 * number + 3))]
        if produce_raw(bus.kafka, attack(codec, ENCODERS[codec], values)) == 0:
            accepted.append(name)
    drain_all(bus)
    events, letters = (
        dict(query(bus, f'SELECT "offset" // 3, count(*) FROM {table} GROUP BY ALL'))  # noqa: S608
        for table in ("events", "dead_letters")
    )
    found = dict.fromkeys(_ATTACKS, "-") | {
        name: str(events.get(batch, "")) + "d" * letters.get(batch, 0) for batch, name in enumerate(accepted)
    }
    assert found == {name: outcomes.split()[codec] for name, (_, outcomes) in _ATTACKS.items()}
    assert_verified(bus)
    assert audit(bus).passed
