"""One destination: read the topic, deliver, move the checkpoint. The whole protocol stands in `_turn`.

Every destination is a consumer group of its own, `{group_id}.{destination}`: its offsets are its checkpoint, and
Kafka's group protocol divides the topic partitions among notifiers. So a destination that hangs stops reading when
its share of what may be in flight is used up, for as long as it hangs, and no other notices (`isolated`).

A checkpoint is committed behind what was taken or is a dead letter, in order. A crash at any step delivers what lies
above it again, under the same idempotency key; so does whoever is given a topic partition of ours. Nothing is
missed, a user's notifications first arrive in order, and the receiver drops the copies by their key.
Where the log begins and the checkpoints do not meet is `starts.py`.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.bus.clients import consumer, poll_as_member, translated
from pipelines.bus.records import DamagedBatchError
from pipelines.emit.copies import CopyWriter, open_copies
from pipelines.errors import KarmalakeError, TransientError
from pipelines.notify.answers import Notification, Transport, Verdict, described
from pipelines.notify.dead_letters import bury, dead_letters_of
from pipelines.notify.events import understand
from pipelines.notify.lanes import Delivery, Lanes
from pipelines.notify.progress import Progress
from pipelines.notify.rules import Destination, Rule
from pipelines.notify.starts import Loss, begin_without_checkpoint, go_on_after_loss
from pipelines.notify.template import Event, fill
from pipelines.settings import Settings

_POLL_MS = 500
_BUSY_POLL_MS = 20
_COMMIT_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_SESSION_MS = 10_000
"""After so long without a sign of life a notifier's topic partitions go to the others."""
_METADATA_MS = 10_000
"""How long topic partitions that are new may be nobody's: who leads the group has to hear of them first."""
_MOVED: tuple[type[Exception], ...] = (kafka_errors.CommitFailedError, kafka_errors.RebalanceInProgressError)
_ENDS_THE_PROCESS = (KarmalakeError, KeyboardInterrupt, SystemExit, GeneratorExit)
_LOG = logging.getLogger(__name__)

_Move = Callable[[Progress], None]


@dataclass(slots=True)
class Tally:
    """What was done since the last report."""

    delivered: int = 0
    dead_letters: int = 0
    malformed: int = 0
    """Records that are no events."""
    reason: str = ""
    """Of the last dead letter."""
    losses: tuple[Loss, ...] = ()
    """What the topic no longer held when it was to be read."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a destination is, and how it is reached."""

    name: str
    destination: Destination
    rules: tuple[Rule, ...]
    most_in_flight: int
    open_transport: Callable[[], Transport]

    def notification(self, event: Event) -> Notification | None:
        """Return what is told of an event: by the first rule that speaks of it."""
        rule = next((rule for rule in self.rules if rule.speaks_of(event)), None)
        return rule and Notification(event, rule.name, fill(rule.text, event))


@dataclass(frozen=True, slots=True)
class Reports:
    """Who hears of what a destination does, by its name; called from the destinations' threads."""

    done: Callable[[str, Tally], None]
    outage: Callable[[str, TransientError], None]
    """A service did not answer; it is tried again."""
    failure: Callable[[str, BaseException], None]
    """A bug: the destination begins again at its checkpoint, and its process is not healthy any more."""
    turn: Callable[[str], None] = lambda _: None
    """A turn ended, whether it found anything to do or not."""


def serve(plan: Plan, settings: Settings, stopping: threading.Event, reports: Reports) -> None:
    """Deliver until `stopping` is set.

    A broker that does not answer only delays, and an error that nobody foresaw too: the others go on (`isolated`).
    Raises ConfigurationError for what another try cannot fix.
    """
    while not stopping.is_set():
        try:
            with _opened(plan, settings) as branch:
                while not stopping.is_set():
                    _turn(branch, reports)
                    reports.turn(plan.name)
        except TransientError as error:
            reports.outage(plan.name, error)
        except _ENDS_THE_PROCESS:
            raise
        except BaseException as error:  # noqa: BLE001 - also a panic of a library in Rust
            _LOG.warning("%s: %s", plan.name, described(error), exc_info=error)
            reports.failure(plan.name, error)
        stopping.wait(_RETRY_SECONDS)


