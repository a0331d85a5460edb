"""A TCP proxy on 127.0.0.1 between a client and a server, with injected faults: cuts, delay, limited bandwidth."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from tests.services.ports import HOST, free_port
from tests.services.waiting import PATIENCE_SECONDS

_CHUNK_BYTES = 16 * 1024
_CHUNKS_IN_FLIGHT = 256
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections on `port` to `target_port` of 127.0.0.1.

    Faults apply to both directions, also of open connections. As a context manager its event loop runs in a separate
    thread, and the methods may be called from any thread.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target_port = target_port
        self._is_cut = False
        self._delay_seconds = 0.0
        self._bytes_per_second: float | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy:{self.port}", daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()

    @property
    def address(self) -> str:
        """host:port for the client."""
        return f"{HOST}:{self.port}"

    def cut(self) -> None:
        """Reset all connections, and every new one as soon as it is opened."""
        self._is_cut = True
        self._run(self._reset())

    def forward_to(self, target_port: int) -> None:
        """Forward new connections to another port; open ones stay where they are, as after a change of DNS."""
        self._target_port = target_port

    def heal(self) -> None:
        """Forward again, without delay or limit."""
        self._is_cut, self._delay_seconds, self._bytes_per_second = False, 0.0, None

    def delay(self, seconds: float) -> None:
        """Delay everything that arrives from now on by `seconds`."""
        self._delay_seconds = seconds

    def throttle(self, bytes_per_second: float) -> None:
        """Forward at most `bytes_per_second` per connection and direction."""
        self._bytes_per_second = bytes_per_second

    def _run(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(PATIENCE_SECONDS)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _close(self) -> None:
        assert self._server is not None
        self._is_cut = True
        self._server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _reset(self) -> None:
        for writer in self._writers:
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            _reset(writer)
            return
        self._writers.add(writer)
        try:
            target_reader, target_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            _reset(writer)
            self._writers.discard(writer)
            return
        self._writers.add(target_writer)
        if self._is_cut:  # meanwhile
            await self._reset()
        await asyncio.gather(self._pump(reader, target_writer), self._pump(target_reader, writer))
        self._writers -= {writer, target_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_IN_FLIGHT)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._receive(reader, chunks))
                both.create_task(self._send(chunks, writer))
        except* OSError:
            pass  # one side has closed: close the other
        finally:
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await chunks.put((self._loop.time() + self._delay_seconds, data))
        await chunks.put((self._loop.time() + self._delay_seconds, b""))

    async def _send(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        due, data = await chunks.get()
        while data:
            await asyncio.sleep(due - self._loop.time())
            if self._bytes_per_second is not None:
                await asyncio.sleep(len(data) / self._bytes_per_second)
            writer.write(data)
            await writer.drain()
            due, data = await chunks.get()
        await asyncio.sleep(due - self._loop.time())


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
