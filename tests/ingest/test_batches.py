"""Record batches become columns as kafka-python's own objects say, and broken ones are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from pipelines.emit import inflate as inflate_module
from pipelines.emit import records as records_module
from pipelines.emit.records import BatchesAs
from pipelines.emit.simulator import Rates, simulate
from pipelines.ingest.batches import _Undivided, to_columns
from pipelines.ingest.scan import scan_records
from pipelines.settings import Settings
from tests.draining import contents, drain_all, send, with_ingest

Records = list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]]

HEADERS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3)
RECORDS = st.lists(
    st.tuples(st.integers(0, 2**40), st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=200), HEADERS),
    min_size=1,
    max_size=20,
)


def build(records: Records, codec: int = 0, base_offset: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
    for delta, (timestamp, key, value, headers) in enumerate(records):
        assert builder.append(delta, timestamp, key, value, headers) is not None
    data = builder.build()
    data[:8] = base_offset.to_bytes(8, "big")  # the CRC does not cover it: brokers write it
    return bytes(data)


def polled(data: bytes) -> list[ConsumerRecord]:
    """Return what a consumer hands over for these bytes of a fetch."""
    items: list[ConsumerRecord] = []
    records: Any = BatchesAs(MemoryRecords(data), _Undivided)
    while (batch := records.next_batch()) is not None:
        items += [
            ConsumerRecord("t", 3, -1, r.offset, r.timestamp, 0, r.key, r.value, [], None, 0, 0, 0) for r in batch
        ]
    return items


@given(st.lists(RECORDS, min_size=1, max_size=3), st.integers(0, 4), st.integers(0, 2**40), st.integers(0, 25))
def test_says_what_the_client_says(parts: list[Records], codec: int, base_offset: int, skipped: int) -> None:
    """Keys, values, headers, times and offsets are those of kafka-python's own loop, from the start offset on."""
    built = [build(records, codec, base_offset + 100 * number) for number, records in enumerate(parts)]
    start = base_offset + skipped
    columns = to_columns(polled(b"".join(built)), {3: start}, "id", 0)
    expected = [record for data in built for record in DefaultRecordBatch(data) if record.offset >= start]
    assert columns["offset"].to_pylist() == [record.offset for record in expected]
    assert columns["key"].to_pylist() == [record.key for record in expected]
    assert columns["value"].to_pylist() == [record.value for record in expected]
    assert [int(time.timestamp() * 1000 + 0.5) for time in columns["bus_time"].to_pylist()] == [
        record.timestamp for record in expected
    ]
    assert [[(h["key"], h["value"]) for h in row] for row in columns["headers"].to_pylist()] == [
        record.headers for record in expected
    ]


@pytest.mark.parametrize("codec", [1, 3, 4])
def test_a_batch_that_would_burst_is_accounted_for_and_not_read(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its offsets is there, is no event, and says why; others are read (`nothing-lost`, `not-blocked`)."""
    monkeypatch.setattr(inflate_module, "MOST_BYTES", 100_000)
    calm = build([(0, b"u", b"calm", [])], codec, 10)
    bomb = build([(0, b"u", bytes(60_000), []), (0, b"u", bytes(60_000), [])], codec, 20)
    columns = to_columns(polled(calm + bomb + build([(0, b"u", b"after", [])], codec, 30)), {3: 10}, "id", 0)
    assert columns["offset"].to_pylist() == [10, 20, 21, 30]
    first, unread, empty, last = columns["value"].to_pylist()
    assert (first, empty, last) == (b"calm", b"", b"after")
    assert unread == bomb[DefaultRecordBatch.HEADER_STRUCT.size :]
    assert [len(row) for row in columns["headers"].to_pylist()] == [0, 1, 1, 0]
    assert to_columns(polled(bomb), {3: 21}, "id", 0)["offset"].to_pylist() == [21]


@given(RECORDS, st.data())
def test_broken_bytes_are_never_read_beyond_their_end(records: Records, data: st.DataObject) -> None:
    """Cut or overwritten bytes are refused, or are other whole records that all lie within the bytes."""
    whole = bytearray(build(records)[DefaultRecordBatch.HEADER_STRUCT.size :])
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = np.frombuffer(bytes(whole[: data.draw(st.integers(0, len(whole)))]), np.uint8)
    fields = np.zeros((8, len(records)), np.int64)
    whole_batches = scan_records(cut, np.array([len(cut)]), np.array([len(records)]), fields)
    if whole_batches == 1:
        assert (fields[[2, 4]] + np.maximum(fields[[3, 5]], 0) <= len(cut)).all()


def test_a_batch_that_claims_more_records_than_it_holds_is_refused() -> None:
    """The error names the place; nothing of the batch becomes a row."""
    data = bytearray(build([(0, b"k", b"v", [])], base_offset=7))
    data[57:61] = (2**31 - 1).to_bytes(4, "big")
    with pytest.raises(CorruptRecordError, match="t-3@7"):
        to_columns(polled(bytes(data)), {3: 0}, "id", 0)


def test_header_keys_that_are_no_text_do_not_block() -> None:
    """Kafka does not check that a header's key is UTF-8; such a record is read like any other (`not-blocked`)."""
    data = build([(0, b"k", b"v", [("ab", b"1")])]).replace(b"ab", b"\xff\xfe")
    [headers] = to_columns(polled(data), {3: 0}, "id", 0)["headers"].to_pylist()
    assert headers == [{"key": "\ufffd\ufffd", "value": b"1"}]


def test_a_client_without_them_hands_over_records(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lake is the same, and a notice says that it took longer."""
    bus = with_ingest(settings)
    send(bus, simulate(3, 500, rates=Rates(duplicates=0.1, malformed=0.05)).records)
    drain_all(bus)
    other = bus.model_copy(update={"data_dir": tmp_path / "one-by-one"})
    monkeypatch.setattr(records_module, "knows_the_client", lambda: False)
    drain_all(other)
    assert contents(other) == contents(bus)
    assert "records are read one by one" in caplog.text
