"""Records one by one are those that were sent, and no batch costs a reader its memory or its place (`not-blocked`)."""

import contextlib
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any, Self

import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from lz4.frame import LZ4FrameCompressor

from pipelines.bus import inflate as inflate_module
from pipelines.bus.records import knows_the_client
from pipelines.ingest.batches import to_columns
from tests.ingest.hostile_batches import ENCODERS, Records, build, guarded, polled
from tests.ingest.test_batches import RECORDS

_PLACE = 5


def _seen(records: list[Any]) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]


@given(RECORDS, st.integers(0, 4))
def test_records_are_those_of_the_client(records: Records, codec: int) -> None:
    """Nothing is different where nothing is wrong."""
    data = build(records, codec, _PLACE)
    assert _seen(guarded(data)) == _seen(list(DefaultRecordBatch(data)))


@given(RECORDS, st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=3))
def test_header_keys_that_are_no_text(records: Records, keys: list[bytes]) -> None:
    """Brokers take them; such a record is read, its key as far as it is text, and its neighbours are as they were."""
    headers = [(Key(key), b"1") for key in keys]
    strange = (0, b"k", b"\xff", headers)
    read = guarded(build([*records, strange, *records], 0, _PLACE))
    assert _seen(read)[: len(records)] == _seen(list(DefaultRecordBatch(build(records, 0, _PLACE))))
    assert [(r.key, r.value) for r in read] == [(k, v) for _, k, v, _ in [*records, strange, *records]]
    told = dict(zip(keys, (key for key, _ in read[len(records)].headers), strict=True))
    assert all(text.encode() == key or "\ufffd" in text for key, text in told.items())


class Key(str):
    """A key of other bytes than a text may have."""

    __slots__ = ("content",)

    def __new__(cls, content: bytes) -> Self:
        key = super().__new__(cls, "k" * len(content))
        key.content = content
        return key

    def encode(self, *_: str) -> bytes:
        return self.content


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_batch_that_would_burst_is_one_record_without_a_value(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands at the last offset, where the lake has its dead letter; a reader goes on behind it (`nothing-lost`)."""
    monkeypatch.setattr(inflate_module, "MOST_BYTES", 100_000)
    bomb = build([(0, b"u", bytes(60_000), []), (0, b"u", bytes(60_000), [])], codec, 20)
    read = guarded(build([(0, b"u", b"calm", [])], codec, 10) + bomb + build([(0, b"u", b"after", [])], codec, 30))
    assert [(r.offset, r.value) for r in read] == [(10, b"calm"), (21, None), (30, b"after")]


@pytest.mark.parametrize("codec", [1, 3, 4])
def test_a_gigabyte_is_not_made_of_a_megabyte(codec: int) -> None:
    """Memory grows by the limit, not by what the bytes would become."""
    bomb = b"".join(_compressed(codec, 1024))
    tracemalloc.start()
    try:
        assert inflate_module.inflate(codec, memoryview(bomb)) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * inflate_module.MOST_BYTES


def _compressed(codec: int, megabytes: int) -> Iterator[bytes]:
    """Yield zeros, compressed piece by piece."""
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
def test_inflating_is_what_the_codec_says(data: bytes, codec: int, times: int) -> None:
    """What was compressed comes back; frames and members one behind the other too, but for Snappy, which has none."""
    assume(data or codec != 2)
    compressed = ENCODERS[codec](data) * (1 if codec == 2 else times)
    assert inflate_module.inflate(codec, memoryview(compressed)) == data * (1 if codec == 2 else times)


@pytest.mark.parametrize("codec", [1, 3])
def test_frames_of_nothing_are_bounded(codec: int) -> None:
    """A megabyte of empty frames is refused at once: to copy what stands behind each of them took seconds."""
    empty = ENCODERS[codec](b"")
    assert inflate_module.inflate(codec, memoryview(empty * 100)) == b""
    with pytest.raises(ValueError, match="it has over 100 frames"):
        inflate_module.inflate(codec, memoryview(empty * 101))


@given(st.binary(max_size=200), st.integers(0, 7))
def test_inflating_anything_is_bytes_or_a_sentence(data: bytes, codec: int) -> None:
    """Bytes that no codec wrote are refused by one kind of error, whatever its library raises."""
    with contextlib.suppress(ValueError):
        inflate_module.inflate(codec, memoryview(data))


def test_a_block_of_snappy_says_beforehand_that_it_is_too_large() -> None:
    """Five bytes that promise four gigabytes set nothing aside for them."""
    assert inflate_module.inflate(2, memoryview(b"\xff\xff\xff\xff\x0f")) is None


@given(RECORDS, st.integers(0, 1), st.integers(0, 3), st.integers(0, 2**40))
def test_messages_of_old_formats(records: Records, magic: int, codec: int, last_offset: int) -> None:
    """They are those of kafka-python, in a compressed set too; the last one stands at the offset that a broker gave."""
    assume((magic, codec) != (0, 3))
    data = _message_set(records, magic, codec, max(last_offset, len(records)))
    assert [(r.offset, r.key, r.value) for r in guarded(data)] == [
        (r.offset, r.key, r.value) for batch in _batches_of(data) for r in batch
    ]
    assert _seen(guarded(data)) == _seen(polled(data))


@given(RECORDS, st.integers(0, 1), st.integers(0, 3), st.randoms(use_true_random=False))
def test_old_messages_that_are_broken(records: Records, magic: int, codec: int, random: Any) -> None:
    """A set that is not whole messages is one record without a value; its lengths lead nobody back, or on and on."""
    assume((magic, codec) != (0, 3))
    data = bytearray(_message_set(records, magic, codec, 100))
    for _ in range(random.randint(1, 3)):
        at = random.randrange(18, len(data))
        data[at : at + 4] = random.choice([b"\xff\xff\xff\xf4", b"\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])[
            : len(data) - at
        ]
    sealed = _sealed(bytes(data[: 12 + int.from_bytes(data[8:12], "big")]))
    seen = [(r.offset, r.key, r.value) for r in guarded(sealed)]
    columns = to_columns(polled(sealed), {3: 0}, "id")
    rows = zip(*(columns.records[name].to_pylist() for name in ("offset", "key", "value")), strict=True)
    assert seen == [*rows, *((offset, None, None) for offset in columns.unread["offset"].to_pylist())]


def test_a_set_of_old_messages_that_would_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one dead letter like any other batch, and its neighbours are read."""
    monkeypatch.setattr(inflate_module, "MOST_BYTES", 100_000)
    bomb = _message_set([(0, b"k", bytes(60_000), [])] * 2, 1, 1, 21)
    data = _message_set([(0, b"k", b"calm", [])], 1, 0, 10) + bomb + build([(0, b"k", b"after", [])], 0, 30)
    assert [(r.offset, r.value) for r in guarded(data)] == [(10, b"calm"), (21, None), (30, b"after")]
    columns = to_columns(polled(data), {3: 0}, "id")
    assert columns.records["offset"].to_pylist() == [10, 30]
    assert "becomes more than" in columns.unread["detail"][0].as_py()


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


def test_the_private_names_of_the_client_are_there() -> None:
    """What `bus/records.py` overrides is in the kafka-python that is installed, with the parameters that it had."""
    assert knows_the_client()
