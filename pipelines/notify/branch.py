"""One destination: read the topic, deliver, advance the checkpoint. The whole protocol is in `_turn`.

Each destination has its own consumer group, `{group_id}.{destination}`; where rules speak of changes, another one,
`{group_id}.{destination}.scores`, reads the topic of the feed, as a destination of its own. The group's offsets are its
checkpoint, and Kafka's group protocol divides the topic partitions among notifiers. A destination that hangs stops
reading when its share of notifications in flight is used up; no other destination is affected (`isolated`).

A checkpoint advances in order, past records that are delivered or dead letters. After a crash at any step, records
above it are delivered again, under the same idempotency key; after a rebalance, the new owner of a topic partition does
the same. Nothing is missed, the first copies of a user's notifications arrive in order, and the receiver drops repeats
by their key.
`start_offsets.py` handles checkpoints outside the log.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.boundary.stopping import ending_all
from pipelines.bus.clients import consumer, poll_group_member, translate_errors
from pipelines.bus.records import DamagedBatchError
from pipelines.emit.copies import CopyWriter, open_copy_writer
from pipelines.errors import KarmalakeError, TransientError, is_termination
from pipelines.notify.changes import Change
from pipelines.notify.dead_letters import dlq_settings, without_names, write_dead_letters
from pipelines.notify.delivery import Notification, Outcome, Redact, Transport, describe_error
from pipelines.notify.events import DecodedRecords, decode_changes
from pipelines.notify.lanes import Delivery, Lanes
from pipelines.notify.offset_tracker import OffsetTracker
from pipelines.notify.progress import Watch
from pipelines.notify.rules import Destination, Rule
from pipelines.notify.start_offsets import Loss, compaction_losses, seek_after_data_loss, seek_without_checkpoint
from pipelines.notify.template import Event
from pipelines.settings import ContractSettings, KafkaSettings, Settings

_POLL_MS = 500
_BUSY_POLL_MS = 20
_COMMIT_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_SESSION_MS = 10_000
"""Without a heartbeat for this long, a notifier loses its topic partitions to the others."""
_METADATA_MS = 10_000
"""How long new topic partitions may be unassigned, until the leader of the group discovers them."""
_MOVED: tuple[type[Exception], ...] = (kafka_errors.CommitFailedError, kafka_errors.RebalanceInProgressError)
_LOG = logging.getLogger(__name__)

_Move = Callable[[OffsetTracker], None]


@dataclass(slots=True)
class DeliveryCounts:
    """What was done since the last report."""

    delivered: int = 0
    dead_letters: int = 0
    failed_attempts: int = 0
    """Attempts after which a notification is tried again, or becomes a dead letter."""
    failure: str = ""
    """Reason of the last failed attempt."""
    erased: int = 0
    """Notifications of erased users, which were neither delivered nor made dead letters."""
    malformed: int = 0
    """Records that are not valid events."""
    reason: str = ""
    """Reason of the last dead letter."""
    losses: tuple[Loss, ...] = ()
    """Offsets that the topic no longer held when they were due to be read, or that are left out at the beginning."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A destination, its rules about one topic, and how to connect to it."""

    name: str
    destination: Destination
    rules: tuple[Rule, ...]
    max_in_flight: int
    open_transport: Callable[[], Transport]
    kafka: KafkaSettings
    """With the topic that it reads."""
    decode: Callable[[Sequence[Any], ContractSettings], DecodedRecords[Event] | DecodedRecords[Change]]

    @property
    def is_compacted(self) -> bool:
        """Whether the topic is that of the feed, of which older changes of a user are removed in time."""
        return self.decode is decode_changes

    def notification(self, item: Event | Change) -> Notification | None:
        """Return the notification of an event or change by the first matching rule; None without one."""
        for rule in self.rules:
            if (event := rule.event_of(item)) is not None:
                return Notification(event, rule.name, rule.text)
        return None

    def is_quiet(self) -> bool:
        """Return whether nothing is to be delivered now."""
        return self.destination.quiet is not None and self.destination.quiet.contains(datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Reports:
    """Callbacks with the name of a destination first; called from the threads of the destinations."""

    done: Callable[[str, DeliveryCounts], None]
    outage: Callable[[str, TransientError], None]
    """A service did not respond; it is tried again."""
    failure: Callable[[str, BaseException], None]
    """A bug: the destination restarts at its checkpoint, and its process is no longer healthy."""
    turn: Callable[[str], None] = lambda _: None
    """A turn ended, with or without work."""
    started: Callable[[], None] = lambda: None
    """The brokers have answered, and can do what notifying needs; called once, before any other."""


def serve(plan: Plan, settings: Settings, redact: Redact, stopping: threading.Event, reports: Reports) -> None:
    """Deliver until `stopping` is set; set it if an error ends this.

    An unresponsive broker or an unexpected error only delays this destination; the others continue (`isolated`).
    Raises ConfigurationError for errors that a retry cannot fix.
    """
    with ending_all(stopping):
        while not stopping.is_set():
            try:
                with _opened(plan, settings, redact, reports) as branch:
                    while not stopping.is_set():
                        _turn(branch, reports)
                        reports.turn(plan.name)
            except TransientError as error:
                reports.outage(plan.name, error)
            except KarmalakeError:
                raise
            except BaseException as error:  # a Rust panic is not an Exception
                if is_termination(error):
                    raise
                _LOG.warning("%s: %s", plan.name, describe_error(error), exc_info=error)
                reports.failure(plan.name, error)
            stopping.wait(_RETRY_SECONDS)


@dataclass(slots=True)
class _Branch:
    plan: Plan
    settings: Settings
    reader: Any
    dead_letters: CopyWriter
    lanes: Lanes
    watch: Watch
    redact: Redact
    tracker: OffsetTracker = field(default_factory=OffsetTracker)
    counts: DeliveryCounts = field(default_factory=DeliveryCounts)
    moves: "queue.SimpleQueue[_Move]" = field(default_factory=queue.SimpleQueue)
    """Assignments and revocations during the last poll, in order."""
    committed_at: float = 0.0
    paused_until: dict[TopicPartition, float] = field(default_factory=dict[TopicPartition, float])
    """Monotonic time in seconds at which a topic partition with a damaged batch is read again.

    By then another replica may be its leader.
    """


def _turn(branch: _Branch, reports: Reports) -> None:
    if branch.lanes.failure is not None:
        raise RuntimeError(f"a delivery lane failed: {branch.lanes.failure}")
    deliveries = _read_intact(branch, reports)
    for delivery in deliveries:
        branch.lanes.submit(delivery)
    idle_ms = _BUSY_POLL_MS if branch.watch.waits_since is None else _POLL_MS
    _settle(branch, wait_seconds=0.0 if deliveries else idle_ms / 1000)
    settled = branch.counts.delivered + branch.counts.dead_letters + branch.counts.erased
    if settled >= branch.plan.max_in_flight or monotonic() - branch.committed_at >= _COMMIT_SECONDS:
        _commit(branch, reports)


def _read_intact(branch: _Branch, reports: Reports) -> list[Delivery]:
    """Read; a damaged batch is reported and pauses only its own topic partition (`isolated`)."""
    try:
        with translate_errors(branch.plan.kafka, f"notifying {branch.plan.name}"):
            return _read(branch)
    except TransientError as error:
        if not isinstance(error.__cause__, DamagedBatchError):
            raise
        branch.reader.pause(error.__cause__.place)
        branch.paused_until[error.__cause__.place] = monotonic() + _RETRY_SECONDS
        reports.outage(branch.plan.name, error)
        return []


def _read(branch: _Branch) -> list[Delivery]:
    """Poll as many records as there is room for, and track them; without room, poll for the heartbeat only.

    In quiet times there is no room: what is on the topic waits there.
    """
    room = 0 if branch.plan.is_quiet() else branch.plan.max_in_flight - branch.lanes.in_flight
    if room > 0:
        paused = branch.reader.paused()
        branch.reader.resume(*(place for place in paused if branch.paused_until.get(place, 0.0) <= monotonic()))
        wait_ms = _BUSY_POLL_MS if branch.lanes.in_flight else _POLL_MS
    else:
        branch.reader.pause(*branch.reader.assignment())
        wait_ms = 0 if branch.lanes.in_flight else _POLL_MS
    polled = _poll(branch, wait_ms, max(1, room))
    for _ in range(branch.moves.qsize()):
        branch.moves.get()(branch.tracker)
    if polled is None:
        branch.watch.check(branch.reader, ())
        return []
    # The client may return records of topic partitions that it has revoked or not yet assigned: they are ignored.
    assigned = branch.reader.assignment()
    held = {place for place in assigned if branch.tracker.is_positioned(place.partition)}
    for place in assigned - held:
        polled_from = polled[place][0].offset if place in polled else None
        committed = branch.reader.committed(place) if branch.plan.is_compacted else None
        if (again := branch.tracker.resolve_start(place.partition, polled_from, committed)) is not None:
            branch.reader.seek(place, again)
    has_waited = sum(map(len, polled.values())) < room
    branch.watch.check(branch.reader, held - branch.reader.paused() if has_waited else ())
    deliveries = _deliveries(branch, [record for place in held for record in polled.get(place, ())])
    for place in held:
        ours = [delivery for delivery in deliveries if delivery.record.partition == place.partition]
        position = branch.reader.position(place)
        if branch.plan.is_compacted:
            expected = branch.tracker.next_offset(place.partition)
            branch.counts.losses += compaction_losses(place, expected, position, len(polled.get(place, ())))
        branch.tracker.record_read(place.partition, position, ours)
    return deliveries


def _poll(branch: _Branch, wait_ms: int, max_records: int) -> dict[TopicPartition, list[Any]] | None:
    """Poll; return None if a checkpoint was missing or outside the log: then positions may still be unknown."""
    begun: tuple[Loss, ...] | None = ()
    try:
        return poll_group_member(branch.reader, wait_ms, max_records)
    except kafka_errors.NoOffsetForPartitionError as error:
        begun = seek_without_checkpoint(branch.reader, error.args[0], branch.plan.destination.begin)
        branch.counts.losses += begun or ()
    except kafka_errors.OffsetOutOfRangeError as error:
        branch.counts.losses += seek_after_data_loss(branch.reader, error.args[0])
        for place in error.args[0]:
            branch.tracker.restart(place.partition)
    finally:
        branch.watch.waits_since = (branch.watch.waits_since or monotonic()) if begun is None else None
    return None


def _deliveries(branch: _Branch, records: Sequence[Any]) -> list[Delivery]:
    if not records:
        return []
    decoded = branch.plan.decode(records, branch.settings.contract)
    branch.counts.malformed += decoded.malformed
    notifications = ((record, branch.plan.notification(item)) for record, item in decoded.events)
    return [Delivery(record, notification) for record, notification in notifications if notification]


def _settle(branch: _Branch, wait_seconds: float) -> None:
    """Mark deliveries as done: delivered ones, those of erased users, and rejected ones once they are dead letters.

    One that is revoked is delivered, or becomes a dead letter, by the new owner of its topic partition.
    """
    for reason in branch.lanes.failed_attempts():
        branch.counts.failed_attempts += 1
        branch.counts.failure = reason
    failed: list[tuple[Delivery, Any, str]] = []
    for delivery, answer in branch.lanes.poll_results(wait_seconds):
        if answer.outcome is Outcome.DELIVERED:
            branch.tracker.mark_done(delivery)
            branch.counts.delivered += 1
        elif answer.outcome is Outcome.RETRY or delivery.revoked:
            continue
        elif answer.outcome is Outcome.ERASED or (event := branch.redact(delivery.notification.event)) is None:
            branch.tracker.mark_done(delivery)
            branch.counts.erased += 1
        else:
            known = delivery.notification.event
            record = without_names(delivery.record, known, event, branch.settings.contract)
            failed.append((delivery, record, answer.reason))
    if failed:
        write_dead_letters(branch.dead_letters, branch.plan.name, failed)
        for delivery, *_ in failed:
            branch.tracker.mark_done(delivery)
        branch.counts.dead_letters += len(failed)
        branch.counts.reason = failed[-1][-1]


def _commit(branch: _Branch, reports: Reports) -> None:
    """Commit the checkpoints and report; during a rebalance nothing is committed, and the next poll handles it."""
    branch.committed_at = monotonic()
    checkpoints = branch.tracker.checkpoints()
    topic = branch.plan.kafka.topic
    offsets = {TopicPartition(topic, number): OffsetAndMetadata(at, "", -1) for number, at in checkpoints.items()}
    with (
        translate_errors(branch.plan.kafka, f"committing the offsets of {branch.plan.name}"),
        contextlib.suppress(*_MOVED),
    ):
        if offsets:
            branch.reader.commit(offsets)
            branch.tracker.mark_committed(checkpoints)
    if branch.counts != DeliveryCounts():
        reports.done(branch.plan.name, branch.counts)
        branch.counts = DeliveryCounts()


@contextlib.contextmanager
def _opened(plan: Plan, settings: Settings, redact: Redact, reports: Reports) -> Generator[_Branch]:
    """Yield a branch that joins its group; on exit, commit and report what was delivered in time."""
    kafka = plan.kafka
    group_id = f"{settings.notify.group_id}.{plan.name}"
    options = {
        "group_id": group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # `_poll` decides: the client treats an expired checkpoint as a missing one
        "isolation_level": "read_committed",
        "session_timeout_ms": _SESSION_MS,
        "metadata_max_age_ms": _METADATA_MS,
    }
    with (
        translate_errors(kafka, f"notifying {plan.name}"),
        open_copy_writer(dlq_settings(kafka)) as dead_letters,
        consumer(kafka, **options) as reader,
    ):
        transports = [plan.open_transport() for _ in range(plan.destination.lanes)]
        lanes = Lanes(transports, plan.destination.attempts, plan.is_quiet, redact)
        branch = _Branch(plan, settings, reader, dead_letters, lanes, Watch(kafka, group_id), redact)
        reader.subscribe([kafka.topic], listener=_Moves(branch.moves))
        try:
            yield branch
        finally:
            branch.lanes.stop(settings.notify.stop_seconds)
        _settle(branch, wait_seconds=0.0)
        _commit(branch, reports)


class _Moves(ConsumerRebalanceListener):
    """Queues assignments and revocations for the branch to apply after the poll.

    The client calls it on its own thread, where a commit cannot be awaited: what was delivered since the last commit is
    delivered again by the new owner of the topic partition.
    """

    def __init__(self, moves: "queue.SimpleQueue[_Move]") -> None:
        self._moves = moves

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Stop tracking them: they go to another notifier."""
        partitions = [place.partition for place in revoked]
        self._moves.put(lambda tracker: tracker.revoke(partitions))

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Track them from the committed offsets of the group."""
        partitions = [place.partition for place in assigned]
        self._moves.put(lambda tracker: tracker.assign(partitions))
