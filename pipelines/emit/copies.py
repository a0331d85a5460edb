"""Copies of dead letters on a Kafka topic, each truncated to the topic's size limit.

A copy is a notification; its headers say where the original is. So a copy that is too large is truncated and marked,
and one that the topic rejects even then is counted and logged: it never blocks the copies after it.
"""

import contextlib
import logging
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from kafka import errors
from kafka.errors import KafkaError

from pipelines.bus.clients import translate_errors
from pipelines.bus.topics import Topic, ensure_topic
from pipelines.emit.producer import BulkProducer, Record
from pipelines.errors import KarmalakeError
from pipelines.settings import KafkaSettings

_LOG = logging.getLogger(__name__)
RESERVED_PREFIX = "karmalake."
"""Prefix of karmalake's headers. Headers of the original with this prefix are omitted: they are untrusted."""
TRUNCATED = "karmalake.truncated"
"""Marks a truncated value: the size of the original in bytes."""
KEY_TRUNCATED = "karmalake.key_truncated"
HEADERS_LEFT_OUT = "karmalake.headers_left_out"
"""Marks headers that are not in the copy: how many."""
NULL_VALUE = "karmalake.null_value"
"""Marks an empty value that stands for null: a producer sends no record with neither key nor value."""
MAX_HEADERS = 1_000
"""Headers of the original that are copied."""
MAX_COPY_BYTES = 1024 * 1024
"""Largest copy; also the client's largest request."""
_MIN_COPY_BYTES = 1024
"""A copy is not truncated further than this."""
_RECORD_BYTES, _HEADER_BYTES = 128, 10
"""Upper bounds of the format's overhead per record and per header."""
_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
_REJECTIONS = (
    *_TOO_LARGE,
    errors.InvalidRecordError,  # pyright: ignore[reportAttributeAccessIssue] - outdated stubs
    errors.InvalidTimestampError,
    errors.UnsupportedForMessageFormatError,
)


class Copy(NamedTuple):
    """A record to copy. `provenance` are karmalake's headers: short, and sufficient to find the original."""

    original: Record
    provenance: list[tuple[str, bytes]]
    place: str
    """Of the original, for the log: topic-partition@offset."""
    more_headers: int = 0
    """Headers of the original that are missing in `original`."""


class CopyCounts(NamedTuple):
    """Counts of copies, in records."""

    published: int = 0
    truncated: int = 0
    """Of those published."""
    refused: int = 0


