"""Record batches as kafka-python reads them, unharmed by whatever a producer has put into them.

kafka-python decompresses a batch whole, however much that becomes, and never gets past a header whose key is no text,
though brokers take it. So the batches of every consumer here are of another kind: `take_apart_as` puts it in its place,
and `Guarded` is the one that reads records one by one. Of a batch that is too large the records have no value: they
are no events, and their offsets are all there.

It rests on a few private names of kafka-python 3.0, which a test watches. The formats 0 and 1 stay what they are.
"""
# pyright: reportAttributeAccessIssue=false
# (private names, and stubs of a kafka-python of years ago)

import logging
from collections.abc import Iterator
from importlib.metadata import version
from inspect import signature
from typing import Any

from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.util import decode_varint

from pipelines.emit.inflate import inflate, needs_watching

_LOG = logging.getLogger(__name__)
_CLIENT = "kafka-python"
_FIELDS_BEFORE_THE_KEY = 4
_LAST_OF_ASCII = 0x7F


class Guarded(DefaultRecordBatch):
    """A batch that may be iterated over, record by record, whatever is in it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__() if decompress(self) else self._unread()

    def _unread(self) -> Iterator[Any]:
        for offset in range(self.base_offset, self.next_offset):
            yield DefaultRecord(0, offset, self.max_timestamp, self.timestamp_type, None, None, [])

    def _read_msg(self, *arguments: Any) -> Any:
        start = self._pos
        try:
            return super()._read_msg(*arguments)
        except UnicodeDecodeError:
            _make_header_keys_text(self._buffer, start)
            return super()._read_msg(*arguments)


def decompress(batch: DefaultRecordBatch) -> bool:
    """Decompress a batch in its place; return whether it could be, within the memory that there is for it."""
    compressed = memoryview(batch._buffer)[batch._pos :]  # noqa: SLF001
    if not needs_watching(batch.compression_type, len(compressed)):
        batch._maybe_uncompress()  # noqa: SLF001
        return True
    inflated = inflate(batch.compression_type, bytes(compressed))
    if inflated is not None:
        batch._buffer, batch._pos, batch._decompressed = bytearray(inflated), 0, True  # noqa: SLF001
    return inflated is not None


def _make_header_keys_text(buffer: bytearray, start: int) -> None:
    """Put a question mark for each byte beyond ASCII in those keys of the record at `start` that are not UTF-8."""
    at = start
    for _ in range(_FIELDS_BEFORE_THE_KEY):
        _, at = decode_varint(buffer, at)
    for _ in ("key", "value"):
        size, at = decode_varint(buffer, at)
        at += max(0, size)
    count, at = decode_varint(buffer, at)
    for _ in range(count):
        size, at = decode_varint(buffer, at)
        key = bytes(buffer[at : at + max(0, size)])
        if "\ufffd" in key.decode(errors="replace"):
            buffer[at : at + len(key)] = bytes(byte if byte <= _LAST_OF_ASCII else ord("?") for byte in key)
        at += len(key)
        size, at = decode_varint(buffer, at)
        at += max(0, size)


class BatchesAs:
    """The batches of a fetch on their way to the client, those of records as another kind."""

    def __init__(self, batches: Any, kind: type[DefaultRecordBatch]) -> None:
        self._batches, self._kind = batches, kind

    def next_batch(self) -> Any:
        """Return the next batch, or None behind the last."""
        batch = self._batches.next_batch()
        if isinstance(batch, DefaultRecordBatch) and not batch.is_control_batch:
            batch.__class__ = self._kind
        return batch


def take_apart_as(consumer: Any, kind: type[DefaultRecordBatch]) -> None:
    """Make a KafkaConsumer take the batches that it fetches apart as `kind` does, if it can: else it is logged."""
    if not knows_the_client():
        _LOG.warning("kafka-python %s has its record batches elsewhere: records are read one by one", version(_CLIENT))
        return

    class PartitionBatches(Fetcher.PartitionRecords):
        """A fetched topic partition: the checks are kafka-python's own."""

        def _unpack_records(self, tp: Any, records: Any, *deserializers: object) -> Iterator[ConsumerRecord]:
            return super()._unpack_records(tp, BatchesAs(records, kind), *deserializers)

    consumer._fetcher.PartitionRecords = PartitionBatches  # noqa: SLF001 - there is no public way


def knows_the_client() -> bool:
    """Return whether the private names that batches are got by are there, with the parameters that they had."""
    unpack = getattr(getattr(Fetcher, "PartitionRecords", None), "_unpack_records", None)
    return (
        unpack is not None
        and list(signature(unpack).parameters) == ["self", "tp", "records", "key_deserializer", "value_deserializer"]
        and {"_buffer", "_pos", "_decompressed"} <= set(DefaultRecordBatch.__slots__)
        and callable(getattr(DefaultRecordBatch, "_maybe_uncompress", None))
        and callable(getattr(DefaultRecordBatch, "_read_msg", None))
    )
