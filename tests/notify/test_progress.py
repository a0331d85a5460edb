"""A notifier of which the client has silently stopped says so, and joins its group again (`isolated`)."""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.errors import CoordinatorNotAvailableError
from kafka.structs import MemberState  # pyright: ignore[reportAttributeAccessIssue] - outdated stubs

from pipelines.bus.clients import producer
from pipelines.bus.topics import ensure_topic
from pipelines.errors import TransientError
from pipelines.notify import branch, progress
from pipelines.notify.branch import Reports
from pipelines.notify.rule_file import load_rules
from pipelines.notify.run import notify, plans
from pipelines.settings import Settings
from tests.draining import send, valid_records
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import webhook
from tests.notify.receiver import SECRET, Receiver
from tests.services.kafka_cluster import KafkaCluster
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.jvm


class Clock:
    """The clock of `Watch`. It leaps ahead before each of its checks of a member in one of `states`."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.states: set[MemberState] = set()

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def before_check(self, member: Any) -> None:
        if member.group_metadata().state in self.states:
            self.ahead += 100


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of `Watch`, also where it is a default."""
    clock, check = Clock(), progress.Watch.check
    monkeypatch.setattr(progress, "monotonic", clock)
    for name in ("_stable_at", "_assigned_at", "_compared_at"):
        monkeypatch.setattr(progress.Watch.__dataclass_fields__[name], "default_factory", clock)

    def leap_and_check(watch: progress.Watch, member: Any, readable: Any) -> None:
        clock.before_check(member)
        check(watch, member, readable)

    monkeypatch.setattr(progress.Watch, "check", leap_and_check)
    return clock


@contextmanager
def _notifying(settings: Settings, rule_file: Path) -> Iterator[list[TransientError]]:
    """Run a notifier in a thread and yield the outages that it reports, a growing list."""
    outages: list[TransientError] = []
    failures: list[BaseException] = []
    stopping = threading.Event()
    reports = Reports(
        done=lambda *_: None,
        outage=lambda _, error: outages.append(error),
        failure=lambda _, error: failures.append(error),
    )
    planned = plans(load_rules(rule_file), settings, Mock)
    thread = threading.Thread(target=notify, args=(settings, planned, stopping, reports))
    thread.start()
    try:
        yield outages
    finally:
        stopping.set()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert failures == []


def _await_outage(clock: Clock, outages: list[TransientError], reason: str, states: set[MemberState]) -> None:
    clock.states = states
    wait_for("the report", lambda: any(reason in str(error) for error in outages))
    clock.states = set()


def _has(receiver: Receiver, count: int) -> bool:
    return len(set(receiver.keys)) == count


