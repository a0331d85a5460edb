"""Record batches become columns equal to kafka-python's records; an invalid one is a dead letter."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch

from pipelines.bus import inflate as inflate_module
from pipelines.bus import records as records_module
from pipelines.contract.rejection import Reason
from pipelines.contract.times import bus_times
from pipelines.ingest import record_batches as batches_module
from pipelines.ingest.queue import Message, QueueSource
from pipelines.ingest.record_batches import to_columns
from pipelines.ingest.scan import scan_records
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.conftest import REPOSITORY
from tests.draining import contents, drain_all, send, with_ingest
from tests.fuzz.__main__ import checked_environment
from tests.ingest.hostile_batches import (
    HEADER,
    Records,
    assert_readers_agree,
    build,
    guarded,
    hostile,
    polled,
    rebuilt,
    varint,
)

NOW_MS = 1_772_366_400_000

HEADERS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3)
RECORDS = st.lists(
    st.tuples(
        st.integers(NOW_MS, 2**42), st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=200), HEADERS
    ),
    min_size=1,
    max_size=20,
)


@given(st.lists(RECORDS, min_size=1, max_size=3), st.integers(0, 4), st.integers(0, 2**40), st.integers(0, 25))
def test_columns_equal_the_clients_records(parts: list[Records], codec: int, base_offset: int, skipped: int) -> None:
    """Keys, values, headers, times and offsets equal those of kafka-python, from the start offset on."""
    built = [build(records, codec, base_offset + 100 * number) for number, records in enumerate(parts)]
    start = base_offset + skipped
    columns = to_columns(polled(b"".join(built)), {3: start}, "id").records
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


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_decompression_bomb_is_one_dead_letter_with_its_range(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the last offset, and its detail names the offsets, the number of records and the cause."""
    monkeypatch.setattr(inflate_module, "MAX_DECOMPRESSED_BYTES", 100_000)
    good = build([(0, b"u", b"good", [])], codec, 10)
    bomb = build([(NOW_MS, b"u", bytes(60_000), []), (NOW_MS, b"u", bytes(60_000), [])], codec, 20)
    columns = to_columns(polled(good + bomb + build([(0, b"u", b"after", [])], codec, 30)), {3: 10}, "id")
    assert columns.records["offset"].to_pylist() == [10, 30]
    assert columns.records["value"].to_pylist() == [b"good", b"after"]
    [letter] = columns.unreadable.to_pylist()
    assert (letter["topic_partition"], letter["offset"], letter["reason"]) == (3, 21, Reason.UNDECODABLE)
    assert "offsets 20 to 21 (2 records by its header" in letter["detail"]
    assert "was not decompressed" in letter["detail"]
    assert letter["value"] == bomb[HEADER.size :]
    assert letter["bus_time"] == datetime.fromtimestamp(NOW_MS / 1000, UTC)


