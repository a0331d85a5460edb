"""The connections of a page's server: a client that sends no request, or reads no answer, holds none for long.

uvicorn limits how many connections there are, and refuses requests above that. Without more, silent connections of any
local process or web page would lock readers out. Its timeout ends with the first byte, so that does not bound a request
that is sent a byte at a time, and it has none for requests whose answers
nothing reads.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0
"""The time for a whole request, since the page's are small, and for reading any part of an answer."""
_CHECK_SECONDS = 1.0


class BoundedProtocol(H11Protocol):
    """A connection that is closed while it waits for its client: after a deadline, or as the oldest of too many."""

    waiting_since: float
    """By the clock of the event loop."""
    unread = 0
    """Bytes of answers that were not sent at the last check: fewer than before, if the client reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as in uvicorn
        """Start the deadline; with too many connections, close the one that has waited longest."""
        self.waiting_since = self.loop.time()
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            waiting = [each for each in self.connections if isinstance(each, BoundedProtocol) and each.is_waiting()]
            min(waiting, key=lambda each: each.waiting_since).abort()
        self.loop.call_later(_CHECK_SECONDS, self._check)

    def on_response_complete(self) -> None:
        """Start the deadline of the next request."""
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Start the deadline of reading: the answer is longer than what can be sent at once."""
        self.waiting_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Start the deadline of the next part: the client has read."""
        self.waiting_since = self.loop.time()
        super().resume_writing()

    def is_waiting(self) -> bool:
        """Return whether the client has to act: to send a request, or the rest of one, or to read an answer."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused  # pyright: ignore[reportUnnecessaryComparison]

    def _check(self) -> None:
        if self not in self.connections:  # it is closed, or a websocket now
            return
        unread, self.unread = self.unread, self.transport.get_write_buffer_size()
        if self.unread < unread:
            self.waiting_since = self.loop.time()
        if self.is_waiting() and self.loop.time() - self.waiting_since >= REQUEST_SECONDS:
            self.abort()
        else:
            self.loop.call_later(_CHECK_SECONDS, self._check)

    def abort(self) -> None:
        """Close the connection without an answer."""
        self.connections.discard(self)
        self.transport.abort()
