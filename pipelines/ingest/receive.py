"""Receiving what brokers send in place: a response goes from the socket into the buffer that it is taken apart in.

kafka-python 3.0 reads a socket 4 kB at a time and copies what came three times before that. This rests on a few of its
private names, which a test watches. TLS is left as it is: it comes in small records, and decrypting costs more.
"""
# pyright: reportOptionalMemberAccess=false
# ruff: noqa: SLF001 - there is no public way

from typing import Any

from kafka.errors import KafkaConnectionError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport

_BORDER_BYTES = 4096
"""What is received by kafka-python's own way: the beginning of a response, and its last byte."""


def receiving_in_place(**config: object) -> KafkaNetClient:
    """Return a client as a KafkaConsumer takes one by `kafka_client`: one that receives in place."""
    net = NetworkSelector(**config)
    return KafkaNetClient(net, _Connections(net, **config), **config)


class _Connections(KafkaConnectionManager):
    async def _build_transport(self, node: Any, timeout_at: Any = None) -> Any:
        transport = await super()._build_transport(node, timeout_at=timeout_at)
        if type(transport) is KafkaTCPTransport:
            transport.__class__ = _InPlace
        return transport


class _InPlace(KafkaTCPTransport):
    """A connection whose responses are received where they are read; whoever waits is told as ever."""

    def _sock_recv(self) -> tuple[bytes, KafkaConnectionError | None]:
        """Return what the parser is to be given, and why nothing more will come."""
        try:
            self._fill(self._protocol.parser)
            received = self._sock.recv(_BORDER_BYTES)
        except (BlockingIOError, InterruptedError):
            return b"", None
        except OSError as error:
            return b"", KafkaConnectionError(error)
        return received, None if received else KafkaConnectionError("socket disconnected")

    def _fill(self, parser: Any) -> None:
        """Receive the response under way but for its last byte, or up to the end of what comes."""
        if not parser._receiving:
            return
        buffer = parser._rbuffer
        rest = memoryview(buffer)[buffer.tell() : -1]
        while rest and (received := self._sock.recv_into(rest)):
            buffer.seek(buffer.tell() + received)
            rest = rest[received:]
