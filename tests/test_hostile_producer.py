"""A producer with write access to the topic can affect at most the topic partition that it writes to."""

import struct
import threading
from collections.abc import Callable, Iterator
from datetime import datetime

import pyarrow as pa
import pytest
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

import pipelines.bus.clients as clients_module
import pipelines.ingest.sources as sources_module
from pipelines.bus.topics import describe_topic
from pipelines.contract.decode import Decoded
from pipelines.contract.decode import decode as real_decode
from pipelines.contract.rejection import Reason
from pipelines.drain import drain, drain_once, open_drain, open_ingest
from pipelines.emit.producer import Record
from pipelines.errors import ConfigurationError, RejectedError, TransientError, UsageError
from pipelines.ingest.guard import HaltedPartition
from pipelines.lake.commit import CommitRecord
from pipelines.operate.audit import audit
from pipelines.operate.dead_letters import Selection, requeue
from pipelines.operate.doctor import diagnose
from pipelines.operate.lag.measure import measure_lag
from pipelines.operate.replay import open_replay
from pipelines.operate.skip import skip
from pipelines.operate.topic_check import check_topic
from pipelines.settings import ContractSettings, Settings
from pipelines.stream import stream
from tests.draining import assert_verified, drain_all, query, send, valid_records, with_ingest
from tests.ingest.hostile_batches import build, rebuilt
from tests.ingest.raw_producer import produce_raw
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import wait_for

