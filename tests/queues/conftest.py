"""Queues of the tests here: on a real RabbitMQ, and on a server that speaks SQS."""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import boto3
import pika
import pytest
from pydantic import SecretStr

from pipelines.settings import QueueSettings, Settings
from tests.services.rabbitmq_server import RabbitMQServer
from tests.services.requirements import require


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue for one test: the settings to read it, and a function that sends values to it."""

    settings: Settings
    send: Callable[[Sequence[bytes]], None]


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    require("rabbitmq")
    with RabbitMQServer() as server:
        yield server


@pytest.fixture(scope="session")
def sqs_address() -> Iterator[str]:
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - its import warns, which conftest.py allows by then

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture(params=["rabbitmq", "sqs"])
def queue(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Return a queue of each kind in turn."""
    kind, name = request.param, f"ratings-{uuid4().hex[:8]}"
    if kind == "rabbitmq":
        server: RabbitMQServer = request.getfixturevalue("rabbitmq")
        url, send = server.url, _on_rabbitmq(server.url, name)
    else:
        address = request.getfixturevalue("sqs_address")
        values = {"ENDPOINT_URL": address, "REGION": "eu-west-1"}
        for key, value in (values | {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}).items():
            monkeypatch.setenv(f"AWS_{key}", value)
        url, send = _on_sqs(name)
    read = QueueSettings(kind=kind, url=SecretStr(url), name=name)
    ingest = settings.ingest.model_copy(update={"max_wait_seconds": 0.1, "linger_seconds": 0})
    return Queue(settings.model_copy(update={"queue": read, "ingest": ingest}), send)


def _on_rabbitmq(url: str, name: str) -> Callable[[Sequence[bytes]], None]:
    def send(values: Sequence[bytes]) -> None:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.queue_declare(name, durable=True)
            for value in values:
                channel.basic_publish("", name, value)

    send([])
    return send


def _on_sqs(name: str) -> tuple[str, Callable[[Sequence[bytes]], None]]:
    client: Any = boto3.client("sqs", region_name="eu-west-1")
    url = client.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "30"})["QueueUrl"]

    def send(values: Sequence[bytes]) -> None:
        for start in range(0, len(values), 10):
            share = [base64.b64encode(value).decode() for value in values[start : start + 10]]
            entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(share)]
            assert not client.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")

    return url, send