@dataclass(slots=True)
class _Branch:
    plan: Plan
    settings: Settings
    reader: Any
    dead_letters: CopyWriter
    lanes: Lanes
    progress: Progress = field(default_factory=Progress)
    tally: Tally = field(default_factory=Tally)
    moves: "queue.SimpleQueue[_Move]" = field(default_factory=queue.SimpleQueue)
    """What became of topic partitions during the last poll, in its order."""
    committed_at: float = 0.0
    paused_until: dict[TopicPartition, float] = field(default_factory=dict[TopicPartition, float])
    """When topic partitions with a damaged batch next are read again: another replica may lead by then."""


def _turn(branch: _Branch, reports: Reports) -> None:
    if branch.lanes.broken is not None:
        raise RuntimeError(f"a lane ended: {branch.lanes.broken}")
    deliveries = _read_whole(branch, reports)
    for delivery in deliveries:
        branch.lanes.hand(delivery)
    _settle(branch, wait_seconds=0.0 if deliveries else _BUSY_POLL_MS / 1000)
    settled = branch.tally.delivered + branch.tally.dead_letters
    if settled >= branch.plan.most_in_flight or monotonic() - branch.committed_at >= _COMMIT_SECONDS:
        _commit(branch)
        if branch.tally != Tally():
            reports.done(branch.plan.name, branch.tally)
            branch.tally = Tally()


def _read_whole(branch: _Branch, reports: Reports) -> list[Delivery]:
    """Read; a damaged batch pauses its own topic partition and is reported, the others go on (`isolated`)."""
    try:
        with translated(branch.settings.kafka, f"notifying {branch.plan.name}"):
            return _read(branch)
    except TransientError as error:
        if not isinstance(error.__cause__, DamagedBatchError):
            raise
        branch.reader.pause(error.__cause__.place)
        branch.paused_until[error.__cause__.place] = monotonic() + _RETRY_SECONDS
        reports.outage(branch.plan.name, error)
        return []


def _read(branch: _Branch) -> list[Delivery]:
    """Poll as much as there is room for, and note it in the progress; a full branch polls for its heartbeat only."""
    room = branch.plan.most_in_flight - branch.lanes.in_flight
    if room > 0:
        paused = branch.reader.paused()
        branch.reader.resume(*(place for place in paused if branch.paused_until.get(place, 0.0) <= monotonic()))
        wait_ms = _BUSY_POLL_MS if branch.lanes.in_flight else _POLL_MS
    else:
        branch.reader.pause(*branch.reader.assignment())
        wait_ms = 0
    polled = _poll(branch, wait_ms, max(1, room))
    for _ in range(branch.moves.qsize()):
        branch.moves.get()(branch.progress)
    # The client may list and return what is not ours any more, or not yet by its own word: that does not count.
    assigned = branch.reader.assignment()
    held = {place for place in assigned if branch.progress.is_read(place.partition)}
    for place in assigned - held:
        polled_from = polled[place][0].offset if place in polled else None
        if (again := branch.progress.begin(place.partition, polled_from)) is not None:
            branch.reader.seek(place, again)
    deliveries = _deliveries(branch, [record for place in held for record in polled.get(place, ())])
    for place in held:
        ours = [delivery for delivery in deliveries if delivery.record.partition == place.partition]
        branch.progress.read(place.partition, branch.reader.position(place), ours)
    return deliveries