NOW_MS = 1_772_366_400_000
GARBAGE = Record(b"k", b"\xff", [], 1)


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a topic with two topic partitions."""
    return with_ingest(settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 2})}))


@pytest.fixture
def narrow(settings: Settings) -> Settings:
    """Return settings of a topic with one topic partition."""
    return with_ingest(settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 1})}))


def to_partition(records: list[Record], partition: int) -> list[Record]:
    return [record._replace(topic_partition=partition) for record in records]


def test_malformed_batches(narrow: Settings) -> None:
    """Each is one dead letter, the events around it count once, and the audit agrees (`nothing-lost`)."""
    send(narrow, valid_records(range(3)))
    two = build([(NOW_MS, b"k", b"v", []), (NOW_MS, b"k", b"w", [])])
    headers = [{"records_count": n} for n in (3, 1, -1, 2**31 - 1)]
    headers += [{"last_offset_delta": 0}, {"attributes": 4}, {"attributes": 1}]
    for header in headers:
        produce_raw(narrow.kafka, rebuilt(two, **header))
    send(narrow, valid_records(range(3, 6)))
    drain_all(narrow)
    assert query(narrow, "SELECT count(*) FROM events") == [(6,)]
    letters = query(narrow, "SELECT reason, detail LIKE 'The record batch at %' FROM dead_letters")
    assert letters == [(Reason.UNDECODABLE, True)] * len(headers)
    assert_verified(narrow)
    assert audit(narrow).passed


def test_invalid_record_times(narrow: Settings) -> None:
    """Microseconds, nanoseconds, 0 and -1 become null; the events count, and every reader works."""
    send(narrow, [])
    values = [record.value for record in valid_records(range(8))]
    odd = (NOW_MS * 1_000, NOW_MS * 1_000_000, 0, -1, 2**63 - 1, -(2**63))
    for value, time in zip(values, (*odd, NOW_MS, 253_402_300_799_000), strict=True):
        batch = build([(NOW_MS, b"u", value, [])])
        assert produce_raw(narrow.kafka, rebuilt(batch, first_timestamp=time, max_timestamp=time)) == 0
    produce_raw(narrow.kafka, rebuilt(build([(NOW_MS, b"u", b"\xff", [])]), first_timestamp=odd[0]))
    drain_all(narrow)
    assert query(narrow, "SELECT count(*), count(bus_time), max(epoch_ms(bus_time)) FROM events") == [(8, 1, NOW_MS)]
    assert query(narrow, "SELECT bus_time FROM dead_letters") == [(None,)]
    assert_verified(narrow)
    assert audit(narrow).passed


def test_garbage_halts_its_own_topic_partition_only(bus: Settings) -> None:
    """5,001 records of one byte halt one topic partition; the other is drained, now and later."""
    send(bus, [*to_partition(valid_records(range(50)), 0), *[GARBAGE] * 5_001])
    named = rf"{bus.kafka.topic}-1 is halted at offset 0.*1@0: undecodable.*--accept-rejections {bus.kafka.topic}-1"
    with pytest.raises(RejectedError, match=rf"(?s){named}"):
        drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(50,)]
    assert query(bus, "SELECT count(*) FROM dead_letters") == [(0,)]
    send(bus, to_partition(valid_records(range(50, 60)), 0))
    with pytest.raises(RejectedError):
        drain_all(bus)
    assert query(bus, "SELECT count(*) FROM events") == [(60,)]
    assert_verified(bus)


def test_accepted_rejections_are_dead_letters(bus: Settings) -> None:
    """One run with --accept-rejections commits what the guard halted; the next run has the limits again."""
    send(bus, [*to_partition(valid_records(range(5)), 1), *[GARBAGE] * 5_001, *to_partition(valid_records([5]), 1)])
    with pytest.raises(RejectedError):
        drain_all(bus)
    with open_drain(bus, accepted=[TopicPartition(bus.kafka.topic, 1)]) as ingest:
        drain(ingest, lambda _: None)
    assert query(bus, "SELECT count(*) FROM events") == [(6,)]
    assert query(bus, "SELECT count(*) FROM dead_letters") == [(5_001,)]
    send(bus, [GARBAGE] * 5_001)
    with pytest.raises(RejectedError):
        drain_all(bus)
    assert_verified(bus)
    with (
        pytest.raises(UsageError, match="no topic partition 7"),
        open_drain(bus, accepted=[TopicPartition(bus.kafka.topic, 7)]) as ingest,
    ):
        drain(ingest, lambda _: None)


def test_a_halted_topic_partition_continues_once_its_checkpoint_moved(bus: Settings) -> None:
    """A long-running ingest continues with it as soon as another run has accepted its rejections."""
    send(bus, [*to_partition(valid_records(range(5)), 0), *[GARBAGE] * 5_001])
    with open_ingest(bus) as ingest:
        wait_for("the other topic partition", lambda: drain_once(ingest))
        wait_for("one to be halted", lambda: drain_once(ingest) or ingest.halted())
        [halted] = ingest.halted()
        assert (halted.place, halted.next_offset) == (f"{bus.kafka.topic}-1", 0)
        with open_drain(bus, accepted=[TopicPartition(bus.kafka.topic, 1)]) as other:
            drain(other, lambda _: None)
        send(bus, to_partition(valid_records(range(5, 9)), 1))
        wait_for("the events after the garbage", lambda: drain_once(ingest))
        assert ingest.halted() == ()
    assert query(bus, "SELECT count(*) FROM events") == [(9,)]
    assert_verified(bus)


def test_a_stream_continues_and_reports_halted_partitions(bus: Settings) -> None:
    """It keeps running, drains the others, and reports which topic partitions need an operator."""
    send(bus, [*to_partition(valid_records(range(5)), 0), *[GARBAGE] * 5_001])
    stopping, reports, records = threading.Event(), list[tuple[HaltedPartition, ...]](), list[CommitRecord]()

    def on_halted(halted: tuple[HaltedPartition, ...]) -> None:
        reports.append(halted)
        if halted and sum(record.total("accepted") for record in records) == 10:
            stopping.set()

    def on_commit(record: CommitRecord) -> None:
        records.append(record)
        if len(records) == 1:
            send(bus, to_partition(valid_records(range(5, 10)), 0))

    stream(bus, stopping, on_commit, lambda *_: None, on_halted=on_halted)
    assert [halted.place for halted in reports[-1]] == [f"{bus.kafka.topic}-1"]
    [finding] = [finding for finding in diagnose(bus) if finding.subject == "halted"]
    assert not finding.ok
    assert f"{bus.kafka.topic}-1 is halted at offset 0" in finding.message


@pytest.fixture
def poison(narrow: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Return settings of a bus with a record at offset 5 that crashes the decoder."""
    deadly = valid_records([5])[0].value
    send(narrow, valid_records(range(10)))

    def decode(records: pa.Table, contract: ContractSettings, now: datetime | None) -> Decoded:
        if deadly in records["value"].to_pylist():
            raise RuntimeError("a decoder died")
        return real_decode(records, contract, now)

    monkeypatch.setattr(sources_module, "decode", decode)
    return narrow


