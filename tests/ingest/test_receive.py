"""Responses received in place are those that were sent, however they were cut on their way."""

import socket
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kafka.protocol.parser import KafkaProtocol

from pipelines.ingest.receive import _InPlace
from pipelines.ingest.source import open_source
from pipelines.settings import Settings
from tests.draining import send, valid_records

RESPONSES = st.lists(st.binary(max_size=20_000), min_size=1, max_size=4)


class Whole(KafkaProtocol):
    """A parser that leaves each response as it is."""

    def _process_response(self, read_buffer: Any) -> bytes:
        return bytes(read_buffer)


@given(RESPONSES, st.lists(st.integers(1, 9_000), min_size=1, max_size=20))
def test_what_was_sent_is_received(responses: list[bytes], cuts: list[int]) -> None:
    """Whole responses come out in their order, whatever piece comes at a time; then the end is an error."""
    stream = b"".join(len(response).to_bytes(4, "big") + response for response in responses)
    there, here = socket.socketpair()
    with there, here:
        here.setblocking(False)
        transport, parser = _InPlace(None, here), Whole()
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


def taken(transport: _InPlace, parser: Whole) -> list[bytes]:
    """Return the responses that are complete by what has come."""
    found: list[bytes] = []
    while True:
        before = parser._rbuffer and parser._rbuffer.tell()
        data, error = transport._sock_recv()
        assert error is None
        found += parser.receive_bytes(data)
        if not data and before == (parser._rbuffer and parser._rbuffer.tell()):
            return found


def test_ingest_receives_in_place(settings: Settings) -> None:
    """The private names that this rests on are there, and a source uses them."""
    send(settings, valid_records(range(10)))
    with open_source(settings) as source:
        source.poll(lambda *_: None)
        transports = [connection.transport for connection in source.consumer._manager._conns.values()]
    assert {type(transport) for transport in transports} == {_InPlace}