def truncate(copy: Copy, max_bytes: int) -> Record:
    """Return a copy of at most `max_bytes`, with marker headers for what was truncated.

    The provenance headers are never truncated: if they alone exceed `max_bytes`, so does the result.
    """
    key, value, headers, _ = copy.original
    value = b"" if key is None and value is None else value
    copied = [(name, content or b"") for name, content in headers[:MAX_HEADERS] if not name.startswith(RESERVED_PREFIX)]
    whole = _marked(copy, key, value, copied)
    if record_bytes(whole) <= max_bytes:
        return whole
    marks = [(name, b"0" * 20) for name in (TRUNCATED, KEY_TRUNCATED, HEADERS_LEFT_OUT, NULL_VALUE)]
    room = max(0, max_bytes - record_bytes(Record(None, None, [*copy.provenance, *marks])))
    key = key and key[: room // 4]
    room -= len(key or b"")
    copied = list(_fitting_headers(copied, room // 2))
    room -= sum(map(_header_bytes, copied))
    return _marked(copy, key, value and value[:room], copied)


def record_bytes(record: Record) -> int:
    """Return an upper bound of a record's size on the bus: uncompressed, in a batch of its own."""
    sizes = len(record.key or b"") + len(record.value or b"") + sum(map(_header_bytes, record.headers))
    return _RECORD_BYTES + sizes


def _header_bytes(header: tuple[str, bytes]) -> int:
    return _HEADER_BYTES + len(header[0].encode()) + len(header[1])


def _fitting_headers(headers: Iterable[tuple[str, bytes]], room: int) -> Iterable[tuple[str, bytes]]:
    for header in headers:
        if _header_bytes(header) <= room:
            room -= _header_bytes(header)
            yield header


def _marked(copy: Copy, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Record:
    """Return a record of these parts, with the provenance and the marker headers of `copy`."""
    original = copy.original
    left_out = len(original.headers) + copy.more_headers - len(headers)
    marks = [
        (TRUNCATED, _size_if_truncated(original.value, value)),
        (KEY_TRUNCATED, _size_if_truncated(original.key, key)),
        (HEADERS_LEFT_OUT, str(left_out).encode() if left_out else b""),
        (NULL_VALUE, b"true" if original.value is None and value is not None else b""),
    ]
    present = (mark for mark in marks if mark[1])
    return Record(key, value, [*headers, *copy.provenance, *present], original.topic_partition)


def _size_if_truncated(whole: bytes | None, truncated: bytes | None) -> bytes:
    size = len(whole or b"")
    return str(size).encode() if len(truncated or b"") < size else b""


class CopyWriter:
    """Writes copies to one topic; created by `open_copy_writer`. Not thread-safe."""

    def __init__(self, kafka: KafkaSettings, max_bytes: int) -> None:
        self.kafka = kafka
        self.max_bytes = max_bytes
        """Largest copy: the topic's limit, or, if the broker does not reveal it, the largest size not rejected yet."""
        self._producer: BulkProducer | None = None

    def write(self, copies: Sequence[Copy]) -> CopyCounts:
        """Write copies and wait for the broker; they stay in order unless one is rejected.

        A copy may be written more than once. Raises TransientError if the broker does not answer, ConfigurationError
        if it does not permit writing; then any part of the copies may have been written.
        """
        with translate_errors(self.kafka, f"writing dead letters to {self.kafka.topic}"):
            sent = self._send(copies, self.max_bytes)
            if not isinstance(sent, CopyCounts):
                return _total(self._write_one(copy) for copy in copies)
        return sent

    def close(self) -> None:
        """Close the client."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            with contextlib.suppress(Exception):  # `write` has raised it already
                producer.close()

    def _write_one(self, copy: Copy) -> CopyCounts:
        """Write one copy; halve its size each time that it is too large."""
        max_bytes = self.max_bytes
        while isinstance(sent := self._send([copy], max_bytes), _TOO_LARGE) and max_bytes > _MIN_COPY_BYTES:
            max_bytes = min(max_bytes, record_bytes(truncate(copy, max_bytes))) // 2
        if isinstance(sent, CopyCounts):
            self.max_bytes = max_bytes
            return sent
        _LOG.warning("%s rejects the copy of the dead letter at %s: %r", self.kafka.topic, copy.place, sent)
        return CopyCounts(refused=1)

    def _send(self, copies: Sequence[Copy], max_bytes: int) -> CopyCounts | Exception:
        """Send copies and wait for the broker; return the counts, or the error that rejected one of them."""
        try:
            self._producer = self._producer or BulkProducer(self.kafka)
            records = [truncate(copy, max_bytes) for copy in copies]
            for record in records:
                self._producer.send(record)
            self._producer.flush()
        except Exception as error:
            self.close()
            if not _is_rejection(error, len(copies)):
                raise
            return error
        return _total(map(_counts, records))


@contextlib.contextmanager
def open_copy_writer(kafka: KafkaSettings) -> Generator[CopyWriter]:
    """Yield a writer as `connect_copy_writer` returns it, and close it."""
    with contextlib.closing(connect_copy_writer(kafka)) as writer:
        yield writer


def connect_copy_writer(kafka: KafkaSettings) -> CopyWriter:
    """Return a writer of copies to the topic of `kafka`, which is created if it does not exist; the caller closes it.

    Raises TransientError or ConfigurationError.
    """
    return CopyWriter(kafka, _max_copy_bytes(ensure_topic(kafka)))


def _max_copy_bytes(topic: Topic) -> int:
    """Return the largest copy that a topic accepts; a broker may not reveal its limit."""
    limit = topic.configs.get("max.message.bytes", "")
    return min(MAX_COPY_BYTES, int(limit)) if limit.isdecimal() else MAX_COPY_BYTES


def _is_rejection(error: Exception, copies: int) -> bool:
    """Return whether an error is about one of the records that were sent, not about the broker.

    The client fails the records beside a rejected one with a bare KafkaError.
    """
    if isinstance(error, KafkaError):
        return isinstance(error, _REJECTIONS) or (copies > 1 and type(error) is KafkaError)
    return not isinstance(error, OSError | KarmalakeError | MemoryError)


def _counts(record: Record) -> CopyCounts:
    marks = {TRUNCATED, KEY_TRUNCATED, HEADERS_LEFT_OUT}
    return CopyCounts(published=1, truncated=int(any(name in marks for name, _ in record.headers)))


def _total(parts: Iterable[CopyCounts]) -> CopyCounts:
    counted = list(parts)
    return CopyCounts(*map(sum, zip(*counted, strict=True))) if counted else CopyCounts()
