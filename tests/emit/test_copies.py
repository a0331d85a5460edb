"""A copy on the dead-letter topic is complete, or truncated with a mark and its provenance; it blocks nothing."""

import logging
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.bus.topics import ensure_topic
from pipelines.emit.copies import (
    HEADERS_LEFT_OUT,
    KEY_TRUNCATED,
    MAX_COPY_BYTES,
    MAX_HEADERS,
    NULL_VALUE,
    TRUNCATED,
    Copy,
    CopyCounts,
    CopyWriter,
    open_copy_writer,
    record_bytes,
    truncate,
)
from pipelines.emit.producer import Record
from pipelines.errors import TransientError
from pipelines.settings import KafkaSettings, Settings
from tests.emit.proxied_broker import proxied_broker
from tests.emit.test_producer import read_topic
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import wait_for

PROVENANCE = [("karmalake.topic", b"events"), ("karmalake.topic_partition", b"0"), ("karmalake.offset", b"7")]


def copy_of(value: bytes | None, key: bytes | None = b"u", headers: list[tuple[str, bytes]] | None = None) -> Copy:
    return Copy(Record(key, value, headers or []), PROVENANCE, "events-0@7")


def _filled(max_size: int) -> st.SearchStrategy[bytes]:
    """Return bytes of any size alike: `st.binary` rarely returns enough of them to be truncated."""
    return st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.integers(0, max_size))


@given(
    st.none() | _filled(5_000),
    st.none() | _filled(5_000),
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=20), _filled(500)), max_size=50),
    st.integers(340, 6_000),
)
@example(b"v" * 5_000, None, [], 600)
@example(None, b"k" * 5_000, [], 600)
@example(None, None, [("h", b"x" * 500)] * 50, 600)
@example(b"v" * 5_000, b"k" * 5_000, [("h", b"x" * 500)] * 50, 6_000)
@example(b"v" * 5_000, b"k" * 5_000, [("h", b"x" * 50)] * 50, 340)
def test_a_copy_fits_and_marks_what_is_missing(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], max_bytes: int
) -> None:
    """For any record and limit, the copy fits, names the place, and each part is whole or marked with its size."""
    record = truncate(copy_of(value, key, headers), max_bytes)
    copied_headers = dict(record.headers)
    assert record_bytes(record) <= max_bytes
    assert set(PROVENANCE) <= set(record.headers)
    assert (value or b"").startswith(record.value or b"")
    assert (key or b"").startswith(record.key or b"")
    for original, copied, mark in ((value, record.value, TRUNCATED), (key, record.key, KEY_TRUNCATED)):
        expected = str(len(original or b"")).encode() if len(copied or b"") < len(original or b"") else None
        assert copied_headers.get(mark) == expected
    own_headers = [header for header in record.headers if not header[0].startswith("karmalake.")]
    assert len(headers) - len(own_headers) == int(copied_headers.get(HEADERS_LEFT_OUT, b"0"))
    assert (record.value is None) == (value is None and key is not None)


def test_a_copy_that_fits_is_complete() -> None:
    """It has every byte and no marker header."""
    record = truncate(copy_of(b"v" * 1000, headers=[("h", b"1")]), MAX_COPY_BYTES)
    assert record == Record(b"u", b"v" * 1000, [("h", b"1"), *PROVENANCE])


def test_reserved_headers_are_not_copied() -> None:
    """A header with the reserved prefix is omitted and counted, so that it cannot be forged."""
    record = truncate(copy_of(b"v", headers=[("karmalake.offset", b"99"), (TRUNCATED, b"5")]), MAX_COPY_BYTES)
    assert record.headers == [*PROVENANCE, (HEADERS_LEFT_OUT, b"2")]


def test_excess_headers_are_counted_instead_of_copied() -> None:
    """A copy of a record with very many headers costs its readers no more than others."""
    record = truncate(copy_of(b"v", headers=[("h", b"")] * 100_000), MAX_COPY_BYTES)
    assert len(record.headers) == MAX_HEADERS + len(PROVENANCE) + 1
    assert dict(record.headers)[HEADERS_LEFT_OUT] == b"99000"


@pytest.mark.jvm
@pytest.mark.parametrize("limit", [1_048_588, 200_000, 8 * 2**20])
def test_copies_fit_the_limit_of_the_topic(kafka: KafkaCluster, limit: int) -> None:
    """At the default limit of a topic, a smaller and a larger one: no copy is missing."""
    settings = kafka.settings(topic=kafka.new_topic(**{"max.message.bytes": str(limit)}))
    sizes = [10, 199_000, 1_048_000, 1_048_400, 3 * 2**20]
    with open_copy_writer(settings) as writer:
        written = writer.write([copy_of(b"\xff" * size) for size in sizes])
    records = read_topic(settings)
    fitting = [size for size in sizes if size < min(limit, MAX_COPY_BYTES) - 400]
    assert written == CopyCounts(published=len(sizes), truncated=len(sizes) - len(fitting))
    assert [len(record.value) for record in records[: len(fitting)]] == fitting
    for record, size in zip(records, sizes, strict=True):
        copied_headers = dict(record.headers)
        assert copied_headers["karmalake.offset"] == b"7"
        assert copied_headers.get(TRUNCATED) == (None if size in fitting else str(size).encode())
        assert len(record.value) >= min(size, min(limit, MAX_COPY_BYTES) - 600)


