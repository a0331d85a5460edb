"""Anything that a sender adds to a message, or sends instead of an event, is at most a dead letter."""

import struct

import pytest
from pika import frame, spec

from pipelines.contract.decode import decode
from pipelines.ingest import rabbitmq
from pipelines.ingest.queue import Message, QueueSource
from pipelines.ingest.sqs import _decode_base64, _unwrap
from pipelines.settings import ContractSettings, IngestSettings

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
@pytest.mark.parametrize("take", [_decode_base64, _unwrap])
def test_a_body_of_sqs_is_judged_by_the_contract(body: str, take: object) -> None:
    """Depth, half of a surrogate pair, a number of 5,000 digits: bytes that become one dead letter."""
    assert callable(take)
    source = QueueSource(_Nothing(), IngestSettings(), ContractSettings(format="json"))
    records = source._records([Message(take(body), 1_700_000_000_000, None)], 0)
    assert len(decode(records, source.contract).rejected) == 1


class _Nothing:
    name = "sqs:q"
    place = "here"

    def receive(self, most: int, wait_seconds: float) -> list[Message]:
        raise AssertionError(most, wait_seconds)

    def acknowledge(self, receipts: list[object]) -> None:
        raise AssertionError(receipts)

    def waiting(self) -> int:
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