def test_a_group_without_a_coordinator_is_an_outage(
    settings: Settings,
    tmp_path: Path,
    receiver: Receiver,
    write_rules: WriteRules,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The topic of the groups' offsets cannot be created, as with fewer brokers than its replicas: nothing is read."""
    require("kafka")
    monkeypatch.setenv("NOTIFY_TEST_SECRET", SECRET)
    with KafkaCluster(tmp_path, properties={"offsets.topic.replication.factor": "3"}) as cluster:
        bus = settings.model_copy(update={"kafka": cluster.settings(topic="events", partitions=1)})
        ensure_topic(bus.kafka)
        with _notifying(bus, write_rules(webhook("ops", receiver.url))) as outages:
            _await_outage(
                clock, outages, "has assigned no topic partitions", {MemberState.UNJOINED, MemberState.REBALANCING}
            )


def test_a_lone_member_without_topic_partitions_joins_again(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader assigns nothing, and is stable: it is noticed, and all events are delivered."""
    assign = RangePartitionAssignor.assign
    nothing = Mock(partitions_for_topic=lambda _: None)
    send(bus, valid_records(range(50)))
    with _notifying(bus, write_rules(webhook("ops", receiver.url))) as outages:
        monkeypatch.setattr(
            RangePartitionAssignor,
            "assign",
            staticmethod(lambda cluster, members: assign(cluster if outages else nothing, members)),
        )
        _await_outage(clock, outages, "has one member, without topic partitions", {MemberState.STABLE})
        wait_for("all events", lambda: _has(receiver, 50))


def test_a_lost_fetch_is_repeated_by_a_new_client(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client waits for a response that it has received, and fetches no more: the rest is delivered all the same."""
    clear = Fetcher._clear_pending_fetch_request
    lost: list[Fetcher] = []

    def forget(fetcher: Any, *arguments: Any) -> None:
        if fetcher._subscriptions.partitions_auto_assigned() and lost in ([], [fetcher]):
            lost[:] = [fetcher]
        else:
            clear(fetcher, *arguments)

    monkeypatch.setattr(Fetcher, "_clear_pending_fetch_request", forget)
    with _notifying(bus, write_rules(webhook("ops", receiver.url))) as outages:
        wait_for("the first fetch", lambda: lost)
        send(bus, valid_records(range(50)))
        _await_outage(clock, outages, "but none were received", {MemberState.STABLE})
        wait_for("all events", lambda: _has(receiver, 50))


def test_quiet_and_slow_destinations_are_not_stuck(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, clock: Clock
) -> None:
    """At the end of the topic, and while the receiver hangs with a backlog, an hour passes without a report."""
    receiver.answer = receiver.hang
    with _notifying(bus, write_rules(webhook("ops", receiver.url, "request_seconds = 600\nlanes = 1"))) as outages:
        clock.states = {MemberState.STABLE}
        wait_for("an hour", lambda: clock.ahead > 3600)
        clock.ahead, clock.states = 0.0, set()
        send(bus, valid_records(range(100)))
        wait_for("a hanging delivery", lambda: receiver.requests)
        clock.states = {MemberState.STABLE}
        wait_for("an hour", lambda: clock.ahead > 3600)
        assert outages == []


def test_records_that_are_not_committed_are_not_missing(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, clock: Clock
) -> None:
    """Behind an aborted and before an open transaction, an hour passes without a report."""
    with closing(producer(bus.kafka, transactional_id=uuid.uuid4().hex)) as sender:
        sender.init_transactions()
        for numbers, end in ((range(20), sender.commit_transaction), (range(20, 40), sender.abort_transaction)):
            sender.begin_transaction()
            _send_with(sender, bus, numbers)
            end()
        with _notifying(bus, write_rules(webhook("ops", receiver.url))) as outages:
            wait_for("the committed events", lambda: _has(receiver, 20))
            sender.begin_transaction()
            _send_with(sender, bus, range(40, 60))
            clock.states = {MemberState.STABLE}
            wait_for("an hour", lambda: clock.ahead > 3600)
            assert outages == []
            clock.states = set()
            sender.commit_transaction()
            wait_for("the events of the open transaction", lambda: _has(receiver, 40))
    assert outages == []


def _send_with(sender: Any, bus: Settings, numbers: range) -> None:
    for record in valid_records(numbers):
        sender.send(bus.kafka.topic, record.value, record.key)
    sender.flush()


def test_a_rejoin_that_is_no_longer_needed_is_completed(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer lacks the topic's partitions, and the coordinator is lost meanwhile: the client stays a member."""
    monkeypatch.setattr(branch, "_METADATA_MS", 500)
    snapshot, join = ConsumerCoordinator._build_metadata_snapshot, ConsumerCoordinator._do_join_and_sync_async
    lacking, lost = threading.Event(), threading.Event()

    def lack_once(coordinator: Any, subscription: Any, cluster: Any) -> dict[str, set[int]]:
        found = snapshot(coordinator, subscription, cluster)
        return {topic: set() for topic in found} if lacking.is_set() else found

    async def lose_once(coordinator: Any) -> Any:
        if not lacking.is_set():
            return await join(coordinator)
        lacking.clear()
        coordinator._handle_metadata_update(coordinator._cluster)
        lost.set()
        raise CoordinatorNotAvailableError

    monkeypatch.setattr(ConsumerCoordinator, "_build_metadata_snapshot", lack_once)
    monkeypatch.setattr(ConsumerCoordinator, "_do_join_and_sync_async", lose_once)
    send(bus, valid_records(range(50)))
    with _notifying(bus, write_rules(webhook("ops", receiver.url))) as outages:
        wait_for("the first events", lambda: _has(receiver, 50))
        lacking.set()
        wait_for("the loss of the coordinator", lost.is_set)
        send(bus, valid_records(range(50, 100)))
        wait_for("all events", lambda: _has(receiver, 100))
    assert outages == []