@pytest.mark.jvm
@pytest.mark.parametrize("limit", [100_000, 3_000])
def test_an_unknown_limit_is_found(kafka: KafkaCluster, limit: int) -> None:
    """If the topic's configuration may not be read, a copy is halved until the topic accepts it."""
    settings = kafka.settings(topic=kafka.new_topic(**{"max.message.bytes": str(limit)}))
    writer = CopyWriter(settings, MAX_COPY_BYTES)
    try:
        assert writer.write([copy_of(b"\xff" * 1_000_000), copy_of(b"small")]) == CopyCounts(2, 1)
        assert writer.max_bytes <= limit
        assert writer.write([copy_of(b"\xff" * 90_000)]) == CopyCounts(1, 1)
    finally:
        writer.close()
    truncated_value, *others = [record.value for record in read_topic(settings)][-3:]
    assert limit // 2 - 400 <= len(truncated_value) < limit
    assert others[0] == b"small"


@pytest.mark.jvm
def test_a_rejected_copy_is_counted_and_logged(kafka: KafkaCluster, caplog: pytest.LogCaptureFixture) -> None:
    """A topic whose limit is below the size of the provenance headers accepts no copy; the loop continues."""
    settings = kafka.settings(topic=kafka.new_topic(**{"max.message.bytes": "150"}))
    with open_copy_writer(settings) as writer, caplog.at_level(logging.WARNING):
        assert writer.write([copy_of(b"v" * 500), copy_of(b"w" * 500)]) == CopyCounts(refused=2)
    assert "rejects the copy of the dead letter at events-0@7" in caplog.text


@pytest.mark.jvm
def test_a_compacted_topic_rejects_only_copies_without_a_key(kafka: KafkaCluster) -> None:
    """Whatever the broker does not accept in a record, the other copies are written."""
    settings = kafka.settings(topic=kafka.new_topic(**{"cleanup.policy": "compact"}))
    with open_copy_writer(settings) as writer:
        copies = [copy_of(b"1"), copy_of(b"2", key=None), copy_of(b"3", key=b"w")]
        assert writer.write(copies) == CopyCounts(published=2, refused=1)


@pytest.mark.slow
@pytest.mark.usefixtures("broken_connections")
def test_an_outage_while_writing_rejects_no_copy(tmp_path: Path) -> None:
    """The broker stops answering a connected writer: the error is transient, and a later attempt writes the copies."""
    with proxied_broker(tmp_path) as (proxy, kafka), open_copy_writer(kafka) as writer:
        assert writer.write([copy_of(b"1")]) == CopyCounts(1)
        proxy.cut()
        with pytest.raises(TransientError):
            writer.write([copy_of(b"2"), copy_of(b"3")])
        proxy.heal()
        wait_for("the broker", lambda: _write_or_none(writer, [copy_of(b"2"), copy_of(b"3")]) == CopyCounts(2))
        assert {record.value for record in read_topic(kafka)} == {b"1", b"2", b"3"}


def _write_or_none(writer: CopyWriter, copies: list[Copy]) -> CopyCounts | None:
    try:
        return writer.write(copies)
    except TransientError:
        return None


def test_a_copy_without_key_and_value(settings_of_copies: KafkaSettings) -> None:
    """A producer cannot send such a record: a marker header says that the empty value stands for null."""
    with open_copy_writer(settings_of_copies) as writer:
        assert writer.write([copy_of(None, key=None), copy_of(None)]) == CopyCounts(2)
    values = {
        record.key: (record.value, dict(record.headers).get(NULL_VALUE)) for record in read_topic(settings_of_copies)
    }
    assert values == {None: (b"", b"true"), b"u": (None, None)}


def test_a_copy_that_cannot_be_encoded_is_rejected_alone(settings_of_copies: KafkaSettings) -> None:
    """A header that is not valid text: the other copies of the batch are written."""
    with open_copy_writer(settings_of_copies) as writer:
        copies = [copy_of(b"1"), copy_of(b"2", headers=[("\ud800", b"")]), copy_of(b"3")]
        assert writer.write(copies) == CopyCounts(published=2, refused=1)
    assert {record.value for record in read_topic(settings_of_copies)} == {b"1", b"3"}


def test_an_unreachable_broker_is_a_transient_error() -> None:
    """No copy is rejected: all are written again later."""
    unreachable = KafkaSettings(bootstrap_servers="127.0.0.1:1", topic="t", request_timeout_seconds=1)
    with pytest.raises(TransientError):
        CopyWriter(unreachable, MAX_COPY_BYTES).write([copy_of(b"v")])


@pytest.fixture
def settings_of_copies(settings: Settings) -> KafkaSettings:
    """Return the settings of an existing topic for copies."""
    ensure_topic(settings.kafka)
    return settings.kafka
