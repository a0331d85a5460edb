"""One HTTP exchange under one deadline and one bound on size, for every server that is asked from here.

An HTTP library limits the time of each read, so a server that sends a byte at a time holds its caller as long as it
likes. Exchanges run on an event loop in a thread of their own, where the deadline cancels whatever is under way:
connecting, TLS, sending, the headers and the body. Redirects are not followed and cookies are not kept.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from http.cookiejar import CookieJar
from threading import Thread
from typing import Any, cast

import httpx

from pipelines.errors import TransientError


class _NoCookies(CookieJar):
    """Keeps nothing: a server that sets a new cookie in each answer costs no memory."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Ignore the cookies of an answer."""


def _new_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, cookies=_NoCookies())  # noqa: S113 - the deadline is the exchange's


@cache
def _running_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="http-exchange", daemon=True).start()
    return loop


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a server answered. `cut` says why the body is incomplete; None if it is complete."""

    status: int
    headers: httpx.Headers
    body: bytes
    cut: str | None


@dataclass(frozen=True, slots=True)
class HttpClient:
    """Connections that are kept open between exchanges; safe to share between threads."""

    _client: httpx.AsyncClient = field(default_factory=_new_client)
    _loop: asyncio.AbstractEventLoop = field(default_factory=_running_loop)

    def exchange(self, request: httpx.Request, deadline_seconds: float, max_bytes: int) -> HttpAnswer:
        """Send a request and return the answer, within `deadline_seconds` from connecting to the body's last byte.

        Once the headers are there, the status counts: a body that is longer than `max_bytes`, late or broken off is
        returned as far as it came, with `cut` set. Bodies are returned as sent, never decompressed.
        Raises TransientError, without the address in its message, if there is no valid status within the deadline.
        """
        request.headers.setdefault("Accept-Encoding", "identity")
        request.headers.setdefault("User-Agent", "karmalake")
        answer = asyncio.run_coroutine_threadsafe(
            _exchange(self._client, request, deadline_seconds, max_bytes), self._loop
        )
        try:
            return answer.result()
        finally:
            answer.cancel()

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()


def excerpt(text: str, characters: int = 80) -> str:
    """Return the beginning of a text from outside, with what a terminal would obey or hide replaced by `?`."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:characters])
    return f"{shown}..." if len(text) > characters else shown


async def _exchange(client: httpx.AsyncClient, request: httpx.Request, seconds: float, max_bytes: int) -> HttpAnswer:
    ends = asyncio.get_running_loop().time() + seconds
    body = bytearray()
    try:
        response = await _headers(client, request, ends)
    except Exception as error:  # noqa: BLE001 - whatever a server makes the library raise is no answer
        raise TransientError(_why(error, seconds)) from None
    try:
        cut = await _read_into(body, response, ends, max_bytes)
    except Exception as error:  # noqa: BLE001 - the same
        cut = _why(error, seconds)
    finally:
        await response.aclose()
    return HttpAnswer(response.status_code, response.headers, bytes(body[:max_bytes]), cut)


async def _headers(client: httpx.AsyncClient, request: httpx.Request, ends: float) -> httpx.Response:
    """Send a request and return its response, the body unread; close a connection that httpcore leaves half open."""
    opened: list[Any] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            opened.append(info["return_value"])

    request.extensions["trace"] = trace
    try:
        async with asyncio.timeout_at(ends):
            return await client.send(request, stream=True)
    except BaseException:
        for stream in opened:
            await stream.aclose()
        raise


async def _read_into(body: bytearray, response: httpx.Response, ends: float, max_bytes: int) -> str | None:
    """Append the body of a response to `body`; return why it stopped before the end, if it did."""
    async with asyncio.timeout_at(ends), aclosing(cast("AsyncGenerator[bytes]", response.aiter_raw())) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > max_bytes:
                return f"the answer is longer than {max_bytes} bytes"
    return None


def _why(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no complete answer within {seconds:g} s"
    return excerpt(f"{type(error).__name__}: {error}", 200)
