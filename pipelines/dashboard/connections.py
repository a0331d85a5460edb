"""The connections of the dashboard's server: a client that sends no request holds none for long.

uvicorn limits how many connections there are, and refuses requests above that. Without more, silent connections of any
local process or web page would lock readers out. Its timeout ends with the first byte, so that does not bound a request
that is sent a byte at a time.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0
"""The time for a whole request; the page's are small."""


class BoundedProtocol(H11Protocol):
    """A connection that is closed while it waits for a request: after a deadline, or as the oldest of too many."""

    waiting_since: float
    """By the clock of the event loop."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as in uvicorn
        """Start the deadline; with too many connections, close the one that has waited longest."""
        self.waiting_since = self.loop.time()
        super().connection_made(transport)
        waiting = [each for each in self.connections if isinstance(each, BoundedProtocol) and each.is_waiting()]
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            min(waiting, key=lambda each: each.waiting_since).abort()
        self.loop.call_later(REQUEST_SECONDS, self._check)

    def on_response_complete(self) -> None:
        """Start the deadline of the next request."""
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def is_waiting(self) -> bool:
        """Return whether the client has to send something: a request, or the rest of one."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body  # pyright: ignore[reportUnnecessaryComparison]

    def _check(self) -> None:
        if self not in self.connections:  # it is closed, or a websocket now
            return
        left = self.waiting_since + REQUEST_SECONDS - self.loop.time()
        if self.is_waiting() and left <= 0:
            self.abort()
        else:
            self.loop.call_later(max(left, 1.0), self._check)

    def abort(self) -> None:
        """Close the connection without an answer."""
        self.connections.discard(self)
        self.transport.abort()
