"""In-place receive: a response goes from the socket straight into the buffer that it is parsed from.

kafka-python 3.0 reads a socket 4 kB at a time and copies the bytes three times first. This module uses a few of its
private names; a test checks that they exist. TLS connections are unchanged: they receive small records, and decryption
costs more than the copies.
"""
# pyright: reportOptionalMemberAccess=false
# ruff: noqa: SLF001 - there is no public way

from typing import Any

from kafka.errors import KafkaConnectionError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport

_HEADER_RECEIVE_BYTES = 4096
"""The size of a receive by kafka-python's own code, for the beginning of a response and its last byte."""


def in_place_client(**config: object) -> KafkaNetClient:
    """Return a client that receives in place; pass this function to a KafkaConsumer as `kafka_client`."""
    net = NetworkSelector(**config)
    return KafkaNetClient(net, _Connections(net, **config), **config)


class _Connections(KafkaConnectionManager):
    async def _build_transport(self, node: Any, timeout_at: Any = None) -> Any:
        transport = await super()._build_transport(node, timeout_at=timeout_at)
        if type(transport) is KafkaTCPTransport:
            transport.__class__ = _InPlaceTransport
        return transport


class _InPlaceTransport(KafkaTCPTransport):
    """A connection that receives responses in place; its interface to the client is unchanged."""

    def _sock_recv(self) -> tuple[bytes, KafkaConnectionError | None]:
        """Return the bytes for the parser, and an error if the connection ended."""
        try:
            self._fill(self._protocol.parser)
            received = self._sock.recv(_HEADER_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return b"", None
        except OSError as error:
            return b"", KafkaConnectionError(error)
        return received, None if received else KafkaConnectionError("socket disconnected")

    def _fill(self, parser: Any) -> None:
        """Receive the current response up to its last byte, as far as bytes are available."""
        if not parser._receiving:
            return
        buffer = parser._rbuffer
        rest = memoryview(buffer)[buffer.tell() : -1]
        while rest and (received := self._sock.recv_into(rest)):
            buffer.seek(buffer.tell() + received)
            rest = rest[received:]
