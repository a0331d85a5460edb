"""Records one by one are those that were sent, and no batch costs a reader its memory or its place (`not-blocked`)."""

import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any, Self

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from lz4.frame import LZ4FrameCompressor

from pipelines.emit import inflate as inflate_module
from pipelines.emit.records import BatchesAs, Guarded, knows_the_client
from tests.ingest.test_batches import RECORDS, Records, build

_PLACE = 5


def guarded(data: bytes) -> list[Any]:
    """Return what a consumer reads of these bytes of a fetch, record by record."""
    records: list[Any] = []
    batches = BatchesAs(MemoryRecords(data), Guarded)
    while (batch := batches.next_batch()) is not None:
        records += batch
    return records


def _seen(records: list[Any]) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]


@given(RECORDS, st.integers(0, 4))
def test_records_are_those_of_the_client(records: Records, codec: int) -> None:
    """Nothing is different where nothing is wrong."""
    data = build(records, codec, _PLACE)
    assert _seen(guarded(data)) == _seen(list(DefaultRecordBatch(data)))


@given(RECORDS, st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=3))
def test_header_keys_that_are_no_text(records: Records, keys: list[bytes]) -> None:
    """Brokers take them; such a record is read, with question marks, and its neighbours are as they were."""
    headers = [(Key(key), b"1") for key in keys]
    strange = (0, b"k", b"\xff", headers)
    read = guarded(build([*records, strange, *records], 0, _PLACE))
    assert _seen(read)[: len(records)] == _seen(list(DefaultRecordBatch(build(records, 0, _PLACE))))
    assert [(r.key, r.value) for r in read] == [(k, v) for _, k, v, _ in [*records, strange, *records]]
    told = dict(zip(keys, (key for key, _ in read[len(records)].headers), strict=True))
    assert all(text.encode() == key or "?" in text for key, text in told.items())


class Key(str):
    """A key of other bytes than a text may have."""

    __slots__ = ("content",)

    def __new__(cls, content: bytes) -> Self:
        key = super().__new__(cls, "k" * len(content))
        key.content = content
        return key

    def encode(self, *_: str) -> bytes:
        return self.content


@pytest.mark.parametrize("codec", [1, 3, 4])
def test_a_batch_that_would_burst_has_offsets_and_no_values(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader goes on behind it: its records are no events (`nothing-lost`)."""
    monkeypatch.setattr(inflate_module, "MOST_BYTES", 100_000)
    bomb = build([(0, b"u", bytes(60_000), []), (0, b"u", bytes(60_000), [])], codec, 20)
    read = guarded(build([(0, b"u", b"calm", [])], codec, 10) + bomb + build([(0, b"u", b"after", [])], codec, 30))
    assert [(r.offset, r.value) for r in read] == [(10, b"calm"), (20, None), (21, None), (30, b"after")]


@pytest.mark.parametrize("codec", [1, 3, 4])
def test_a_gigabyte_is_not_made_of_a_megabyte(codec: int) -> None:
    """Memory grows by the limit, not by what the bytes would become."""
    bomb = b"".join(_compressed(codec, 1024))
    tracemalloc.start()
    try:
        assert inflate_module.inflate(codec, bomb) is None
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


def test_the_private_names_of_the_client_are_there() -> None:
    """What `emit/records.py` overrides is in the kafka-python that is installed, with the parameters that it had."""
    assert knows_the_client()
