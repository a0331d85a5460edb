"""Queues instead of a topic: the same exactly-once, dead letters and counts, whatever is redelivered (`once`)."""

import contextlib
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast
from uuid import uuid4

import pika
import pytest
from pydantic import SecretStr

from pipelines import drain as drain_module
from pipelines.drain import Ingest, drain, drain_once, open_ingest
from pipelines.errors import ConfigurationError, FencedError, KarmalakeError, TransientError
from pipelines.ingest import rabbitmq as rabbitmq_client
from pipelines.ingest.batch import OffsetRange
from pipelines.ingest.queue import QueueSource, open_queue
from pipelines.ingest.sqs import SQS
from pipelines.ingester import ingest
from pipelines.lake.commit import CommitRecord
from pipelines.operate.dead_letters import Requeued, Selection, requeue
from pipelines.settings import QueueSettings, Settings
from tests.draining import assert_verified, drain_all, query, valid_records, with_ingest
from tests.queues.conftest import Queue
from tests.services.certificates import make_certificates
from tests.services.ports import HOST
from tests.services.rabbitmq_server import RabbitMQServer
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS, wait_for


def _values(numbers: range) -> list[bytes]:
    return [record.value or b"" for record in valid_records(numbers)]


def _total(records: list[CommitRecord], name: str) -> int:
    return sum(record.total(name) for record in records)


def test_each_message_once(queue: Queue) -> None:
    """Every message is read, a repeated one is a duplicate, and the queue is empty afterwards (`nothing-lost`)."""
    queue.send([*_values(range(50)), *_values(range(10))])
    records = drain_all(queue.settings)
    assert (_total(records, "accepted"), _total(records, "duplicates"), _total(records, "read")) == (50, 10, 60)
    assert drain_all(queue.settings) == []
    queue.send(_values(range(40, 60)))
    records = drain_all(queue.settings)
    assert (_total(records, "accepted"), _total(records, "duplicates")) == (10, 10)
    assert query(queue.settings, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(60, 60)]
    assert query(queue.settings, "SELECT sum(mis_keyed) FROM commits") == [(0,)]
    assert_verified(queue.settings)


