"""Anything that a sender adds to a message, or sends instead of an event, is at most a dead letter."""

import base64
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pydantic import SecretStr

from pipelines.contract.decode import decode
from pipelines.contract.queue_messages import decode_base64, unwrap_detail
from pipelines.errors import TransientError
from pipelines.ingest import rabbitmq
from pipelines.ingest.message import Backlog, Message
from pipelines.ingest.queue import QueueSource
from pipelines.ingest.sqs import SQS, checked_client, open_sqs
from pipelines.settings import ContractSettings, Format, IngestSettings, QueueSettings, Settings
from tests.contract.encoding import avro_schema, to_avro, to_protobuf
from tests.fuzz.loopback_server import respond_with

_DEEP = "[" * 5_000 + "]" * 5_000


@pytest.mark.parametrize(
    "body",
    [
        _DEEP,
        f'{{"detail-type": "x", "detail": {_DEEP}}}',
        "\ud800",
        f'{{"detail-type": "x", "detail": {"9" * 5_000}}}',
        '{"detail-type": "x", "detail": "\\ud800"}',
        '{"detail-type": "x", "detail": NaN}',
        "",
    ],
)
@pytest.mark.parametrize("form", ["json", "protobuf", "avro"])
def test_a_body_of_sqs_is_judged_by_the_contract(body: str, form: Format) -> None:
    """Depth, half of a surrogate pair, a number of 5,000 digits: bytes that become one dead letter."""
    source = QueueSource(_Nothing(), IngestSettings(), ContractSettings(format=form))
    records = source._records([Message(body.encode(errors="surrogatepass"), 1_700_000_000_000, None)], 0)
    assert len(decode(records, source.contract).rejected) == 1


@pytest.mark.parametrize(
    "extra",
    [
        "",
        '"x": 1e400',
        f'"x": {"9" * 5_000}',
        f'"x": {"[" * 400}{"]" * 400}',
        '"user_id": "v"',
        '"metadata": {"a": "1", "a": "2"}',
    ],
)
def test_a_detail_of_eventbridge_is_judged_as_it_is_written(extra: str) -> None:
    """Not as another parser writes it again: a member that is there twice is refused, an odd number passed over."""
    names = '"event_id": "e", "user_id": "u", "action_type": "A", "timestamp": "2026-01-01T00:00:00Z"'
    event = f"{{{names}{', ' if extra else ''}{extra}}}"
    assert unwrap_detail(f'{{"version": "0", "detail-type": "x" , "detail" : {event} }}'.encode()) == event.encode()
    for whole in (f'{{"detail-type": "x", "detail": {event}, "detail": {event}}}', f'{{"detail": {event}}}', event):
        assert unwrap_detail(whole.encode()) == whole.encode()


@given(st.text(min_size=1), st.integers(946_684_800, 4_000_000_000))
def test_an_event_is_no_body_in_base64(event_id: str, seconds: int) -> None:
    """So that one that was decoded once is not decoded again, in Protobuf and in Avro."""
    time = datetime.fromtimestamp(seconds, UTC)
    row = {"event_id": event_id, "user_id": "user", "action_type": "A", "timestamp": time, "metadata": {}}
    for value in (to_protobuf(1, event_id, seconds), to_avro(avro_schema(1), row)):
        assert decode_base64(value) == value
        assert decode_base64(base64.b64encode(value)) == value


class _Nothing:
    name = "sqs:q"
    place = "here"
    max_wait_seconds = 1.0

    def receive(self, most: int, wait_seconds: float) -> list[Message]:
        raise AssertionError(most, wait_seconds)

    def acknowledge(self, receipts: list[object]) -> None:
        raise AssertionError(receipts)

    def release(self, receipts: list[object]) -> None:
        raise AssertionError(receipts)

    def backlog(self) -> Backlog:
        raise AssertionError


def _table(kind: bytes, value: bytes) -> bytes:
    entry = b"\x01x" + kind + value
    return struct.pack(">I", len(entry)) + entry


@pytest.mark.parametrize(
    "headers",
    [
        _table(b"T", struct.pack(">Q", 2**63)),
        _table(b"T", struct.pack(">Q", 10**14)),
        _table(b"?", b""),
        _table(b"F", _table(b"F", _table(b"Z", b"")) * 3),
        struct.pack(">I", 2**31),
    ],
)
def test_properties_of_rabbitmq_are_not_read(headers: bytes) -> None:
    """A time beyond year 9999, a type unknown to pika, a wrong length: the message is delivered."""
    assert spec.props[spec.BasicProperties.INDEX] is rabbitmq._NoProperties
    content = struct.pack(">HHQ", spec.BasicProperties.INDEX, 0, 5) + struct.pack(">H", 1 << 13) + headers
    frame_bytes = struct.pack(">BHI", spec.FRAME_HEADER, 1, len(content)) + content + bytes([spec.FRAME_END])
    read, header = frame.decode_frame(frame_bytes)
    assert (read, header.body_size) == (len(frame_bytes), 5)


_MESSAGE = '"Body": "{}", "ReceiptHandle": "r", "Attributes": {"SentTimestamp": "1700000000000"}'


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what boto3 needs to sign a request."""
    for name, value in {"DEFAULT_REGION": "eu-west-1", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


def _http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n{body}".encode()


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    "answer",
    [
        _http("[]"),
        _http("7"),
        _http("null"),
        _http("[" * 100_000),
        _http('{"Messages": 7}'),
        _http('{"Messages": [null]}'),
        _http('{"Messages": [{}]}'),
        _http(f'{{"Messages": [{{{_MESSAGE.replace("1700000000000", "x" * 9_000)}}}]}}'),
        _http(f'{{"Messages": [{{{_MESSAGE.replace(chr(34) + "{}" + chr(34), "7")}}}]}}'),
        _http("[]", "400 Bad Request"),
        _http('{"__type": 7}', "400 Bad Request"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n\xff\xfe",
    ],
)
def test_an_invalid_answer_of_sqs_is_an_outage(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever answers at its address: an error with a message, which is retried, and no message is acknowledged."""
    with respond_with(answer) as port:
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        queue = SQS("sqs:q", f"{url}/1/q", checked_client())
        with pytest.raises(TransientError, match=f"{url}/1/q sent an invalid answer") as raised:
            queue.receive(10, 0.1)
    assert len(str(raised.value)) < 1_000


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("body", ["<html>sign in</html>", "", "{}", '{"status": "ok"}'])
def test_a_page_at_the_address_of_sqs_is_not_an_empty_queue(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a proxy or another server answers is an outage: at the start, and for every later request."""
    with respond_with(_http(body)) as port:
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        settings = Settings(queue=QueueSettings(kind="sqs", url=SecretStr(f"{url}/1/q")))
        queue = SQS("sqs:q", f"{url}/1/q", checked_client())
        for request in (
            open_sqs(settings).__enter__,
            lambda: queue.receive(10, 0.1),
            lambda: queue.acknowledge(["r"]),
            lambda: queue.release(["r"]),
            queue.backlog,
        ):
            with pytest.raises(TransientError, match=r"sent an invalid answer.*its content type is ''"):
                request()


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("body", "content_type"), [("{}", "application/x-amz-json-1.0"), ('{"Messages": []}', "application/json")]
)
def test_an_empty_queue_of_sqs(body: str, content_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol's content type suffices, and so does a member of the answer, as ElasticMQ sends it."""
    header = f"Content-Type: {content_type}\r\nContent-Length"
    with respond_with(_http(body).replace(b"Content-Length", header.encode())) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert SQS("sqs:q", "http://q/1/q", checked_client()).receive(10, 0.1) == []
