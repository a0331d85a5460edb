"""Messages of SQS and RabbitMQ: a body is one row, whatever it contains, and its neighbours are events."""

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines.ingest.queue import Message, QueueSource
from pipelines.ingest.sqs import SQS
from pipelines.settings import ContractSettings, IngestSettings
from tests.fuzz.neighbours import GOOD, NOON, check_usable, event_of
from tests.fuzz.target import Target, demand
from tests.fuzz.targets import json_values, protobuf

_INGEST = IngestSettings(max_wait_seconds=0.01, linger_seconds=0)
_SENT_MS = int(NOON.timestamp() * 1000)
_JSON, _BYTES = b"j", b"b"


def generate_sqs(rng: random.Random) -> bytes:
    """Return the body of a message, after a letter for the format of the contract."""
    value = json_values.generate(rng).split(b"\n--\n")[0].decode("utf-8", "replace")
    texts = (
        "",
        "{}",
        "[" * 5_000,
        "[" * 5_000 + "]" * 5_000,
        '{"a":' * 3_000,
        '{"detail":' * 3_000,
        "\ud800",
        "NaN",
        "7" * 5_000,
    )
    wrapped = json.dumps(
        {"detail-type": rng.choice(("x", 7)), "detail": rng.choice((value, {}, [], None, {"event_id": 7}))}
    )
    encoded = base64.b64encode(protobuf.generate(rng)).decode()
    body = rng.choice((value, value, wrapped, encoded, encoded, rng.choice(texts), encoded[:-1]))
    return rng.choice((_JSON, _BYTES)) + body.encode("utf-8", "surrogatepass")


@dataclass(slots=True)
class _Queue:
    """A fake boto3 client: one message per call, until none is left."""

    bodies: list[str]
    time: str

    def receive_message(self, **_: object) -> dict[str, Any]:
        if not self.bodies:
            return {}
        attributes = {"SentTimestamp": self.time}
        return {"Messages": [{"Body": self.bodies.pop(0), "Attributes": attributes, "ReceiptHandle": "r"}]}


@dataclass(slots=True)
class _Broker:
    """A client of `queue.py` whose bodies are bytes."""

    bodies: list[bytes]
    name: str = field(default="rabbitmq:q", init=False)
    place: str = field(default="here", init=False)
    max_wait_seconds: float = field(default=1.0, init=False)

    def receive(self, max_messages: int, _wait_seconds: float) -> list[Message]:
        found, self.bodies = self.bodies[:max_messages], self.bodies[max_messages:]
        return [Message(body, _SENT_MS, number) for number, body in enumerate(found)]

    def acknowledge(self, receipts: list[Any]) -> None:
        """Do nothing."""

    def release(self, receipts: list[Any]) -> None:
        """Do nothing."""

    def waiting(self) -> int:
        return len(self.bodies)


def check_sqs(data: bytes) -> str:
    """Receive the message between valid ones, as `drain` does from SQS."""
    in_json = data[:1] != _BYTES
    neighbours: list[str] = (
        [value.decode() for value in json_values.NEIGHBOURS]
        if in_json
        else [base64.b64encode(value).decode() for value in protobuf.NEIGHBOURS]
    )
    body = data[1:].decode("utf-8", "replace")
    contract = json_values.CONTRACT if in_json else protobuf.CONTRACT
    client = SQS("sqs:q", "here", _Queue([*neighbours[:2], body, *neighbours[2:]], str(_SENT_MS)))
    return _check(client, contract)


def check_rabbitmq(data: bytes) -> str:
    """Receive the message between valid ones, as `drain` does from RabbitMQ."""
    return _check(_Broker([*protobuf.NEIGHBOURS[:2], data, *protobuf.NEIGHBOURS[2:]]), protobuf.CONTRACT)


def _check(client: Any, contract: ContractSettings) -> str:
    batch = QueueSource(client, _INGEST, contract).poll(lambda _id, _partition: None)
    demand(batch is not None and len(batch.records) == 5, "messages are missing")
    assert batch is not None
    events = {row["offset"]: event_of(row) for row in batch.decoded.events.to_pylist()}
    demand(len(events) + len(batch.decoded.rejected) == 5, "rows are missing")
    for place, good in zip((0, 1, 3, 4), GOOD, strict=True):
        demand(events.get(place) == event_of(good), f"the neighbour at {place} is lost or has other values")
    check_usable(batch.decoded, contract)
    return "accepted" if 2 in events else str(batch.decoded.rejected["reason"][0])


_CHECKS: dict[str, tuple[Callable[[random.Random], bytes], Callable[[bytes], str], bytes]] = {
    "sqs": (generate_sqs, check_sqs, _JSON + json_values.NEIGHBOURS[0]),
    "rabbitmq": (protobuf.generate, check_rabbitmq, protobuf.NEIGHBOURS[0]),
}
TARGETS = {name: Target(generate, checked, good, ()) for name, (generate, checked, good) in _CHECKS.items()}
