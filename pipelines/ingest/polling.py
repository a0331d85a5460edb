"""The records of one batch, polled from the positions of a consumer: the first ones, then more until it is complete.

A topic partition whose next record batch is damaged is paused, and the others continue.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain
from math import ceil
from typing import Any

from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition

from pipelines.bus.records import DamagedBatchError, limit_polls
from pipelines.ingest.filling import SLICE_MS, Clock, Filling
from pipelines.ingest.record_batches import count
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)
_MAX_POLL_BATCHES = 64
"""Record batches per poll."""
_LOOKUP_MS = 3_000
_NEXT_FETCH_MS = 100
"""How long a batch without a linger waits for the next records, if the broker is known to have them."""
_PAUSE_SECONDS, _LAST_SECONDS = 0.1, 0.05
"""How long a batch that lingers lets records accumulate between polls, and from how long before its end it no longer
does."""


@dataclass(slots=True)
class Poller:
    """Polls a consumer for the records of batches, within the limits of `settings.ingest`."""

    settings: Settings
    consumer: Any
    stopping: threading.Event
    """Ends the waits for records, once it is set."""
    clock: Clock = time.monotonic
    """Measures how long a batch lingers."""
    _damaged: dict[TopicPartition, DamagedBatchError] = field(default_factory=dict[TopicPartition, DamagedBatchError])
    """The topic partitions that are paused in this batch."""
    _reported: set[str] = field(default_factory=set[str])
    """Damaged batches that were logged: every fetch finds them again."""

    def fetch(self, tps: Collection[TopicPartition]) -> list[ConsumerRecord]:
        """Poll for the first records of some topic partitions, then until the batch is complete; return its batches.

        Record batches are not split, so a batch may exceed its limits by one of them. Raises DamagedBatchError if only
        a damaged one is left to read.
        """
        self._damaged = {}
        self.consumer.resume(*self.consumer.paused())  # a new leader may have an undamaged replica
        polled = self._await_records(tps)
        if polled:
            self._fill(polled, tps)
        elif self._damaged and not self._has_more(self._undamaged(tps)):
            raise next(iter(self._damaged.values()))
        return polled

    def _undamaged(self, tps: Iterable[TopicPartition]) -> list[TopicPartition]:
        return [tp for tp in tps if tp not in self._damaged]

    def _await_records(self, tps: Collection[TopicPartition]) -> list[ConsumerRecord]:
        """Poll until records come, every log is known to have none after its start, or `stopping` is set."""
        limits = self.settings.ingest
        limit_polls(self.consumer, limits.max_batch_bytes, limits.max_batch_records)
        wait_ms, begun = int(limits.max_wait_seconds * 1000), time.monotonic()
        while True:
            found = self._poll(min(wait_ms, SLICE_MS))
            waited_ms = (time.monotonic() - begun) * 1000
            is_over = waited_ms >= wait_ms and self._is_every_end_known(tps)
            if found or is_over or waited_ms > max(wait_ms, _LOOKUP_MS) or self.stopping.is_set():
                return found

    def _fill(self, polled: list[ConsumerRecord], tps: Collection[TopicPartition]) -> None:
        """Add records to the first ones until the batch is complete (`filling.py`)."""
        limits = self.settings.ingest
        filling = Filling(limits.max_batch_records, limits.max_batch_bytes, limits.linger_seconds, self.clock)
        filling.add(*_extent(polled))
        while wait_ms := self._wait_ms(filling, self._undamaged(tps)):
            self._pause(filling, self._undamaged(tps))
            limit_polls(self.consumer, filling.bytes_left, filling.records_left)
            found = self._poll(wait_ms)
            if not (found or filling.lingers):
                return
            filling.add(*_extent(found))
            polled += found

    def _pause(self, filling: Filling, tps: Collection[TopicPartition]) -> None:
        """Let records accumulate at the brokers while a batch lingers and has all that were there.

        In a steady flow the broker answers each fetch with the few records of a few milliseconds, and a fetch takes
        about a millisecond of the processor, however few it returns.
        """
        if filling.lingers and filling.seconds_left() > _PAUSE_SECONDS + _LAST_SECONDS and self._is_at_end(tps):
            self.stopping.wait(_PAUSE_SECONDS)

    def _wait_ms(self, filling: Filling, tps: Collection[TopicPartition]) -> int:
        """Return how long to wait for the next records of a batch; 0 if it is complete."""
        if self.stopping.is_set():
            return 0
        if filling.lingers:
            return min(ceil(filling.seconds_left() * 1000), SLICE_MS)
        return _NEXT_FETCH_MS if filling.seconds_left() and not self._is_at_end(tps) else 0

    def _poll(self, wait_ms: int) -> list[ConsumerRecord]:
        """Poll; pause each topic partition whose next batch is damaged: the others continue."""
        while True:
            try:
                return list(chain.from_iterable(self.consumer.poll(wait_ms, max_records=_MAX_POLL_BATCHES).values()))
            except DamagedBatchError as error:
                self.consumer.pause(error.place)
                self._damaged[error.place] = error
                if (message := str(error.args[0])) not in self._reported:
                    self._reported.add(message)
                    _LOG.warning("%s; its topic partition is paused, the others continue", message)

    def _has_more(self, tps: Collection[TopicPartition]) -> bool:
        """Return whether any of the topic partitions has records after the consumer's position."""
        ends = look_up(self.settings, self.consumer.end_offsets, tps) if tps else {}
        return any(ends[tp] > self.consumer.position(tp) for tp in tps)

    def _is_every_end_known(self, tps: Iterable[TopicPartition]) -> bool:
        """Return whether every topic partition was fetched once: only then is it known that its log has the start."""
        return all(self.consumer.highwater(tp) is not None for tp in tps)

    def _is_at_end(self, tps: Iterable[TopicPartition]) -> bool:
        """Return whether the consumer has read up to the last known ends, so that a batch may stay small."""
        return all(self.consumer.position(tp) >= (self.consumer.highwater(tp) or 0) for tp in tps)


def look_up(
    settings: Settings, lookup: Callable[..., dict[TopicPartition, int]], tps: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """Look up offsets, with retries: the client may miss a change of leader and wait until the timeout."""
    deadline = time.monotonic() + settings.kafka.request_timeout_seconds
    while True:
        try:
            return lookup(list(tps), timeout_ms=_LOOKUP_MS)
        except KafkaTimeoutError:
            if time.monotonic() > deadline:
                raise


def _extent(found: list[ConsumerRecord]) -> tuple[int, int]:
    """Return the numbers of records and bytes of record batches."""
    return sum(map(count, found)), sum(len(item.value or b"") for item in found)