def _poll(branch: _Branch, wait_ms: int, most_records: int) -> dict[TopicPartition, list[Any]]:
    """Poll; where the log and the checkpoints do not meet, the reader is placed, and nothing is returned."""
    try:
        return poll_as_member(branch.reader, wait_ms, most_records)
    except kafka_errors.NoOffsetForPartitionError as error:
        begin_without_checkpoint(branch.reader, error.args[0], branch.plan.destination.begin)
    except kafka_errors.OffsetOutOfRangeError as error:
        branch.tally.losses += go_on_after_loss(branch.reader, error.args[0])
    return {}


def _deliveries(branch: _Branch, records: Sequence[Any]) -> list[Delivery]:
    if not records:
        return []
    understood = understand(records, branch.settings.contract)
    branch.tally.malformed += understood.malformed
    told = ((record, branch.plan.notification(event)) for record, event in understood.events)
    return [Delivery(record, notification) for record, notification in told if notification]


def _settle(branch: _Branch, wait_seconds: float) -> None:
    """Note what was taken, and what was refused for good once it is a dead letter."""
    failed: list[tuple[Delivery, str]] = []
    for delivery, answer in branch.lanes.collect(wait_seconds):
        if answer.verdict is Verdict.TAKEN:
            branch.progress.settle(delivery)
            branch.tally.delivered += 1
        elif answer.verdict is Verdict.NEVER:
            failed.append((delivery, answer.reason))
    if failed:
        bury(branch.dead_letters, branch.plan.name, failed)
        for delivery, _ in failed:
            branch.progress.settle(delivery)
        branch.tally.dead_letters += len(failed)
        branch.tally.reason = failed[-1][1]


def _commit(branch: _Branch) -> None:
    """Commit the checkpoints; where the topic partitions are being moved, the next poll learns of it."""
    branch.committed_at = monotonic()
    checkpoints = branch.progress.checkpoints()
    topic = branch.settings.kafka.topic
    offsets = {TopicPartition(topic, number): OffsetAndMetadata(at, "", -1) for number, at in checkpoints.items()}
    with (
        translated(branch.settings.kafka, f"committing the offsets of {branch.plan.name}"),
        contextlib.suppress(*_MOVED),
    ):
        if offsets:
            branch.reader.commit(offsets)
            branch.progress.committed(checkpoints)


@contextlib.contextmanager
def _opened(plan: Plan, settings: Settings) -> Generator[_Branch]:
    """Yield a branch that has joined its group; leaving it settles and commits what was answered in time."""
    kafka = settings.kafka
    options = {
        "group_id": f"{settings.notify.group_id}.{plan.name}",
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # `_poll` decides: the client takes an old checkpoint for none
        "isolation_level": "read_committed",
        "session_timeout_ms": _SESSION_MS,
        "metadata_max_age_ms": _METADATA_MS,
    }
    with (
        translated(kafka, f"notifying {plan.name}"),
        open_copies(dead_letters_of(kafka)) as dead_letters,
        consumer(kafka, **options) as reader,
    ):
        transports = [plan.open_transport() for _ in range(plan.destination.lanes)]
        branch = _Branch(plan, settings, reader, dead_letters, Lanes(transports, plan.destination.attempts))
        reader.subscribe([kafka.topic], listener=_Moves(branch.moves))
        try:
            yield branch
        finally:
            branch.lanes.stop(settings.notify.stop_seconds)
        _settle(branch, wait_seconds=0.0)
        _commit(branch)


class _Moves(ConsumerRebalanceListener):
    """Tells the branch, after the poll, what is no longer its own, and what is now.

    The client calls it on a thread of its own, where no commit can be waited for: what was delivered since the last
    commit is delivered again by whoever has the topic partition now.
    """

    def __init__(self, moves: "queue.SimpleQueue[_Move]") -> None:
        self._moves = moves

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Leave them to whoever has them next."""
        partitions = [place.partition for place in revoked]
        self._moves.put(lambda progress: progress.leave(partitions))

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin with them where the group has committed."""
        partitions = [place.partition for place in assigned]
        self._moves.put(lambda progress: progress.take(partitions))