def test_a_record_is_skipped(poison: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that crashes ingest becomes a dead letter undecoded; all others count; a better decoder requeues it."""
    with pytest.raises(RuntimeError, match="a decoder died"):
        drain_all(poison)
    done = skip(poison, f"{poison.kafka.topic}-0@5", "kills the decoder")
    assert (done.drained, str(done.skipped)) == (5, f"{poison.kafka.topic}-0@5..6")
    drain_all(poison)
    [(offset, reason, detail, value)] = query(poison, 'SELECT "offset", reason, detail, "value" FROM dead_letters')
    assert (offset, reason, detail) == (5, Reason.SKIPPED, "Skipped: kills the decoder")
    assert value == valid_records([5])[0].value
    assert query(poison, "SELECT count(*) FROM events") == [(9,)]
    assert_verified(poison)
    assert audit(poison).passed
    monkeypatch.setattr(sources_module, "decode", real_decode)
    assert requeue(poison, Selection(reason=Reason.SKIPPED)).accepted == 1
    assert query(poison, "SELECT count(*) FROM events") == [(10,)]
    assert_verified(poison)


def test_what_cannot_be_skipped(poison: Settings) -> None:
    """Each error names the cause: already read, not in the log, another topic, no reason given."""
    topic = poison.kafka.topic
    skip(poison, f"{topic}-0@5", "kills the decoder")
    for place, why, message in (
        (f"{topic}-0@5", "again", "ingest has passed"),
        (f"{topic}-0@3", "late", "ingest has passed"),
        (f"{topic}-0@10", "early", r"the log holds \[0, 10\)"),
        (f"{topic}-7@0", "lost", "no topic partition 7"),
        ("other-0@6", "other", "in the topic other"),
        (f"{topic}@6", "form", "TOPIC-PARTITION@OFFSET"),
        (f"{topic}-0@6", " ", "give the reason"),
    ):
        with pytest.raises(UsageError, match=message):
            skip(poison, place, why)
    assert query(poison, "SELECT count(*) FROM dead_letters") == [(1,)]


def test_a_malformed_batch_is_skipped_completely(narrow: Settings) -> None:
    """An unreadable record batch is one dead letter with its range, whichever of its offsets is given."""
    send(narrow, valid_records(range(2)))
    produce_raw(narrow.kafka, rebuilt(build([(NOW_MS, b"k", b"v", [])] * 4), records_count=5))
    send(narrow, valid_records(range(2, 4)))
    done = skip(narrow, f"{narrow.kafka.topic}-0@3", "no use")
    assert (done.drained, str(done.skipped)) == (2, f"{narrow.kafka.topic}-0@3..6")
    drain_all(narrow)
    [(offset, detail)] = query(narrow, 'SELECT "offset", detail FROM dead_letters')
    assert offset == 5
    assert detail.startswith("Skipped: no use The record batch at ")
    assert query(narrow, "SELECT count(*) FROM events") == [(4,)]
    assert_verified(narrow)


@pytest.mark.jvm
def test_a_broker_without_topic_ids(kafka: KafkaCluster, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command on the topic reports it in one sentence; two topics never share checkpoints."""
    names = {"topic": settings.kafka.topic, "group_id": settings.kafka.group_id, "partitions": 1}
    bus = with_ingest(settings.model_copy(update={"kafka": kafka.settings(**names)}))
    send(bus, valid_records(range(3)))
    drain_all(bus)
    create_client = clients_module._client
    monkeypatch.setattr(clients_module, "_client", lambda *a, **o: create_client(*a, **o, api_version=(2, 7)))
    looks: list[Callable[[Settings], object]] = [
        drain_all, measure_lag, audit, check_topic, lambda s: describe_topic(s.kafka),
        lambda s: skip(s, f"{s.kafka.topic}-0@3", "why"), lambda s: open_replay(s, None, None).__enter__(),
    ]  # fmt: skip
    for look in looks:
        with pytest.raises(ConfigurationError, match="has no topic ids"):
            look(bus)
    sentences = [finding.message for finding in diagnose(bus) if not finding.ok]
    assert any("has no topic ids" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    "error", [struct.error("short"), ValueError("odd"), AssertionError(), KeyError("x"), KafkaError("no")]
)
@pytest.mark.parametrize("call", ["poll", "position", "beginning_offsets"])
def test_a_malformed_broker_response(
    narrow: Settings, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    """Any error of the client is an outage with a message, not a traceback."""
    send(narrow, valid_records(range(3)))
    monkeypatch.setattr(clients_module.KafkaConsumer, call, _raising(error))
    with pytest.raises(TransientError, match=r"reading .* failed"):
        drain_all(narrow)


def _raising(error: Exception) -> object:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_a_control_batch_of_a_producer(narrow: Settings) -> None:
    """Brokers refuse them; if one is accepted, it is a gap, whatever its contents."""
    send(narrow, valid_records(range(2)))
    batch = rebuilt(build([(NOW_MS, None, None, [])]), attributes=0x30)
    produce_raw(narrow.kafka, batch)
    send(narrow, valid_records(range(2, 4)))
    drain_all(narrow)
    assert query(narrow, "SELECT count(*) FROM events") == [(4,)]
    assert_verified(narrow)
