"""The dead letter topics `{topic}.dlq`: copies of dead letters for other systems (`ingest.publish_dead_letters`).

Each topic that is ingested has its own, with its own checkpoint: the owners of a topic read, permit and retain the
copies of its records, and one that cannot be written stops no other. Of a queue there is one, named after kafka.topic.
Copies are read from the lake after the commit, from a checkpoint of their own on (`lake/dead_letter_outbox.py`). They
are best effort: a failure is logged, counted and retried, and never stops or delays ingest (`isolated`). After a crash
before the checkpoint the same copies are sent again; place and batch id in their headers identify them. The first start
with the setting on copies only what is committed from then on.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import)

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.best_effort import best_effort
from pipelines.emit.copies import MAX_HEADERS, RESERVED_PREFIX, Copy, CopyCounts, CopyWriter, connect_copy_writer
from pipelines.emit.producer import Record
from pipelines.errors import KarmalakeError
from pipelines.ingest.sources import topic_sources
from pipelines.lake.dead_letter_outbox import DeadLetterOutbox, PendingBatch, init_checkpoint
from pipelines.lake.run_lake import OpenLake
from pipelines.lake.tables import CachedLake, Lake, create_lake
from pipelines.settings import KafkaSettings, Settings

_LOG = logging.getLogger(__name__)
_CHECKPOINT_BATCHES = 100
"""Batches between two checkpoints."""
_MAX_HEADER_CHARACTERS = 1_000
"""Of a karmalake header: the detail may quote the record."""
_RECORD_COLUMNS = ["key", "value", "headers"]
_HEADER_COLUMNS = ["reason", "detail", "topic", "topic_partition", "offset", "batch_id"]


class CopyProgress(NamedTuple):
    """Dead letters copied in the last step, and those still pending."""

    written: CopyCounts
    pending_records: int
    """Dead letters not copied yet, in at most 10,000 batches."""
    pending_since: datetime | None
    """Commit time of the first pending one; None if none is pending."""


OnProgress = Callable[[CopyProgress], None]


@dataclass(slots=True)
class DeadLetterTopic:
    """The copies of the dead letters of one topic; connects to their topic once there is something to copy."""

    kafka: KafkaSettings
    """With the dead letter topic."""
    outbox: DeadLetterOutbox
    writer: CopyWriter | None = None

    def copy_pending(self, report: Callable[[CopyCounts], None]) -> None:
        """Copy all committed dead letters after the checkpoint; call `report` first and after every 100 batches.

        Raises TransientError or ConfigurationError, and what reading the lake raises; the next call continues from the
        last checkpoint.
        """
        written = CopyCounts()
        try:
            while batches := self._find_pending(report, written):
                written = self._copy(batches)
                self.outbox.mark_delivered(batches[-1].version)
        except Exception:
            self.close()  # the topic may have been recreated when it is connected again
            raise

    def close(self) -> None:
        """Close the client."""
        if self.writer:
            self.writer.close()
            self.writer = None

    def _find_pending(self, report: Callable[[CopyCounts], None], written: CopyCounts) -> list[PendingBatch]:
        """Look for new commits, report the progress, and return the next batches to copy."""
        self.outbox.catch_up()
        report(written)
        return list(islice(self.outbox.pending, _CHECKPOINT_BATCHES))

    def _copy(self, batches: Sequence[PendingBatch]) -> CopyCounts:
        self.writer = self.writer or connect_copy_writer(self.kafka)
        total = CopyCounts()
        for letters in self.outbox.read_dead_letters(batches, [*_RECORD_COLUMNS, *_HEADER_COLUMNS[:-1]]):
            written = self.writer.write([_copy_of(letter) for letter in _as_rows(letters)])
            total = CopyCounts(*map(sum, zip(total, written, strict=True)))
        return total


@dataclass(frozen=True, slots=True)
class DeadLetterTopics:
    """The dead letter topic of each topic that is ingested; the progress that is reported is of all together."""

    topics: tuple[DeadLetterTopic, ...]

    def copy_pending(self, report: OnProgress) -> None:
        """Copy the pending dead letters of every topic; raise the first error once all topics had their turn."""
        errors: list[Exception] = []
        for topic in self.topics:
            try:
                topic.copy_pending(lambda written: report(self._total(written)))
            except Exception as error:  # noqa: BLE001 - raised below: a topic that cannot be written stops no other
                errors.append(error)
        for error in errors:
            raise error

    def close(self) -> None:
        """Close the clients."""
        for topic in self.topics:
            topic.close()

    def _total(self, written: CopyCounts) -> CopyProgress:
        pending = [batch for topic in self.topics for batch in topic.outbox.pending]
        since = min((batch.committed for batch in pending), default=None)
        return CopyProgress(written, sum(batch.dead_letters for batch in pending), since)


def open_dead_letter_topics(settings: Settings, opening: OpenLake | None = None) -> DeadLetterTopics:
    """Return the dead letter topics of a lake, after setting the checkpoints that do not exist yet.

    opening: opens the lake; None creates that of the settings if there is none.
    """
    lake = opening() if opening else create_lake(settings.lake_root)
    return DeadLetterTopics(tuple(_open_dead_letter_topic(settings, lake, name) for name in _bus_names(settings)))


def _bus_names(settings: Settings) -> list[str]:
    """Return the topics that are ingested; of a queue the name of its dead letter topic without `.dlq`."""
    return [settings.kafka.topic] if settings.queue.kind else list(topic_sources(settings))


def describe_copies(settings: Settings) -> str:
    """Return what copying does, for messages."""
    return f"copying dead letters to {', '.join(f'{name}.dlq' for name in _bus_names(settings))}"


def _open_dead_letter_topic(settings: Settings, lake: Lake, topic: str) -> DeadLetterTopic:
    name, queue = f"dlq:{topic}", settings.queue.kind
    init_checkpoint(lake, name)

    def is_from_bus(other: str) -> bool:
        return other.startswith(f"{queue}:") if queue else other == topic

    return DeadLetterTopic(
        dead_letter_topic(settings, topic), DeadLetterOutbox(CachedLake(lake.root), name, is_from_bus)
    )


def dead_letter_topic(settings: Settings, topic: str) -> KafkaSettings:
    """Return the Kafka settings of the dead letter topic of a topic."""
    return settings.kafka.model_copy(update={"topic": f"{topic}.dlq"})


def ensure_copy_checkpoints(settings: Settings, opening: OpenLake) -> None:
    """Set the checkpoints before ingest begins; log a failure: dead letters until the next start are not copied."""
    best_effort(open_dead_letter_topics, "preparing the copies of dead letters")(settings, opening)


@contextmanager
def copying_on_exit(settings: Settings, opening: OpenLake) -> Generator[None]:
    """Set the checkpoints on entry; on exit, also by a KarmalakeError, copy the pending dead letters.

    Raises only what the block raises: a failed copy is logged and repeated by the next run.
    """
    if not settings.ingest.publish_dead_letters:
        yield
        return
    ensure_copy_checkpoints(settings, opening)
    copy = best_effort(_copy_once, describe_copies(settings))
    try:
        yield
    except KarmalakeError:
        copy(settings, opening)
        raise
    copy(settings, opening)


def _copy_once(settings: Settings, opening: OpenLake) -> None:
    with closing(open_dead_letter_topics(settings, opening)) as topics:
        topics.copy_pending(_log_progress)


def _log_progress(progress: CopyProgress) -> None:
    if any(progress.written):
        _LOG.info("%d dead letters copied to their topic, %d of them cut; %d refused", *progress.written)


def _as_rows(letters: pa.Table) -> list[dict[str, Any]]:
    """Return dead letters as dicts, each with at most the headers that a copy takes."""
    column = letters.schema.get_field_index("headers")
    counts = pc.fill_null(pc.list_value_length(letters["headers"]), 0)
    shortened = letters.set_column(column, "headers", pc.list_slice(letters["headers"], 0, MAX_HEADERS))
    return shortened.append_column("header_count", counts).to_pylist()


def _copy_of(letter: dict[str, Any]) -> Copy:
    headers = [(header["key"], header["value"] or b"") for header in letter["headers"] or ()]
    provenance = [(f"{RESERVED_PREFIX}{name}", _text(letter[name])) for name in _HEADER_COLUMNS]
    place = f"{letter['topic']}-{letter['topic_partition']}@{letter['offset']}"
    original = Record(letter["key"], letter["value"], headers)
    return Copy(original, provenance, place, letter["header_count"] - len(headers))


def _text(value: object) -> bytes:
    return ("" if value is None else str(value)[:_MAX_HEADER_CHARACTERS]).encode()
