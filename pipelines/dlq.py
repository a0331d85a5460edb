"""Dead letters for others to read: copies on the topic `{topic}.dlq`, where `ingest.publish_dead_letters` is on.

They are read from the lake after the commit, behind a checkpoint of their own (`lake/outbox.py`), and are best effort:
what fails here is logged and counted, is tried again, and never stops or delays ingest (`isolated`). A crash before the
checkpoint sends the same copies again: place and batch in their headers identify them. The first start with the setting
on begins at what is committed from then on.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

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
from pipelines.emit.copies import MAX_HEADERS, RESERVED, Copy, CopyWriter, Written, connect_copies
from pipelines.emit.producer import Record
from pipelines.errors import KarmalakeError, TransientError
from pipelines.lake.outbox import Outbox, Pending, begin
from pipelines.lake.tables import KeptOpen, create_lake
from pipelines.settings import KafkaSettings, Settings

_LOG = logging.getLogger(__name__)
_BATCHES_AT_ONCE = 100
"""Batches between two checkpoints."""
_LOOK_SECONDS = 10.0
"""How often is looked for what other processes committed."""
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 2.0, 60.0
_TOLD_CHARACTERS = 1_000
"""Of a header of ours: a detail may quote the record."""
_ORIGINAL = ["key", "value", "headers"]
_TOLD = ["reason", "detail", "topic", "topic_partition", "offset", "batch_id"]


class Turn(NamedTuple):
    """What was copied, and what waits."""

    written: Written
    waiting_records: int
    """Dead letters that are not copied yet, of no more than 10,000 batches."""
    waiting_since: datetime | None
    """When the first of them was committed; None if none waits."""


OnTurn = Callable[[Turn], None]
OnOutage = Callable[[KarmalakeError | None], None]


@dataclass(slots=True)
class DeadLetterTopic:
    """The dead letters of one lake, and the topic of copies, which is connected once there is something to copy."""

    settings: Settings
    outbox: Outbox
    writer: CopyWriter | None = None

    def copy_waiting(self, report: OnTurn) -> None:
        """Copy what is committed and was not copied; `report` hears what waits, first and after every hundred batches.

        Raises TransientError or ConfigurationError, and what reading the lake raises: then what waits is copied by the
        next call, from the last checkpoint on.
        """
        written = Written()
        try:
            while batches := self._look(report, written):
                written = self._copy(batches)
                self.outbox.passed_on(batches[-1].version)
        except Exception:
            self.close()  # the topic may be another one when it is connected again
            raise

    def close(self) -> None:
        """Close the client."""
        if self.writer:
            self.writer.close()
            self.writer = None

    def _look(self, report: OnTurn, written: Written) -> list[Pending]:
        """Look for what was committed since, report that with what was copied last, and return what is to be copied."""
        self.outbox.catch_up()
        report(self._turn(written))
        return list(islice(self.outbox.pending, _BATCHES_AT_ONCE))

    def _copy(self, batches: Sequence[Pending]) -> Written:
        self.writer = self.writer or connect_copies(dead_letter_topic(self.settings))
        total = Written()
        for letters in self.outbox.letters(batches, [*_ORIGINAL, *_TOLD[:-1]]):
            written = self.writer.write([_copy_of(letter) for letter in _as_rows(letters)])
            total = Written(*map(sum, zip(total, written, strict=True)))
        return total

    def _turn(self, written: Written) -> Turn:
        pending = self.outbox.pending
        waiting = sum(batch.dead_letters for batch in pending)
        return Turn(written, waiting, pending[0].committed if pending else None)


def open_dead_letter_topic(settings: Settings) -> DeadLetterTopic:
    """Return the outbox of the lake of `settings`, having set its checkpoint if there was none."""
    lake = create_lake(settings.lake_root)
    name = f"dlq:{settings.kafka.topic}"
    begin(lake, name)
    queue = settings.queue.kind

    def is_of_bus(topic: str) -> bool:
        return topic.startswith(f"{queue}:") if queue else topic == settings.kafka.topic

    return DeadLetterTopic(settings, Outbox(KeptOpen(lake.root), name, is_of_bus))


def dead_letter_topic(settings: Settings) -> KafkaSettings:
    """Return the settings of the topic of copies."""
    return settings.kafka.model_copy(update={"topic": f"{settings.kafka.topic}.dlq"})


def prepare(settings: Settings) -> None:
    """Set the checkpoint before ingest begins; a failure is logged, and what is committed meanwhile is not copied."""
    doing = f"preparing the copies of dead letters on {settings.kafka.topic}.dlq"
    best_effort(open_dead_letter_topic, doing)(settings)


@contextmanager
def copied_afterwards(settings: Settings) -> Generator[None]:
    """Set the checkpoint before ingest, and copy what waits once it has ended, even by an error of ours.

    Nothing is raised that is not raised within: what cannot be copied is logged, and waits for the next run.
    """
    if not settings.ingest.publish_dead_letters:
        yield
        return
    prepare(settings)
    copy = best_effort(_copy_once, f"copying dead letters to {settings.kafka.topic}.dlq")
    try:
        yield
    except KarmalakeError:
        copy(settings)
        raise
    copy(settings)


def copy_until(
    settings: Settings, stopping: threading.Event, committed: threading.Event, report: OnTurn, report_outage: OnOutage
) -> None:
    """Copy whenever `committed` is set, and now and then, until `stopping` is set; both are to be set to end it.

    Whatever fails is told to `report_outage`, and is tried again after 2 s, then less and less often.
    """
    topic: DeadLetterTopic | None = None
    delay, ending = _RETRY_SECONDS, False
    while not ending:
        ending = stopping.is_set()
        committed.clear()
        try:
            topic = topic or open_dead_letter_topic(settings)
            topic.copy_waiting(report)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the thread would end unseen
            report_outage(_outage(error, settings.kafka.topic, delay))
            stopping.wait(delay)
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
        else:
            report_outage(None)
            delay = _RETRY_SECONDS
            committed.wait(0 if ending else _LOOK_SECONDS)
    if topic:
        topic.close()


def _copy_once(settings: Settings) -> None:
    topic = open_dead_letter_topic(settings)
    with closing(topic):
        topic.copy_waiting(lambda turn: _say(turn, settings.kafka.topic))


def _say(turn: Turn, topic: str) -> None:
    if any(turn.written):
        _LOG.info("%d dead letters copied to %s.dlq, %d of them cut; %d refused", *turn.written, topic)


def _outage(error: BaseException, topic: str, delay: float) -> KarmalakeError:
    """Return what kept a turn from its end as an error of ours, having logged it."""
    ours = isinstance(error, KarmalakeError)
    message = "copying dead letters to %s.dlq: %s; they wait in the lake, trying again in %.0f s"
    _LOG.warning(message, topic, error, delay, exc_info=None if ours else error)
    return error if ours else TransientError(f"copying dead letters failed: {error!r}")


def _as_rows(letters: pa.Table) -> list[dict[str, Any]]:
    """Return dead letters as objects, of each no more headers than a copy takes."""
    at = letters.schema.get_field_index("headers")
    counts = pc.fill_null(pc.list_value_length(letters["headers"]), 0)
    shortened = letters.set_column(at, "headers", pc.list_slice(letters["headers"], 0, MAX_HEADERS))
    return shortened.append_column("header_count", counts).to_pylist()


def _copy_of(letter: dict[str, Any]) -> Copy:
    headers = [(header["key"], header["value"] or b"") for header in letter["headers"] or ()]
    told = [(f"{RESERVED}{name}", _text(letter[name])) for name in _TOLD]
    place = f"{letter['topic']}-{letter['topic_partition']}@{letter['offset']}"
    original = Record(letter["key"], letter["value"], headers)
    return Copy(original, told, place, letter["header_count"] - len(headers))


def _text(value: object) -> bytes:
    return ("" if value is None else str(value)[:_TOLD_CHARACTERS]).encode()
