"""A producer that sends the bytes of a record batch unchanged: a ProduceRequest of version 7, over a plain socket.

For brokers on this machine that lead every topic partition. The embedded broker stores any batch; Apache Kafka
validates it and rejects most invalid ones (test_raw_producer.py lists them).
"""

import socket
import struct
from types import TracebackType
from typing import Self

_PRODUCE, _VERSION = 0, 7
_ALL_REPLICAS = -1
_TIMEOUT_MS = 30_000


class RefusedError(Exception):
    """The broker returned an error code instead of an offset."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the broker refused the batch: error {code}")
        self.code = code


class RawProducer:
    """One connection to one broker."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), _TIMEOUT_MS / 1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, topic: str, topic_partition: int, batch: bytes) -> int:
        """Return the offset that the broker assigned to the batch's first record; raises RefusedError."""
        records = struct.pack(">i", len(batch)) + batch
        data = struct.pack(">ii", 1, topic_partition) + records
        body = struct.pack(">hhi", -1, _ALL_REPLICAS, _TIMEOUT_MS) + struct.pack(">i", 1) + _text(topic) + data
        request = struct.pack(">hhi", _PRODUCE, _VERSION, 1) + _text("hostile") + body
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        answer = self._receive(struct.unpack(">i", self._receive(4))[0])
        # correlation id, count of topics, name; count of topic partitions, and of this one: number, error, offset
        code, offset = struct.unpack_from(">hq", answer, 4 + 4 + len(_text(topic)) + 4 + 4)
        if code:
            raise RefusedError(code)
        return offset

    def _receive(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            piece = self._socket.recv(size - len(received))
            if not piece:
                raise ConnectionError("the broker closed the connection")
            received += piece
        return bytes(received)


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()
