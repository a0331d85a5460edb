"""Responses received in place equal those sent, however the network splits them."""

import socket
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kafka.protocol.parser import KafkaProtocol

from pipelines.ingest.kafka import open_source
from pipelines.ingest.receive import _InPlaceTransport
from pipelines.settings import Settings
from tests.draining import send, valid_records

RESPONSES = st.lists(st.binary(max_size=20_000), min_size=1, max_size=4)


class Whole(KafkaProtocol):
    """A parser that returns the bytes of each response."""

    def _process_response(self, read_buffer: Any) -> bytes:
        return bytes(read_buffer)


@given(RESPONSES, st.lists(st.integers(1, 9_000), min_size=1, max_size=20))
def test_what_was_sent_is_received(responses: list[bytes], cuts: list[int]) -> None:
    """Responses arrive complete and in order, whatever the pieces; then the end of the connection is an error."""
    stream = b"".join(len(response).to_bytes(4, "big") + response for response in responses)
    there, here = socket.socketpair()
    with there, here:
        here.setblocking(False)
        transport, parser = _InPlaceTransport(None, here), Whole()
        transport.set_protocol(SimpleNamespace(parser=parser))
        found: list[bytes] = []
        while stream:
            size = cuts.pop(0) if cuts else len(stream)
            there.sendall(stream[:size])
            stream = stream[size:]
            found += taken(transport, parser)
        assert found == responses
        there.close()
        assert transport._sock_recv()[1] is not None


def taken(transport: _InPlaceTransport, parser: Whole) -> list[bytes]:
    """Return the responses that are complete so far."""
    found: list[bytes] = []
    while True:
        before = parser._rbuffer and parser._rbuffer.tell()
        data, error = transport._sock_recv()
        assert error is None
        found += parser.receive_bytes(data)
        if not data and before == (parser._rbuffer and parser._rbuffer.tell()):
            return found


def test_ingest_receives_in_place(settings: Settings) -> None:
    """The private names of kafka-python exist, and a source uses the in-place transport."""
    send(settings, valid_records(range(10)))
    with open_source(settings) as source:
        source.poll(lambda *_: None)
        transports = [connection.transport for connection in source.consumer._manager._conns.values()]
    assert {type(transport) for transport in transports} == {_InPlaceTransport}