def test_a_crash_between_commit_and_acknowledgement(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed messages are redelivered with new numbers, and dropped as duplicates (`once`)."""
    _shorten_redelivery(queue)
    queue.send(_values(range(20)))

    class PowerCutError(Exception):
        pass

    def cut(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch, open_ingest(queue.settings) as ingest:
        patch.setattr(QueueSource, "acknowledge", cut)
        patch.setattr(drain_module.ReadAhead, "acknowledge", cut)
        with pytest.raises(PowerCutError):
            _drain(ingest)
    assert query(queue.settings, "SELECT count(*) > 0 FROM events") == [(True,)]
    wait_for("the messages to come again", lambda: _total(drain_all(queue.settings), "duplicates"))
    assert query(queue.settings, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(20, 20)]
    assert_verified(queue.settings)


def test_messages_that_were_only_read_go_back_at_once(queue: Queue) -> None:
    """The next process need not wait for the visibility timeout of SQS (`nothing-lost`)."""
    queue.send(_values(range(25)))
    with open_queue(queue.settings) as source:
        wait_for("all messages", lambda: source.poll(source.next_checkpoint()) and len(source.messages) == 25)
    assert _total(drain_all(queue.settings), "accepted") == 25


def _drain(ingest: Ingest) -> None:
    while drain_once(ingest):
        pass


def _shorten_redelivery(queue: Queue) -> None:
    """Shorten the wait: RabbitMQ redelivers when a connection ends, SQS after its visibility timeout."""
    if queue.settings.queue.kind == "sqs":
        import boto3  # noqa: PLC0415 - of one kind only

        assert queue.settings.queue.url
        client = boto3.client("sqs", region_name="eu-west-1")
        client.set_queue_attributes(
            QueueUrl=queue.settings.queue.url.get_secret_value(), Attributes={"VisibilityTimeout": "2"}
        )


def test_malformed_messages_are_dead_letters(queue: Queue) -> None:
    """They block nothing, retain their bytes, and can be requeued (`not-blocked`)."""
    queue.send([*_values(range(5)), b"\xff\xff", *_values(range(5, 10))])
    drain_all(queue.settings)
    assert query(queue.settings, "SELECT count(*) FROM events") == [(10,)]
    assert query(queue.settings, 'SELECT reason, "value" FROM dead_letters') == [("undecodable", b"\xff\xff")]
    assert requeue(queue.settings, Selection()) == Requeued(0, 0, 0, still_rejected=1)
    assert_verified(queue.settings)


def test_small_batches(queue: Queue) -> None:
    """Several batches, one read while the other is committed, have consecutive numbers."""
    ingest = queue.settings.ingest.model_copy(update={"max_batch_records": 7})
    small = queue.settings.model_copy(update={"ingest": ingest})
    queue.send(_values(range(40)))
    records = drain_all(small)
    assert len(records) >= 6
    assert [(r.start_offset, r.next_offset) for record in records for r in record.ranges][-1][1] == 40
    assert_verified(small)


def test_a_second_ingester_loses_nothing(queue: Queue) -> None:
    """One that was fenced does not take the other's checkpoint for its own, even if it continues (`nothing-lost`)."""
    _shorten_redelivery(queue)
    shared = with_ingest(queue.settings, share_partitions=True)  # which settings refuse: the source has to hold alone
    queue.send(_values(range(10)))
    with open_ingest(shared) as one:
        source = cast("QueueSource", one.source.source)
        wait_for("its first batch", lambda: one.source.poll(one.checkpoint) and len(source.messages) == 10)
        with open_ingest(with_ingest(shared, max_batch_records=3)) as two:  # twice is not what the first has read
            drain_once(two)  # RabbitMQ divides what comes from now on
            queue.send(_values(range(10, 30)))
            wait_for("a commit of the other", lambda: drain_once(two))
        with pytest.raises(FencedError):
            _drain(one)
    drained: list[CommitRecord] = []
    wait_for("all messages", lambda: drained.extend(drain_all(queue.settings)) or _count(queue.settings) == 30)
    assert_verified(queue.settings)


def _count(settings: Settings) -> int:
    return query(settings, "SELECT count(DISTINCT event_id) FROM events")[0][0]


def test_messages_of_another_batch_are_not_acknowledged(queue: Queue) -> None:
    """A committed range acknowledges its own messages only, and one after a gap none (`nothing-lost`)."""
    queue.send(_values(range(10)))
    with open_queue(queue.settings) as source:
        wait_for("all messages", lambda: source.poll(source.next_checkpoint()) and len(source.messages) == 10)
        with pytest.raises(FencedError, match="another ingester"):
            source.poll(lambda _id, _partition: 5)
        source.acknowledge((OffsetRange(source.topic_id, source.client.name, 0, 5, 10),))
        with pytest.raises(FencedError, match="another ingester"):
            source.poll(source.next_checkpoint())
    assert _total(drain_all(queue.settings), "accepted") == 10


def test_rabbitmq_sends_two_batches_ahead(settings: Settings, rabbitmq: RabbitMQServer) -> None:
    """A quorum queue counts what a stop returns as delivered, and drops it beyond its limit: most messages stay there.

    A stop counts for those that were sent ahead, and not for all 400 (`nothing-lost`).
    """
    limits = {"x-queue-type": "quorum", "x-delivery-limit": 10}
    read = with_ingest(_declare(settings, rabbitmq, limits, _values(range(400))), max_batch_records=50)
    for stops in range(3):
        with open_ingest(read) as opened:
            assert drain(opened, lambda _record: None, max_batches=1) == 1
            with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
                ready = connection.channel().queue_declare(read.queue.name, passive=True).method.message_count
            assert ready >= 400 - 50 * stops - 3 * 50, "of this run's, one batch is committed, and two are sent ahead"
    drain_all(read)
    assert _count(read) == 400
    assert_verified(read)


def test_a_stream_is_refused(settings: Settings, rabbitmq: RabbitMQServer) -> None:
    """Acknowledged messages stay in it, and a consumer starts at its end, so those of a pause would be skipped."""
    read = _declare(settings, rabbitmq, {"x-queue-type": "stream"}, _values(range(5)))
    with pytest.raises(ConfigurationError, match=r"is a stream.* classic or a quorum queue"):
        drain_all(read)


def _declare(settings: Settings, server: RabbitMQServer, arguments: dict[str, object], values: list[bytes]) -> Settings:
    """Return settings that read a new queue of some type on RabbitMQ, with messages in it."""
    name = f"ratings-{uuid4().hex[:8]}"
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(name, durable=True, arguments=arguments)
        for value in values:
            channel.basic_publish("", name, value)
    return _reading(settings, server.url, name)


def _reading(settings: Settings, url: str, name: str = "q") -> Settings:
    return settings.model_copy(update={"queue": QueueSettings(kind="rabbitmq", url=SecretStr(url), name=name)})


def test_a_queue_that_is_deleted_and_recreated(queue: Queue) -> None:
    """A long-lived loop reports the missing queue as an outage, and continues once it is there again."""
    stopping, committed, outages = threading.Event(), list[int](), list[str]()

    def report(_loop: str, outage: KarmalakeError | None) -> None:
        outages.extend([str(outage)] if outage else [])

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(
            ingest, queue.settings, stopping, lambda record: committed.append(record.total("accepted")), report
        )
        try:
            queue.send(_values(range(10)))
            wait_for("a commit", lambda: running.done() or sum(committed) == 10)
            _delete(queue.settings)
            wait_for("two outages", lambda: running.done() or sum("has no queue" in each for each in outages) >= 2)
            _recreate(queue)
            queue.send(_values(range(10, 20)))
            wait_for("the other commit", lambda: running.done() or sum(committed) == 20)
        finally:
            stopping.set()
        running.result(PATIENCE_SECONDS)
    assert _count(queue.settings) == 20


def _delete(settings: Settings) -> None:
    assert settings.queue.url
    url = settings.queue.url.get_secret_value()
    if settings.queue.kind == "sqs":
        import boto3  # noqa: PLC0415 - of one kind only

        boto3.client("sqs", region_name="eu-west-1").delete_queue(QueueUrl=url)
        return
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_delete(settings.queue.name)


def _recreate(queue: Queue) -> None:
    if queue.settings.queue.kind == "sqs":
        import boto3  # noqa: PLC0415 - of one kind only

        boto3.client("sqs", region_name="eu-west-1").create_queue(QueueName=queue.settings.queue.name)
    queue.send([])


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"REGION": None}, "region"),
        ({"REGION": "no_region!"}, "no_region!"),
        ({"SECRET_ACCESS_KEY": None}, "Partial credentials"),
        ({"PROFILE": "absent"}, "absent"),
        ({"ENDPOINT_URL": "foo"}, "AWS_ENDPOINT_URL"),
    ],
)
def test_mistakes_in_the_variables_of_aws(
    queue: Queue, changes: dict[str, str | None], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No retry corrects them: they are mistakes in the configuration, not outages."""
    for name, value in changes.items():
        monkeypatch.setenv(f"AWS_{name}", value) if value else monkeypatch.delenv(f"AWS_{name}")
    with pytest.raises(ConfigurationError, match=named):
        drain_all(queue.settings)


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
@pytest.mark.parametrize(
    "url",
    ["https://sqs.us-west-2.amazonaws.com/1/q", "https://us-west-2.queue.amazonaws.com/1/q"],
)
def test_the_region_of_a_queue_is_that_of_its_url(queue: Queue, url: str) -> None:
    """The URL names it, whatever AWS_REGION says: another region has no such queue."""
    read = QueueSettings(kind="sqs", url=SecretStr(url), name="q")
    with pytest.raises(KarmalakeError, match=r"SQS has no queue .* in us-west-2"):
        drain_all(queue.settings.model_copy(update={"queue": read}))


def test_what_rabbitmq_refuses_is_a_mistake(settings: Settings, rabbitmq: RabbitMQServer) -> None:
    """A vhost that does not exist stays so: stream ends instead of trying again."""
    with pytest.raises(ConfigurationError, match="has no such vhost"):
        drain_all(_reading(settings, rabbitmq.url.replace("%2F", "absent")))


class _EmptyQueue:
    """A boto3 client whose requests take as long as they may."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, list[int]()

    def receive_message(self, *, WaitTimeSeconds: int, **_: object) -> dict[str, object]:  # noqa: N803 - boto3's name
        self.now += WaitTimeSeconds
        self.waits.append(WaitTimeSeconds)
        return {}


def test_a_wait_for_sqs_is_one_request(settings: Settings) -> None:
    """Each request is paid for."""
    empty = _EmptyQueue()
    ingest = settings.ingest.model_copy(update={"max_wait_seconds": 20})
    source = QueueSource(SQS("sqs:q", "here", empty), ingest, settings.contract, clock=lambda: empty.now)
    assert source.poll(lambda _id, _partition: None) is None
    assert empty.waits == [20]


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
def test_events_that_eventbridge_wraps(queue: Queue) -> None:
    """With JSON a body is the event, or EventBridge's envelope with it as its detail."""
    contract = queue.settings.contract.model_copy(update={"format": "json"})
    in_json = queue.settings.model_copy(update={"contract": contract})
    event = {"event_id": "a", "user_id": "u", "action_type": "A", "timestamp": "2026-03-01T12:00:00Z"}
    envelope = {"version": "0", "detail-type": "rated", "source": "rides", "detail": event | {"event_id": "b"}}
    _send_text(in_json, [json.dumps(event), json.dumps(envelope), "no JSON"])
    drain_all(in_json)
    assert query(in_json, "SELECT event_id FROM events ORDER BY ALL") == [("a",), ("b",)]
    assert query(in_json, 'SELECT "value" FROM dead_letters') == [(b"no JSON",)]


def _send_text(settings: Settings, bodies: list[str]) -> None:
    import boto3  # noqa: PLC0415 - of one kind only

    assert settings.queue.url
    for body in bodies:
        boto3.client("sqs", region_name="eu-west-1").send_message(
            QueueUrl=settings.queue.url.get_secret_value(), MessageBody=body
        )


def test_a_missing_queue(queue: Queue) -> None:
    """The message names the mistake and the remedy."""
    assert queue.settings.queue.url
    url = queue.settings.queue.url.get_secret_value().replace("ratings-", "absent-")
    other = queue.settings.queue.model_copy(update={"url": SecretStr(url), "name": "absent"})
    with pytest.raises(KarmalakeError, match="no queue"):
        drain_all(queue.settings.model_copy(update={"queue": other}))


def test_a_server_that_refuses_the_login(queue: Queue) -> None:
    """A wrong password or an unreachable server is reported without the password."""
    wrong = {"rabbitmq": "amqp://guest:hush-hush@", "sqs": "http://127.0.0.1:1/"}[str(queue.settings.queue.kind)]
    assert queue.settings.queue.url
    url = queue.settings.queue.url.get_secret_value()
    url = wrong + url.rpartition("@")[2] if queue.settings.queue.kind == "rabbitmq" else wrong
    other = queue.settings.queue.model_copy(update={"url": SecretStr(url)})
    with pytest.raises(KarmalakeError) as raised:
        drain_all(queue.settings.model_copy(update={"queue": other}))
    assert "hush-hush" not in str(raised.value)


def test_a_frozen_rabbitmq_is_an_outage(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose connection is open, but which answers nothing, is not waited for forever."""
    require("rabbitmq")
    monkeypatch.setattr(rabbitmq_client, "_HEARTBEAT_SECONDS", 2)
    with RabbitMQServer() as server:
        with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
            connection.channel().queue_declare("q", durable=True)
        with rabbitmq_client.open_rabbitmq(_reading(settings, server.url)) as queue:
            server.pause()
            with pytest.raises(TransientError, match=r"RabbitMQ at .* failed"):
                queue.backlog()
        with pytest.raises(TransientError, match=r"RabbitMQ at .* failed: Timeout during AMQP handshake"):
            drain_all(_reading(settings, f"{server.url}?stack_timeout=1"))


def test_a_server_of_something_else_is_an_outage(settings: Settings, sqs_address: str) -> None:
    """A port that speaks HTTP, or on which nothing listens, is named, with the reason."""
    for address, reason in ((sqs_address.removeprefix("http://"), "AMQP"), ("127.0.0.1:1", "Connection refused")):
        with pytest.raises(TransientError, match=f"RabbitMQ at {address}/.* failed: .*{reason}"):
            drain_all(_reading(settings, f"amqp://guest:hush-hush@{address}/?stack_timeout=1"))


def test_tls_of_rabbitmq(settings: Settings, rabbitmq: RabbitMQServer, tmp_path: Path) -> None:
    """A port without TLS is an outage of RabbitMQ, and a certificate of another authority a mistake in queue.url."""
    with pytest.raises(TransientError, match=r"RabbitMQ at .* failed: .*SSL"):
        drain_all(_reading(settings, rabbitmq.url.replace("amqp://", "amqps://")))
    made = make_certificates(tmp_path / "certificates")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate("server"), made.key("server"))
    with socket.create_server((HOST, 0)) as listener, ThreadPoolExecutor(1) as thread:
        thread.submit(_shake_hands, listener, context)
        with pytest.raises(ConfigurationError, match=r"RabbitMQ at .* certificate that is not accepted.* queue\.url"):
            drain_all(_reading(settings, f"amqps://guest:guest@localhost:{listener.getsockname()[1]}/"))


def _shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Begin TLS with the first client, which refuses the certificate."""
    client, _ = listener.accept()
    with client, contextlib.suppress(OSError):
        context.wrap_socket(client, server_side=True).close()


@pytest.mark.parametrize(
    "query", ["heartbeat=hush", "hush=1", "ssl_options={'ca_certs':'/no/hush.pem'}", "ssl_options=h"]
)
def test_parameters_that_rabbitmq_has_not(settings: Settings, query: str) -> None:
    """The message names the setting, without its value, which may be a secret."""
    with pytest.raises(ConfigurationError, match=r"queue\.url") as raised:
        drain_all(_reading(settings, f"amqps://guest:hush@127.0.0.1:1/?{query}"))
    assert raised.value.__suppress_context__  # a traceback shows neither pika's own error
    assert "hush" not in str(raised.value)
