"""The dead letter topic `{topic}.dlq`: copies of dead letters for other systems (`ingest.publish_dead_letters`).

Copies are read from the lake after the commit, from a checkpoint of their own on (`lake/dead_letter_outbox.py`). They
are best effort: a failure is logged, counted and retried, and never stops or delays ingest (`isolated`). After a crash
before the checkpoint the same copies are sent again; place and batch id in their headers identify them. The first start
with the setting on copies only what is committed from then on.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import)

import logging
import threading
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
from pipelines.errors import KarmalakeError, TransientError, is_termination
from pipelines.lake.dead_letter_outbox import DeadLetterOutbox, PendingBatch, init_checkpoint
from pipelines.lake.tables import CachedLake, create_lake
from pipelines.settings import KafkaSettings, Settings

_LOG = logging.getLogger(__name__)
_CHECKPOINT_BATCHES = 100
"""Batches between two checkpoints."""
_POLL_SECONDS = 10.0
"""How often to look for commits of other processes."""
_RETRY_SECONDS, _MAX_RETRY_SECONDS = 2.0, 60.0
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
OnOutage = Callable[[KarmalakeError | None], None]


@dataclass(slots=True)
class DeadLetterTopic:
    """The copies of one lake's dead letters; connects to their topic once there is something to copy."""

    settings: Settings
    outbox: DeadLetterOutbox
    writer: CopyWriter | None = None

    def copy_pending(self, report: OnProgress) -> None:
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

    def _find_pending(self, report: OnProgress, written: CopyCounts) -> list[PendingBatch]:
        """Look for new commits, report the progress, and return the next batches to copy."""
        self.outbox.catch_up()
        report(self._progress(written))
        return list(islice(self.outbox.pending, _CHECKPOINT_BATCHES))

    def _copy(self, batches: Sequence[PendingBatch]) -> CopyCounts:
        self.writer = self.writer or connect_copy_writer(dead_letter_topic(self.settings))
        total = CopyCounts()
        for letters in self.outbox.read_dead_letters(batches, [*_RECORD_COLUMNS, *_HEADER_COLUMNS[:-1]]):
            written = self.writer.write([_copy_of(letter) for letter in _as_rows(letters)])
            total = CopyCounts(*map(sum, zip(total, written, strict=True)))
        return total

    def _progress(self, written: CopyCounts) -> CopyProgress:
        pending = self.outbox.pending
        records = sum(batch.dead_letters for batch in pending)
        return CopyProgress(written, records, pending[0].committed if pending else None)


def open_dead_letter_topic(settings: Settings) -> DeadLetterTopic:
    """Return the dead letter topic of a lake, after setting its checkpoint if there is none."""
    lake = create_lake(settings.lake_root)
    name = f"dlq:{settings.kafka.topic}"
    init_checkpoint(lake, name)
    queue = settings.queue.kind

    def is_from_bus(topic: str) -> bool:
        return topic.startswith(f"{queue}:") if queue else topic == settings.kafka.topic

    return DeadLetterTopic(settings, DeadLetterOutbox(CachedLake(lake.root), name, is_from_bus))


def dead_letter_topic(settings: Settings) -> KafkaSettings:
    """Return the Kafka settings of the dead letter topic."""
    return settings.kafka.model_copy(update={"topic": f"{settings.kafka.topic}.dlq"})


def ensure_copy_checkpoint(settings: Settings) -> None:
    """Set the checkpoint before ingest begins; log a failure: dead letters until the next start are not copied."""
    doing = f"preparing the copies of dead letters on {settings.kafka.topic}.dlq"
    best_effort(open_dead_letter_topic, doing)(settings)


@contextmanager
def copying_on_exit(settings: Settings) -> Generator[None]:
    """Set the checkpoint on entry; on exit, also by a KarmalakeError, copy the pending dead letters.

    Raises only what the block raises: a failed copy is logged and repeated by the next run.
    """
    if not settings.ingest.publish_dead_letters:
        yield
        return
    ensure_copy_checkpoint(settings)
    copy = best_effort(_copy_once, f"copying dead letters to {settings.kafka.topic}.dlq")
    try:
        yield
    except KarmalakeError:
        copy(settings)
        raise
    copy(settings)


def copy_until(
    settings: Settings,
    stopping: threading.Event,
    committed: threading.Event,
    report: OnProgress,
    report_outage: OnOutage,
) -> None:
    """Copy whenever `committed` is set, and every 10 s, until `stopping` is set; set both to end it at once.

    A failure is reported to `report_outage` and retried after 2 s, doubling up to 60 s; a success reports None.
    """
    topic: DeadLetterTopic | None = None
    delay, ending = _RETRY_SECONDS, False
    while not ending:
        ending = stopping.is_set()
        committed.clear()
        try:
            topic = topic or open_dead_letter_topic(settings)
            topic.copy_pending(report)
        except BaseException as error:  # a Rust panic is not an Exception
            if is_termination(error):
                raise
            report_outage(_log_outage(error, settings.kafka.topic, delay))
            stopping.wait(delay)
            delay = min(2 * delay, _MAX_RETRY_SECONDS)
        else:
            report_outage(None)
            delay = _RETRY_SECONDS
            committed.wait(0 if ending else _POLL_SECONDS)
    if topic:
        topic.close()


def _copy_once(settings: Settings) -> None:
    topic = open_dead_letter_topic(settings)
    with closing(topic):
        topic.copy_pending(lambda progress: _log_progress(progress, settings.kafka.topic))


def _log_progress(progress: CopyProgress, topic: str) -> None:
    if any(progress.written):
        _LOG.info("%d dead letters copied to %s.dlq, %d of them cut; %d refused", *progress.written, topic)


def _log_outage(error: BaseException, topic: str, delay: float) -> KarmalakeError:
    """Log an error of the copy loop, and return it as a KarmalakeError."""
    is_expected = isinstance(error, KarmalakeError)
    message = "copying dead letters to %s.dlq: %s; they stay in the lake, next attempt in %.0f s"
    _LOG.warning(message, topic, error, delay, exc_info=None if is_expected else error)
    return error if is_expected else TransientError(f"copying dead letters failed: {error!r}")


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
