"""Copies of records on a topic of dead letters, each cut to what that topic takes.

A copy informs others; the original stands where the headers of the copy say. So a copy that is too large is cut, with
a mark, and one that the topic refuses even then is counted and logged: it never holds up those behind it.
"""

import contextlib
import logging
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from kafka import errors
from kafka.errors import KafkaError

from pipelines.bus.clients import translated
from pipelines.bus.topics import Topic, ensure_topic
from pipelines.emit.producer import Delivery, Record
from pipelines.errors import KarmalakeError
from pipelines.settings import KafkaSettings

_LOG = logging.getLogger(__name__)
RESERVED = "karmalake."
"""Headers that begin so are ours: an original's own ones are left out of its copy, or they would pass for ours."""
TRUNCATED = "karmalake.truncated"
"""Mark of a cut value: the bytes of the whole."""
KEY_TRUNCATED = "karmalake.key_truncated"
HEADERS_LEFT_OUT = "karmalake.headers_left_out"
"""Mark of headers that are not in the copy: how many."""
NULL_VALUE = "karmalake.null_value"
"""Mark of an empty value that stands for none: a producer sends no record that has neither key nor value."""
MAX_HEADERS = 1_000
"""Headers of the original that a copy takes along."""
MAX_COPY_BYTES = 1024 * 1024
"""Largest copy, which is also the client's largest request."""
_MIN_COPY_BYTES = 1024
"""A topic that refuses this much takes no copy at all."""
_RECORD_BYTES, _HEADER_BYTES = 128, 10
"""Upper bounds of what the format takes beside key, value and headers, and beside a header's key and value."""
_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
_REFUSALS = (
    *_TOO_LARGE,
    errors.InvalidRecordError,  # pyright: ignore[reportAttributeAccessIssue] - the stubs are old
    errors.InvalidTimestampError,
    errors.UnsupportedForMessageFormatError,
)


class Copy(NamedTuple):
    """A record to copy. `told` are headers of ours, short and sufficient to find the original."""

    original: Record
    told: list[tuple[str, bytes]]
    place: str
    """Where the original stands, for the log: topic-partition@offset."""
    more_headers: int = 0
    """Headers of the original that `original` does not have."""


class Written(NamedTuple):
    """What became of copies, in records."""

    published: int = 0
    truncated: int = 0
    """Of those published."""
    refused: int = 0


