"""Records are read as they were sent, and no batch exhausts memory or stops a reader (`not-blocked`)."""

import contextlib
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any, Self

import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st
from kafka.codec import snappy_encode
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from lz4.frame import LZ4FrameCompressor

from pipelines.bus import inflate as inflate_module
from pipelines.bus.records import is_client_supported
from pipelines.ingest.record_batches import to_columns
from tests.ingest.hostile_batches import ENCODERS, Records, build, guarded, polled
from tests.ingest.test_record_batches import RECORDS

_PLACE = 5


def _seen(records: list[Any]) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]


@given(RECORDS, st.integers(0, 4))
def test_records_are_those_of_the_client(records: Records, codec: int) -> None:
    """Valid batches are read like kafka-python reads them."""
    data = build(records, codec, _PLACE)
    assert _seen(guarded(data)) == _seen(list(DefaultRecordBatch(data)))


@given(RECORDS, st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=3))
def test_header_keys_that_are_not_utf8(records: Records, keys: list[bytes]) -> None:
    """Brokers accept them; the record is read with invalid bytes replaced, and its neighbours are unchanged."""
    headers = [(Key(key), b"1") for key in keys]
    record = (0, b"k", b"\xff", headers)
    read = guarded(build([*records, record, *records], 0, _PLACE))
    assert _seen(read)[: len(records)] == _seen(list(DefaultRecordBatch(build(records, 0, _PLACE))))
    assert [(r.key, r.value) for r in read] == [(k, v) for _, k, v, _ in [*records, record, *records]]
    key_of_value = dict(zip(keys, (key for key, _ in read[len(records)].headers), strict=True))
    assert all(text.encode() == key or "\ufffd" in text for key, text in key_of_value.items())


