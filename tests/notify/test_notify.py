"""Notifiers on a real Apache Kafka: nothing is missed or blocked by hangs, rejections and kills."""

import subprocess
import threading
from contextlib import closing
from time import monotonic, sleep
from typing import Any

import pytest

from pipelines.bus import inflate as inflate_module
from pipelines.bus.clients import consumer, producer
from pipelines.bus.topics import ensure_topic
from pipelines.emit.producer import Record
from pipelines.notify import branch as branch_module
from pipelines.notify.dead_letters import dlq_settings
from pipelines.notify.delivery import DeliveryResult, Transport
from pipelines.notify.lanes import Delivery, Lanes
from pipelines.operate.audit import audit
from pipelines.serving.client import connect
from pipelines.settings import Settings
from tests.bus.test_records import Key
from tests.draining import drain_all, query, send, valid_records
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import checkpoints, command, lag, notifying, stream, webhook
from tests.notify.receiver import Receiver, Request, Status
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.jvm


def _ids(numbers: range) -> set[str]:
    return {f"e-{number}" for number in numbers}


def _first_arrivals_by_user(keys: list[str]) -> dict[int, list[int]]:
    numbers = [int(key.removeprefix("e-")) for key in dict.fromkeys(keys)]
    return {user: [number for number in numbers if number % 7 == user] for user in range(7)}


def _in_order(count: int) -> dict[int, list[int]]:
    return {user: list(range(user, count, 7)) for user in range(7)}


def _dead_letters(settings: Settings, count: int) -> list[Any]:
    with consumer(dlq_settings(settings.kafka), auto_offset_reset="earliest") as reader:
        reader.subscribe([dlq_settings(settings.kafka).topic])
        found: list[Any] = []
        wait_for("the dead letters", lambda: len(found) >= count or found.extend(next(reader) for _ in range(count)))
    return found