def test_the_saved_bytes_of_a_batch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead letter has the first megabyte of its batch, for inspection."""
    monkeypatch.setattr(batches_module, "_MAX_SAVED_BYTES", 1_000)
    columns = to_columns(polled(rebuilt(build([(0, b"k", bytes(5_000), [])]), records_count=2)), {3: 0}, "id")
    assert [len(value) for value in columns.unreadable["value"].to_pylist()] == [1_000]


_WRONG_HEADERS = {
    "negative count": {"records_count": -1},
    "more records than there are": {"records_count": 3},
    "fewer records than there are": {"records_count": 1},
    "no records": {"records_count": 0},
    "a huge count": {"records_count": 2**31 - 1},
    "a last offset before records": {"last_offset_delta": 0},
    "a last offset before the first": {"last_offset_delta": -5},
    "an unknown codec": {"attributes": 7},
    "another codec": {"attributes": 4},
}


@pytest.mark.parametrize("header", _WRONG_HEADERS.values(), ids=_WRONG_HEADERS)
def test_a_wrong_batch_header(header: dict[str, int]) -> None:
    """The batch is one dead letter, and the batches around it are read (`not-blocked`)."""
    two = build([(0, b"k", b"v", []), (0, b"k", b"w", [])], base_offset=20)
    before, after = (build([(0, b"k", b"good", [])], base_offset=at) for at in (10, 30))
    columns = assert_readers_agree(before + rebuilt(two, **header) + after)
    assert columns.records["offset"].to_pylist() == [10, 30]
    assert columns.unreadable["reason"].to_pylist() == [Reason.UNDECODABLE]
    assert 20 <= columns.unreadable["offset"][0].as_py() <= 21


def test_a_compacted_batch_is_valid() -> None:
    """Compaction leaves gaps and keeps the last offset; a batch without records is empty, not invalid."""
    payload = build([(NOW_MS, b"k", b"a", []), (NOW_MS, b"k", b"b", []), (NOW_MS, b"k", b"c", [])])
    first, _, last = _parts(payload, 3)
    columns = assert_readers_agree(rebuilt(payload, first + last, records_count=2, last_offset_delta=7))
    assert (columns.records["offset"].to_pylist(), len(columns.unreadable)) == ([0, 2], 0)
    assert polled(rebuilt(payload, first + last, records_count=2, last_offset_delta=7))[0].offset == 7
    assert len(assert_readers_agree(rebuilt(payload, b"", records_count=0)).unreadable) == 0


def _parts(batch: bytes, count: int) -> list[bytes]:
    payload = batch[HEADER.size :]
    size = len(payload) // count
    return [payload[size * n : size * (n + 1)] for n in range(count)]


def test_records_with_equal_offsets_are_invalid() -> None:
    """Offsets are unique: a batch in which two records have the same one is a dead letter."""
    batch = build([(0, b"k", b"v", []), (0, b"k", b"v", [])])
    first, _ = _parts(batch, 2)
    columns = assert_readers_agree(rebuilt(batch, first + first))
    assert (len(columns.records), len(columns.unreadable)) == (0, 1)


@pytest.mark.parametrize("of_one", [True, False])
def test_headers_are_bounded(monkeypatch: pytest.MonkeyPatch, *, of_one: bool) -> None:
    """A header takes two bytes, so a megabyte of zstd may hold millions: their number per batch is limited."""
    for module in (records_module, batches_module):
        monkeypatch.setattr(module, "MAX_BATCH_HEADERS", 10)
    counts = (11, 0) if of_one else (6, 5)
    batch = build([(0, b"k", b"v", [("", None)] * count) for count in counts])
    assert len(assert_readers_agree(batch).unreadable) == 1
    assert len(assert_readers_agree(build([(0, b"k", b"v", [("", None)] * 5)] * 2)).unreadable) == 0


_TIMES = {
    "microseconds": NOW_MS * 1_000,
    "nanoseconds": NOW_MS * 1_000_000,
    "none": -1,
    "zero": 0,
    "the largest": 2**63 - 1,
    "the smallest": -(2**63),
    "seconds": NOW_MS // 1_000,
}


@pytest.mark.parametrize("stamped", [0, 8], ids=["producer's", "broker's"])
@pytest.mark.parametrize("time", _TIMES.values(), ids=_TIMES)
def test_an_invalid_record_time_is_null(time: int, stamped: int) -> None:
    """It is null, whichever header field has it; nothing overflows."""
    batch = rebuilt(build([(NOW_MS, b"k", b"v", [])]), attributes=stamped, first_timestamp=time, max_timestamp=time)
    assert assert_readers_agree(batch).records["bus_time"].to_pylist() == [None]


@pytest.mark.parametrize("delta", [2**63 - 1, -(2**63), 2**62 + 1, -(2**62) - 1])
def test_a_time_delta_does_not_overflow(delta: int) -> None:
    """A delta out of range gives null, not another time."""
    batch = build([(NOW_MS, b"k", b"v", [])])
    payload = bytearray(batch[HEADER.size :])
    payload[2:3] = varint(delta)
    payload[0:1] = varint(len(payload) - 1)
    for first in (NOW_MS, NOW_MS - delta & 2**63 - 1, -(2**63), 2**63 - 1):
        columns = assert_readers_agree(rebuilt(batch, bytes(payload), first_timestamp=first))
        assert columns.records["bus_time"].equals(pa.chunked_array([bus_times([first + delta])]))


@given(st.integers(0, 2**40))
def test_a_mutated_batch_is_valid_or_one_dead_letter(seed: int) -> None:
    """It never raises, and every reader sees the same (`nothing-lost`)."""
    before, after = (build([(0, b"k", b"good", [])], base_offset=at) for at in (0, 2**50))
    columns = assert_readers_agree(before + hostile(seed) + after)
    assert {0, 2**50} <= set(columns.records["offset"].to_pylist())
    assert len(columns.unreadable) <= 1


@pytest.mark.slow
def test_no_access_is_out_of_bounds() -> None:
    """The compiled loops run with every access checked."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.ingest.hostile_batches", "2000", "0"],
        env=checked_environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "2000 batches" in run.stdout


@given(RECORDS, st.data())
def test_broken_bytes_are_never_read_beyond_their_end(records: Records, data: st.DataObject) -> None:
    """Cut or overwritten bytes are refused, or are other records that lie within the bytes."""
    payload = bytearray(build(records)[HEADER.size :])
    for _ in range(data.draw(st.integers(0, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = np.frombuffer(bytes(payload[: data.draw(st.integers(0, len(payload)))]), np.uint8)
    fields, valid = np.zeros((8, len(records)), np.int64), np.zeros(1, bool)
    scan_records(cut, np.array([len(cut)]), np.array([len(records)]), np.array([len(records)]), 100, fields, valid)
    if valid[0]:
        assert (fields[[2, 4]] + np.maximum(fields[[3, 5]], 0) <= len(cut)).all()


def test_header_keys_that_are_not_utf8_do_not_block() -> None:
    """Kafka does not check header keys; a record with a key that is not UTF-8 is read as usual (`not-blocked`)."""
    data = build([(0, b"k", b"v", [("ab", b"1")])]).replace(b"ab", b"\xff\xfe")
    data = rebuilt(data)
    [headers] = to_columns(polled(data), {3: 0}, "id").records["headers"].to_pylist()
    assert headers == [{"key": "\ufffd\ufffd", "value": b"1"}]
    assert [record.headers for record in guarded(data)] == [[("\ufffd\ufffd", b"1")]]


def test_an_unsupported_client_returns_single_records(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lake is the same, and a log line names the slower path."""
    bus = with_ingest(settings)
    send(bus, simulate(3, 500, rates=FaultRates(duplicates=0.1, malformed=0.05)).records)
    drain_all(bus)
    other = bus.model_copy(update={"data_dir": tmp_path / "one-by-one"})
    monkeypatch.setattr(records_module, "is_client_supported", lambda: False)
    drain_all(other)
    assert contents(other) == contents(bus)
    assert "records are read by its own decoder" in caplog.text


def test_a_message_of_a_queue_without_a_time(settings: Settings) -> None:
    """The times of a queue's messages have the bounds of record times."""
    client: Any = SimpleNamespace(name="sqs:q", place="here")
    source = QueueSource(client, settings.ingest, settings.contract)
    messages = [Message(b"v", time, None) for time in (0, -1, NOW_MS, NOW_MS * 1_000, 2**70)]
    times = source._records(messages, 0)["bus_time"].to_pylist()
    assert times == [None, None, datetime.fromtimestamp(NOW_MS / 1000, UTC), None, None]