class Key(str):
    """A header key whose bytes are not UTF-8."""

    __slots__ = ("content",)

    def __new__(cls, content: bytes) -> Self:
        key = super().__new__(cls, "k" * len(content))
        key.content = content
        return key

    def encode(self, *_: str) -> bytes:
        return self.content


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_an_oversized_batch_is_one_record_without_a_value(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the last offset, like the dead letter in the lake; a reader continues after it (`nothing-lost`)."""
    monkeypatch.setattr(inflate_module, "MAX_DECOMPRESSED_BYTES", 100_000)
    bomb = build([(0, b"u", bytes(60_000), []), (0, b"u", bytes(60_000), [])], codec, 20)
    read = guarded(build([(0, b"u", b"calm", [])], codec, 10) + bomb + build([(0, b"u", b"after", [])], codec, 30))
    assert [(r.offset, r.value) for r in read] == [(10, b"calm"), (21, None), (30, b"after")]


@pytest.mark.slow
@pytest.mark.parametrize("codec", [1, 3, 4])
def test_decompression_memory_is_bounded(codec: int) -> None:
    """Memory grows by the limit, not by the decompressed size."""
    bomb = b"".join(_compressed(codec, 1024))
    tracemalloc.start()
    try:
        assert inflate_module.inflate(codec, memoryview(bomb)) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * inflate_module.MAX_DECOMPRESSED_BYTES


def _compressed(codec: int, megabytes: int) -> Iterator[bytes]:
    """Yield compressed zeros in chunks."""
    piece = bytes(1 << 20)
    if codec == 1:
        stream: Any = zlib.compressobj(1, wbits=31)
    elif codec == 3:
        stream = LZ4FrameCompressor()
        yield stream.begin()
    else:
        stream = zstandard.ZstdCompressor().compressobj()
    for _ in range(megabytes):
        yield stream.compress(piece)
    yield stream.flush()


@given(st.binary(max_size=3_000), st.integers(1, 4), st.integers(1, 3))
def test_decompression_round_trips(data: bytes, codec: int, times: int) -> None:
    """Compressed data round-trips; so do several frames or members, except in Snappy, which has none."""
    assume(data or codec != 2)
    compressed = ENCODERS[codec](data) * (1 if codec == 2 else times)
    assert inflate_module.inflate(codec, memoryview(compressed)) == data * (1 if codec == 2 else times)


@pytest.mark.parametrize("codec", [1, 3])
def test_empty_frames_are_limited(codec: int) -> None:
    """A megabyte of empty frames is rejected at once: copying the rest after each frame would take seconds."""
    empty = ENCODERS[codec](b"")
    assert inflate_module.inflate(codec, memoryview(empty * 100)) == b""
    with pytest.raises(ValueError, match="it has over 100 frames"):
        inflate_module.inflate(codec, memoryview(empty * 101))


@given(st.binary(max_size=200), st.integers(0, 7))
def test_decompression_of_any_bytes_returns_or_raises_value_error(data: bytes, codec: int) -> None:
    """Invalid data raises ValueError, whatever the codec's library raises."""
    with contextlib.suppress(ValueError):
        inflate_module.inflate(codec, memoryview(data))


def test_declared_size_of_a_snappy_block_is_checked() -> None:
    """Five bytes that declare four gigabytes allocate nothing."""
    assert inflate_module.inflate(2, memoryview(b"\xff\xff\xff\xff\x0f")) is None


def test_framed_streams_of_snappy_may_follow_each_other() -> None:
    """A broker accepts them, and Java's clients read them: their records are not lost (`nothing-lost`)."""
    streams = snappy_encode(b"first ") + snappy_encode(b"second")
    assert inflate_module.inflate(2, memoryview(streams)) == b"first second"


@given(RECORDS, st.integers(0, 1), st.integers(0, 3), st.integers(0, 2**40))
def test_messages_of_old_formats(records: Records, magic: int, codec: int, last_offset: int) -> None:
    """They match kafka-python's, in a compressed set too; the last one has the offset that the broker assigned."""
    assume((magic, codec) != (0, 3))
    data = _message_set(records, magic, codec, max(last_offset, len(records)))
    assert [(r.offset, r.key, r.value) for r in guarded(data)] == [
        (r.offset, r.key, r.value) for batch in _batches_of(data) for r in batch
    ]
    assert _seen(guarded(data)) == _seen(polled(data))


@given(RECORDS, st.integers(0, 1), st.integers(0, 3), st.randoms(use_true_random=False))
def test_invalid_messages_of_old_formats(records: Records, magic: int, codec: int, random: Any) -> None:
    """An invalid set is one record without a value; its lengths lead a reader neither backwards nor into a loop."""
    assume((magic, codec) != (0, 3))
    data = bytearray(_message_set(records, magic, codec, 100))
    for _ in range(random.randint(1, 3)):
        at = random.randrange(18, len(data))
        data[at : at + 4] = random.choice([b"\xff\xff\xff\xf4", b"\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])[
            : len(data) - at
        ]
    sealed = _sealed(bytes(data[: 12 + int.from_bytes(data[8:12], "big")]))
    records_read = [(r.offset, r.key, r.value) for r in guarded(sealed)]
    columns = to_columns(polled(sealed), {3: 0}, "id")
    rows = zip(*(columns.records[name].to_pylist() for name in ("offset", "key", "value")), strict=True)
    assert records_read == [*rows, *((offset, None, None) for offset in columns.unreadable["offset"].to_pylist())]


def test_an_oversized_message_set_is_one_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one dead letter, like any other batch, and its neighbours are read."""
    monkeypatch.setattr(inflate_module, "MAX_DECOMPRESSED_BYTES", 100_000)
    bomb = _message_set([(0, b"k", bytes(60_000), [])] * 2, 1, 1, 21)
    data = _message_set([(0, b"k", b"calm", [])], 1, 0, 10) + bomb + build([(0, b"k", b"after", [])], 0, 30)
    assert [(r.offset, r.value) for r in guarded(data)] == [(10, b"calm"), (21, None), (30, b"after")]
    columns = to_columns(polled(data), {3: 0}, "id")
    assert columns.records["offset"].to_pylist() == [10, 30]
    assert "decompresses to more than" in columns.unreadable["detail"][0].as_py()


def _message_set(records: Records, magic: int, codec: int, last_offset: int) -> bytes:
    """Return messages as kafka-python writes them, under the last offset that a broker gives their wrapper."""
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 24)
    first = last_offset - len(records) + 1
    for number, (timestamp, key, value, _) in enumerate(records):
        offset = number if codec and magic else first + number
        assert builder.append(offset, timestamp, key, value) is not None
    data = bytearray(builder.build())
    if codec:
        data[:8] = last_offset.to_bytes(8, "big")
    return bytes(data)


def _sealed(message: bytes) -> bytes:
    data = bytearray(message)
    data[12:16] = zlib.crc32(bytes(data[16:])).to_bytes(4, "big")
    return bytes(data)


def _batches_of(data: bytes) -> Iterator[Any]:
    batches = MemoryRecords(data)
    while (batch := batches.next_batch()) is not None:
        yield batch


def test_private_names_of_kafka_python_exist() -> None:
    """The installed kafka-python has what `bus/records.py` overrides, with the expected parameters."""
    assert is_client_supported()