def test_events_are_delivered_in_order_and_the_checkpoint_follows(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """Each event once if nothing fails, signed, in order per user; then no record is above the checkpoint."""
    send(bus, [*valid_records(range(100)), *valid_records(range(100, 130), "B")])
    with notifying(bus, write_rules(webhook("ops", receiver.url))):
        wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
    assert len(receiver.keys) == 100
    assert _first_arrivals_by_user(receiver.keys) == _in_order(100)
    assert all(request.is_signed for request in receiver.requests)
    assert {request.payload["text"] for request in receiver.requests} == {f"u-{n % 7}: {n}" for n in range(100)}


def test_what_is_delivered_last_is_reported(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what a stop comes upon between two commits, in the output and the metrics."""
    monkeypatch.setattr(branch_module, "_COMMIT_SECONDS", float("inf"))
    send(bus, valid_records(range(3)))
    with notifying(bus, write_rules(webhook("ops", receiver.url))) as done:
        wait_for("the deliveries", lambda: len(receiver.keys) == 3)
    assert done.delivered("ops") == 3
    assert lag(bus, "ops") == 0


def test_a_rejected_notification_becomes_a_dead_letter_and_blocks_nothing(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """The dead letter is the original record with the reason, so it can be delivered again.

    Malformed records are only counted.
    """

    def answer(request: Request) -> Status:
        return {"e-3": 422, "e-5": 503}.get(request.key, 204)

    receiver.answer = answer
    records = valid_records(range(30))
    send(bus, [*records[:10], Record(b"k", b"\xff"), Record(b"k", None), *records[10:]])
    with notifying(bus, write_rules(webhook("ops", receiver.url, "attempts = 2"))) as done:
        wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
        wait_for("the report", lambda: done.delivered("ops") == 28)
    assert set(receiver.keys) == _ids(range(30))
    assert (receiver.keys.count("e-3"), receiver.keys.count("e-5")) == (1, 2)
    assert (done.malformed("ops"), done.failed_attempts("ops")) == (2, 2)
    letters = {letter.value: dict(letter.headers) for letter in _dead_letters(bus, 2)}
    assert {value: headers["karmalake.notify.reason"] for value, headers in letters.items()} == {
        records[3].value: b"HTTP 422",
        records[5].value: b"HTTP 503, after 2 attempts",
    }
    assert {headers["karmalake.notify.destination"] for headers in letters.values()} == {b"ops"}
    receiver.requests.clear()
    receiver.answer = lambda _: 204
    notify = bus.notify.model_copy(update={"group_id": f"{bus.notify.group_id}-again"})
    again = bus.model_copy(update={"kafka": dlq_settings(bus.kafka), "notify": notify})
    with notifying(again, write_rules(webhook("ops", receiver.url))):
        wait_for("the dead letters, as the page delivers them again", lambda: {*receiver.keys} == {"e-3", "e-5"})
    drain_all(bus)
    assert query(bus, "SELECT count(*) FROM dead_letters") == [(2,)]


def test_a_dead_letter_too_large_for_its_topic_is_truncated(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """Record and reason exceed the limit of the topic: the copy locates the original, and blocks nothing."""
    receiver.answer = lambda request: {"e-0": 422}.get(request.key, 204)
    large, *others = valid_records(range(20))
    send(bus, [large._replace(headers=[("note", b"x" * 1_048_350)]), *others])
    with notifying(bus, write_rules(webhook("ops", receiver.url))):
        wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
    assert set(receiver.keys) == _ids(range(20))
    [letter] = _dead_letters(bus, 1)
    headers = dict(letter.headers)
    assert (letter.value, "note" in headers, headers["karmalake.headers_left_out"]) == (large.value, False, b"1")
    assert headers["karmalake.notify.reason"] == b"HTTP 422"
    assert {"karmalake.notify.topic_partition", "karmalake.notify.offset"} <= headers.keys()


def test_a_destination_restarts_after_a_bug(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead lane is detected, its deliveries are made, and no other destination is affected (`isolated`)."""
    deliver, broken = Lanes._deliver, threading.Event()

    def breaks_once(lanes: Lanes, delivery: Delivery, transport: Transport) -> DeliveryResult:
        if delivery.notification.rule == "ops" and not broken.is_set():
            broken.set()
            raise SystemExit
        return deliver(lanes, delivery, transport)

    monkeypatch.setattr(Lanes, "_deliver", breaks_once)
    send(bus, valid_records(range(40)))
    with Receiver() as other:
        rules = write_rules(webhook("ops", receiver.url), webhook("app", other.url))
        with notifying(bus, rules) as done:
            wait_for("the checkpoints to be at the end", lambda: lag(bus, "ops") + lag(bus, "app") == 0)
            [failure] = done.failures
            done.failures.clear()
        assert other.keys == list(dict.fromkeys(other.keys))
        assert set(receiver.keys) == set(other.keys) == _ids(range(40))
    assert str(failure) == "a delivery lane failed: SystemExit: "
    assert _first_arrivals_by_user(receiver.keys) == _in_order(40)


def test_an_unreadable_batch_blocks_nothing(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decompression bomb, or a header whose key is not text: later events are delivered (`not-blocked`).

    The audit reads the topic by records as well, and accounts for each of them (`nothing-lost`).
    """
    monkeypatch.setattr(inflate_module, "MAX_DECOMPRESSED_BYTES", 100_000)
    send(bus, valid_records(range(10)))
    with closing(producer(bus.kafka, compression_type="gzip")) as compressing:
        compressing.send(bus.kafka.topic, bytes(400_000), b"u-1").get(10)
    invalid_headers = [Record(r.key, r.value, [(Key(b"\xff\xfe"), b"1")]) for r in valid_records(range(10, 20))]
    send(bus, [*invalid_headers, *valid_records(range(20, 30))])
    with notifying(bus, write_rules(webhook("ops", receiver.url))) as done:
        wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
        wait_for("the report", lambda: done.delivered("ops") == 30)
    assert set(receiver.keys) == _ids(range(30))
    assert done.malformed("ops") == 1
    drain_all(bus)
    found = audit(bus)
    assert found.passed
    assert (found.events, sum(p.dead_letters for p in found.partitions)) == (30, 1)
    dead_letters_sql = (
        "SELECT octet_length(value) < 1000, reason, detail LIKE '%was not decompressed%' FROM dead_letters"
    )
    assert query(bus, dead_letters_sql) == [(True, "undecodable", True)]


def test_retry_after_is_respected(bus: Settings, receiver: Receiver, write_rules: WriteRules) -> None:
    """The second attempt is made no earlier than the receiver asked, with the same key."""
    times: list[float] = []

    def answer(_: Request) -> Status:
        times.append(monotonic())
        return (429, {"Retry-After": "2"}) if len(times) == 1 else 204

    receiver.answer = answer
    send(bus, valid_records(range(1)))
    with notifying(bus, write_rules(webhook("ops", receiver.url))):
        wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
    assert receiver.keys == ["e-0", "e-0"]
    assert times[1] - times[0] >= 2


@pytest.mark.parametrize("seconds", [5, pytest.param(45, marks=pytest.mark.slow)])
def test_a_hung_webhook_delays_no_other_destination(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, seconds: int
) -> None:
    """While one hangs, far beyond the limit in flight, the others and ingest keep up (`isolated`).

    The longer time is over four times what Kafka has for a request, and a member of a group for a sign of life. Between
    rounds the test pauses, to leave the processor to others.
    """
    bus = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"request_timeout_seconds": 10})})
    key = f"{bus.redis.prefix}.told"
    hanging = Receiver()
    hanging.answer = hanging.hang
    rules = write_rules(
        webhook("hung", hanging.url, "request_seconds = 600\nlanes = 2"),
        webhook("ops", receiver.url),
        stream("app", key),
    )
    client = connect(bus.redis)
    count, waited = 0, []
    with hanging, notifying(bus, rules):
        begun = monotonic()
        while monotonic() - begun < seconds:
            count += send(bus, valid_records(range(count, count + 100)))
            started = monotonic()
            wait_for("the other destinations to keep up", lambda: lag(bus, "ops") + lag(bus, "app") == 0)
            waited.append(monotonic() - started)
            assert sum(record.total("read") for record in drain_all(bus)) == 100
            sleep(seconds / 15)
        assert max(waited[1:], default=0) < 60, f"the lag did not stay flat: {waited}"
        assert lag(bus, "hung") == count
        assert 1 <= len(hanging.requests) <= 2
    assert set(receiver.keys) == _ids(range(count))
    assert client.xlen(key) == count
    assert query(bus, "SELECT count(*) FROM events") == [(count,)]
    client.close()


@pytest.mark.slow
def test_kills_miss_nothing_and_repeat_only_the_same_key(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """SIGKILL during delivery, three times: every event is delivered, in order except for a bounded set of repeats."""
    count, rules = 400, write_rules(webhook("ops", receiver.url))
    send(bus, valid_records(range(count)))
    for share in (0.2, 0.5, 0.8):
        with ended(command(bus, rules)) as victim:
            wait_for("a part to be told", lambda share=share: len(set(receiver.keys)) >= share * count)
            victim.kill()
    with ended(command(bus, rules)) as last:
        wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
        last.terminate()
        last.wait(PATIENCE_SECONDS)
    assert set(receiver.keys) == _ids(range(count))
    assert _first_arrivals_by_user(receiver.keys) == _in_order(count)
    assert {request.key for request in receiver.requests} == {
        request.payload["event_id"] for request in receiver.requests
    }
    assert len(receiver.keys) <= count + 3 * 2 * bus.notify.max_in_flight


def test_two_notifiers_share_the_topic_partitions(bus: Settings, receiver: Receiver, write_rules: WriteRules) -> None:
    """Both deliver; when one stops, the other takes over; nothing is missed in the rebalance."""
    rules, count = write_rules(webhook("ops", receiver.url)), 0
    with notifying(bus, rules) as first:
        with notifying(bus, rules) as second:
            deadline = monotonic() + PATIENCE_SECONDS
            while not (first.delivered("ops") and second.delivered("ops")):
                assert monotonic() < deadline, "one of two notifiers got nothing to do"
                count += send(bus, valid_records(range(count, count + 100)))
                sent = _ids(range(count))
                wait_for("what was sent to be told", lambda sent=sent: set(receiver.keys) >= sent)
        count += send(bus, valid_records(range(count, count + 100)))
        wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
    assert set(receiver.keys) == _ids(range(count))
    assert _first_arrivals_by_user(receiver.keys) == _in_order(count)


def test_deliveries_in_flight_during_a_rebalance_are_made(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """Also for topic partitions that stay with the same notifier: it reads them again."""
    receiver.answer = lambda _: sleep(0.1) or 204
    rules = write_rules(webhook("ops", receiver.url))
    count = send(bus, valid_records(range(300)))
    with notifying(bus, rules) as first:
        wait_for("the first to be under way", lambda: first.delivered("ops"))
        with notifying(bus, rules) as second:
            wait_for("the topic partitions to be divided", lambda: second.delivered("ops"))
            receiver.answer = lambda _: 204
            wait_for("what was sent to be told", lambda: set(receiver.keys) == _ids(range(count)))
            wait_for("the checkpoint to be at the end", lambda: lag(bus, "ops") == 0)
    assert _first_arrivals_by_user(receiver.keys) == _in_order(count)


def test_records_polled_before_the_assignment_is_reported(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client may return records of a topic partition before its thread reports the assignment."""
    original = branch_module._Moves.on_partitions_assigned

    def told_late(*arguments: Any) -> None:
        threading.Timer(1.0, original, arguments).start()

    monkeypatch.setattr(branch_module._Moves, "on_partitions_assigned", told_late)
    count = send(bus, valid_records(range(100)))
    with notifying(bus, write_rules(webhook("ops", receiver.url))):
        wait_for("what was sent to be told", lambda: set(receiver.keys) == _ids(range(count)))


def test_a_new_destination_begins_at_the_end_of_the_topic(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """It begins at the end of the topic, unless it says `begin = "earliest"`, and says how much it leaves out."""
    send(bus, valid_records(range(20)))
    rules = write_rules(webhook("ops", receiver.url).replace('begin = "earliest"', ""))
    with notifying(bus, rules) as done:
        wait_for("the checkpoint of the beginning", lambda: lag(bus, "ops") == 0)
        send(bus, valid_records(range(20, 30)))
        wait_for("the later events", lambda: len(receiver.keys) == 10 and lag(bus, "ops") == 0)
        wait_for("what was left out", lambda: "up to 20 records" in "".join(loss.message for loss in done.losses))
    assert set(receiver.keys) == _ids(range(20, 30))


def test_a_terminated_command_ends_cleanly_while_a_webhook_hangs(
    bus: Settings, receiver: Receiver, write_rules: WriteRules
) -> None:
    """Exit code 0 in time; the hanging delivery is not committed, so the next notifier makes it.

    Without a lake it says which erased users it knows.
    """
    receiver.answer = receiver.hang
    rules = write_rules(webhook("ops", receiver.url, "request_seconds = 600"))
    send(bus, valid_records(range(10)))
    with ended(command(bus, rules)) as process:
        assert receiver.hanging.wait(PATIENCE_SECONDS)
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    assert " ".join(output.split()) == (
        f"notifying ops of events in {bus.kafka.topic}; Ctrl-C stops it warning: there is no lake at {bus.lake_root}: "
        f"only the erased users in {bus.tombstones_file} are known, and left out "
        "stopped; undelivered notifications are delivered at the next start"
    )
    assert sum(at or 0 for at in checkpoints(bus, "ops").values()) < 10


def test_the_command_checks_a_rule_file(bus: Settings, receiver: Receiver, write_rules: WriteRules) -> None:
    """`--check` needs no broker and sends nothing."""
    rules = write_rules(webhook("ops", receiver.url))
    assert _output(command(bus, rules, "--check")) == (0, f"{rules} is valid; destinations: ops\n")
    write_rules(webhook("ops", receiver.url), webhook("hr", receiver.url), webhook("law", f"{receiver.url}?for=law"))
    code, output = _output(command(bus, rules, "--check"))
    assert code == 0
    assert " ".join(output.split()).count("the destinations 'ops' and 'hr' have one address, and rules about A:") == 1
    assert output.count("have one address") == 1
    write_rules(webhook("ops", receiver.url))
    rules.write_text(rules.read_text().replace("text =", "txt ="))
    code, output = _output(command(bus, rules, "--check"))
    assert code == 78
    assert f"{rules}:10: rules.0.txt: is not a key here: did you mean 'text'?" in output


def test_the_command_checks_the_environment_and_the_topic(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that cannot be used is found by `--check`; a mistyped topic at the start, and not by its silence."""
    rules = write_rules(webhook("ops", receiver.url))
    missing = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"topic": f"{bus.kafka.topic}.missing"})})
    code, output = _output(command(missing, rules))
    assert code == 2
    assert f"topic {missing.kafka.topic} does not exist on {bus.kafka.bootstrap_servers}: create it" in output
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    code, output = _output(command(bus, rules, "--check"))
    assert code == 78
    assert "ALL_PROXY in the environment: proxies that speak SOCKS" in output


def _output(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output


def test_dead_letters_have_a_separate_topic(bus: Settings) -> None:
    """It is created with the settings of the topic."""
    assert ensure_topic(dlq_settings(bus.kafka)).name == f"{bus.kafka.topic}.notify.dlq"