def cut(copy: Copy, max_bytes: int) -> Record:
    """Return a copy of at most `max_bytes`, its headers marked where it is not the whole.

    The headers that say where the original stands are never cut: with a smaller `max_bytes` the result is too large.
    """
    key, value, headers, _ = copy.original
    value = b"" if key is None and value is None else value
    kept = [(name, held or b"") for name, held in headers[:MAX_HEADERS] if not name.startswith(RESERVED)]
    whole = _marked(copy, key, value, kept)
    if record_bytes(whole) <= max_bytes:
        return whole
    marks = [(name, b"0" * 20) for name in (TRUNCATED, KEY_TRUNCATED, HEADERS_LEFT_OUT, NULL_VALUE)]
    room = max(0, max_bytes - record_bytes(Record(None, None, [*copy.told, *marks])))
    key = key and key[: room // 4]
    room -= len(key or b"")
    kept = list(_that_fit(kept, room // 2))
    room -= sum(map(_header_bytes, kept))
    return _marked(copy, key, value and value[:room], kept)


def record_bytes(record: Record) -> int:
    """Return an upper bound of what a record takes on the bus, uncompressed, in a batch of its own."""
    sizes = len(record.key or b"") + len(record.value or b"") + sum(map(_header_bytes, record.headers))
    return _RECORD_BYTES + sizes


def _header_bytes(header: tuple[str, bytes]) -> int:
    return _HEADER_BYTES + len(header[0].encode()) + len(header[1])


def _that_fit(headers: Iterable[tuple[str, bytes]], room: int) -> Iterable[tuple[str, bytes]]:
    for header in headers:
        if _header_bytes(header) <= room:
            room -= _header_bytes(header)
            yield header


def _marked(copy: Copy, key: bytes | None, value: bytes | None, kept: list[tuple[str, bytes]]) -> Record:
    """Return a record of what is left of the original, with what `copy` tells and how much was cut."""
    original = copy.original
    left_out = len(original.headers) + copy.more_headers - len(kept)
    marks = [
        (TRUNCATED, _whole_if_cut(original.value, value)),
        (KEY_TRUNCATED, _whole_if_cut(original.key, key)),
        (HEADERS_LEFT_OUT, str(left_out).encode() if left_out else b""),
        (NULL_VALUE, b"true" if original.value is None and value is not None else b""),
    ]
    headers = [*kept, *copy.told, *(mark for mark in marks if mark[1])]
    return Record(key, value, headers, original.topic_partition)


def _whole_if_cut(whole: bytes | None, left: bytes | None) -> bytes:
    size = len(whole or b"")
    return str(size).encode() if len(left or b"") < size else b""


class CopyWriter:
    """Writes copies to one topic; `open_copies` makes it. For one thread at a time."""

    def __init__(self, kafka: KafkaSettings, max_bytes: int) -> None:
        self.kafka = kafka
        self.max_bytes = max_bytes
        """The largest copy: what the topic says that it takes, or, where it does not say, what it did not refuse."""
        self._delivery: Delivery | None = None

    def write(self, copies: Sequence[Copy]) -> Written:
        """Write copies, in their order where none is refused, and wait for the broker.

        A copy may be written more than once. Raises TransientError when the broker does not answer,
        ConfigurationError when it lets us write nothing: then any part of them may have been written.
        """
        with translated(self.kafka, f"writing dead letters to {self.kafka.topic}"):
            sent = self._send(copies, self.max_bytes)
            if not isinstance(sent, Written):
                return _total(self._write_alone(copy) for copy in copies)
        return sent

    def close(self) -> None:
        """Close the client."""
        if self._delivery is not None:
            delivery, self._delivery = self._delivery, None
            with contextlib.suppress(Exception):  # what was to be heard of it was heard by `write`
                delivery.finish()

    def _write_alone(self, copy: Copy) -> Written:
        """Write one copy, cut to the half each time that it is too large."""
        max_bytes = self.max_bytes
        while isinstance(sent := self._send([copy], max_bytes), _TOO_LARGE) and max_bytes > _MIN_COPY_BYTES:
            max_bytes = min(max_bytes, record_bytes(cut(copy, max_bytes))) // 2
        if isinstance(sent, Written):
            self.max_bytes = max_bytes
            return sent
        _LOG.warning("%s takes no copy of the dead letter at %s: %r", self.kafka.topic, copy.place, sent)
        return Written(refused=1)

    def _send(self, copies: Sequence[Copy], max_bytes: int) -> Written | Exception:
        """Send copies and wait for the broker; return the refusal of one of them, if there is one."""
        try:
            self._delivery = self._delivery or Delivery(self.kafka)
            records = [cut(copy, max_bytes) for copy in copies]
            for record in records:
                self._delivery.send(record)
            self._delivery.wait()
        except Exception as error:
            self.close()
            if not _is_refusal(error):
                raise
            return error
        return _total(map(_written, records))


@contextlib.contextmanager
def open_copies(kafka: KafkaSettings) -> Generator[CopyWriter]:
    """Yield what `connect_copies` returns, and close it."""
    with contextlib.closing(connect_copies(kafka)) as writer:
        yield writer


def connect_copies(kafka: KafkaSettings) -> CopyWriter:
    """Return a writer of copies to the topic of `kafka`, which is created if there is none; to be closed.

    Raises TransientError or ConfigurationError where that fails.
    """
    return CopyWriter(kafka, _largest(ensure_topic(kafka)))


def _largest(topic: Topic) -> int:
    """Return the largest copy that a topic takes; a broker need not tell us."""
    told = topic.configs.get("max.message.bytes", "")
    return min(MAX_COPY_BYTES, int(told)) if told.isdecimal() else MAX_COPY_BYTES


def _is_refusal(error: Exception) -> bool:
    """Tell a record that cannot be sent from a broker that does not take any."""
    if isinstance(error, KafkaError):
        return isinstance(error, _REFUSALS)
    return not isinstance(error, OSError | KarmalakeError | MemoryError)


def _written(record: Record) -> Written:
    marks = {TRUNCATED, KEY_TRUNCATED, HEADERS_LEFT_OUT}
    return Written(published=1, truncated=int(any(name in marks for name, _ in record.headers)))


def _total(parts: Iterable[Written]) -> Written:
    counted = list(parts)
    return Written(*map(sum, zip(*counted, strict=True))) if counted else Written()
