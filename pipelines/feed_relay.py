"""The topic of the feed: `karmalake stream` and `karmalake serve` relay the table `score_changes` to it, in order.

Changes are read from the lake after their commit, so what is on the topic is on record. The last number that the
brokers have acknowledged is an application transaction of the table. After a crash before that commit some changes are
sent again, with the same number and the same bytes. Relaying is best effort: a failure delays no publication
(`isolated`).

A user who is erased gets a record without a value. The erasure sends it; if a relay was just sending a change of that
user, so does the relay, after the change. After a kill of the relay at that moment, erasing again does.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import contextlib
import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.best_effort import best_effort
from pipelines.bus.clients import translate_errors
from pipelines.bus.topics import compaction_problem, ensure_compacted_topic, topic_exists
from pipelines.contract.score_change import encode_changes, require_packages
from pipelines.delivery import delivering
from pipelines.emit.producer import BulkProducer, Record, produce_records
from pipelines.errors import ConfigurationError, TransientError
from pipelines.ingest.sources import topic_sources
from pipelines.lake.run_lake import OpenLake
from pipelines.lake.score_changes import mark_relayed, read_in_order, read_position, read_relayed
from pipelines.lake.tables import CachedLake, Lake, is_lake, open_lake
from pipelines.lake.tombstones import Tombstones, open_tombstones
from pipelines.retries import OnIteration
from pipelines.settings import Format, KafkaSettings, Settings

_LOG = logging.getLogger(__name__)
_SEND_ROWS = 1_000
"""Rows to hold as Python values at a time."""


class RelayProgress(NamedTuple):
    """Changes relayed in the last step, and those that are waiting."""

    relayed: int
    waiting: int
    """At most so many: numbers of erased users count, too."""


OnRelayed = Callable[[RelayProgress], None]


@dataclass(slots=True)
class FeedTopic:
    """The topic of the feed; connects once there is something to relay. Not thread-safe."""

    lake: CachedLake
    tombstones: Tombstones
    kafka: KafkaSettings
    """With the topic of the feed."""
    format: Format
    producer: BulkProducer | None = None

    def relay_pending(self, report: OnRelayed) -> None:
        """Relay all changes after the last number; call `report` first and after each step.

        Raises TransientError or ConfigurationError, and what reading the lake raises; the next call continues from the
        last number that was recorded.
        """
        table = self.lake.table("score_changes")
        self.tombstones.catch_up_now()
        done, newest = read_relayed(table), read_position(table).number
        report(RelayProgress(0, newest - done))
        try:
            for rows in read_in_order(table, done):
                sent = self._relay(rows)
                mark_relayed(self.lake, done := rows["number"][-1].as_py())
                report(RelayProgress(sent, newest - done))
        except BaseException:
            self.close()
            raise
        if newest > done:  # of erased users
            mark_relayed(self.lake, newest)
            report(RelayProgress(0, 0))

    def close(self) -> None:
        """Close the client."""
        if self.producer is not None:
            producer, self.producer = self.producer, None
            with contextlib.suppress(Exception):  # `_send` has raised it already
                producer.close()

    def _relay(self, rows: pa.Table) -> int:
        """Send changes, and a tombstone to each of their users who was erased meanwhile; return how many were sent.

        An erasure that has not added its tombstones when the brokers have acknowledged sends its records after that.
        """
        rows = rows.filter(pc.invert(self.tombstones.match_users(rows["user_id"])))
        self._send(chain.from_iterable(_as_records(batch, self.format) for batch in rows.to_batches(_SEND_ROWS)))
        if self.tombstones.catch_up_now():
            erased = rows["user_id"].filter(self.tombstones.match_users(rows["user_id"]))
            self._send(map(_tombstone, erased.unique().to_pylist()))
        return len(rows)

    def _send(self, records: Iterable[Record]) -> None:
        """Send records in order, and wait for the brokers."""
        with translate_errors(self.kafka, f"relaying the feed to {self.kafka.topic}"):
            if self.producer is None:
                if problem := compaction_problem(ensure_compacted_topic(self.kafka)):
                    _LOG.warning("%s", problem)
                self.producer = BulkProducer(self.kafka)
            for record in records:
                self.producer.send(record)
            self.producer.flush()


def open_feed_topic(settings: Settings, lake: Lake | None = None) -> FeedTopic:
    """Return the topic of the feed of a lake; None is that of the settings."""
    cached = CachedLake((lake or open_lake(settings.lake_root)).root)
    return FeedTopic(cached, open_tombstones(cached, settings), _feed_kafka(settings), settings.feed.format)


@contextlib.contextmanager
def relayed_feed(
    settings: Settings, opening: OpenLake, on_relayed: OnRelayed, on_iteration: OnIteration
) -> Generator[Callable[[], None]]:
    """Relay the feed in a thread, if enabled, a last time on exit; yield the function to call after a publication.

    Raises ConfigurationError if the topic is one that is ingested, or packages for the format are not installed.
    """
    if not settings.relays_feed:
        yield lambda: None
        return
    _require_own_topic(settings)
    require_packages(settings.feed.format)
    report = best_effort(on_relayed, "reporting the feed")
    report_outage = partial(best_effort(on_iteration, "reporting a turn of the feed"), "feed")

    with delivering(
        "feed",
        lambda: open_feed_topic(settings, opening()),
        lambda topic: topic.relay_pending(report),
        f"relaying the feed to {settings.feed.topic}",
        report_outage,
    ) as changed:
        yield changed


def may_be_relayed(settings: Settings) -> bool:
    """Return whether changes may be on the topic of the feed: it is relayed, or was, as the lake knows."""
    if settings.relays_feed or not is_lake(settings.lake_root):
        return settings.relays_feed
    return read_relayed(open_lake(settings.lake_root).table("score_changes")) > 0


def feed_topic_exists(settings: Settings) -> bool:
    """Return whether changes may be on a topic that exists.

    Raises TransientError if no broker answers, and ConfigurationError if none is configured.
    """
    if not settings.feed.topic or not may_be_relayed(settings):
        return False
    try:
        return topic_exists(_feed_kafka(settings))
    except (TransientError, ConfigurationError) as error:
        raise type(error)(
            f"{error}. The topic {settings.feed.topic} may have changes of the users, and nothing was erased; if its "
            'brokers are permanently gone, set feed.topic = "" (KARMALAKE_FEED_TOPIC=) and repeat this'
        ) from error


def send_tombstones(settings: Settings, user_ids: Collection[str]) -> None:
    """Send a record without a value for each user to the topic of the feed. Raises like `produce_records`."""
    produce_records(_feed_kafka(settings), map(_tombstone, user_ids))


def _feed_kafka(settings: Settings) -> KafkaSettings:
    return settings.kafka.model_copy(update={"topic": settings.feed.topic})


def _require_own_topic(settings: Settings) -> None:
    if not settings.queue.kind and settings.feed.topic in topic_sources(settings):
        raise ConfigurationError(
            f"feed.topic is {settings.feed.topic}, whose records are ingested: choose a topic of its own for the feed"
        )


def _tombstone(user_id: str) -> Record:
    return Record(user_id.encode(), None)


def _as_records(changes: pa.RecordBatch, form: Format) -> Iterator[Record]:
    return map(Record, changes["user_id"].cast(pa.binary()).to_pylist(), encode_changes(changes, form))
