"""An HTTP client with a deadline and a size limit for each exchange.

HTTP libraries limit the time of each read, so a server that sends one byte at a time can block its caller indefinitely.
Here exchanges run on an event loop in a background thread, and the deadline cancels every phase: connecting, TLS,
sending, headers and body. Redirects are not followed and cookies are not stored.

A name is looked up in a thread of its own, which a deadline cannot end: resolvers hang for half a minute. Threads are
started as they are needed, so names that hang delay no other exchange (`isolated`).
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from http.cookiejar import CookieJar
from threading import Thread
from typing import Any, cast

import httpx

from pipelines.errors import ConfigurationError, TransientError, one_line

_PROXIES, _CERTIFICATES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}, {"SSL_CERT_FILE", "SSL_CERT_DIR"}
"""What httpx reads of the environment; proxies also in lower case."""
_MAX_LOOKUPS = 4_096
"""Names that are looked up at once; asyncio's own limit is a few more than the processors."""


class _NoCookies(CookieJar):
    """A cookie jar that stores nothing: a server that sets a new cookie in each response costs no memory."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Ignore the cookies of a response."""


def _new_client() -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(timeout=None, cookies=_NoCookies())  # noqa: S113 - each exchange has a deadline
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        names, fault = _fault(error)
        found = ", ".join(sorted(name for name in os.environ if name.upper() in names))
        raise ConfigurationError(
            f"HTTP requests cannot be made with {found} in the environment: {fault}; correct or unset it"
        ) from None


def _fault(error: Exception) -> tuple[set[str], str]:
    """Return which variables are wrong, and how, without the text of an address, which may hold a password."""
    if isinstance(error, ImportError):
        return _PROXIES, "proxies that speak SOCKS are not supported"
    if isinstance(error, OSError):
        return _CERTIFICATES, f"the certificates cannot be read ({one_line(error)})"
    return _PROXIES, "a proxy has to be a URL like http://host:port, and an IPv6 address in NO_PROXY has no brackets"


@cache
def _running_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_MAX_LOOKUPS, "http-lookup"))
    Thread(target=loop.run_forever, name="http-exchange", daemon=True).start()
    return loop


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The response of a server. `truncation` says why the body is incomplete; None if it is complete."""

    status: int
    headers: httpx.Headers
    body: bytes
    truncation: str | None


@dataclass(frozen=True, slots=True)
class HttpClient:
    """A pool of persistent connections. Thread-safe.

    Proxies and certificates are those that the environment names; creation raises ConfigurationError if they cannot be
    used.
    """

    _client: httpx.AsyncClient = field(default_factory=_new_client)
    _loop: asyncio.AbstractEventLoop = field(default_factory=_running_loop)

    def exchange(self, request: httpx.Request, deadline_seconds: float, max_bytes: int) -> HttpResponse:
        """Send a request and return the response, within `deadline_seconds` for the whole exchange.

        Once the headers have arrived, the status counts: a body that is longer than `max_bytes`, late or broken off is
        returned as far as it was received, with `truncation` set. Bodies are never decompressed.
        Raises TransientError, without the address in its message, if no valid status arrives within the deadline.
        """
        request.headers.setdefault("Accept-Encoding", "identity")
        request.headers.setdefault("User-Agent", "karmalake")
        future = asyncio.run_coroutine_threadsafe(
            _exchange(self._client, request, deadline_seconds, max_bytes), self._loop
        )
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()


def excerpt(text: str, characters: int = 80) -> str:
    """Return the first `characters` of a text from outside, with non-printable characters replaced by `?`."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:characters])
    return f"{shown}..." if len(text) > characters else shown


async def _exchange(client: httpx.AsyncClient, request: httpx.Request, seconds: float, max_bytes: int) -> HttpResponse:
    deadline = asyncio.get_running_loop().time() + seconds
    body = bytearray()
    try:
        response = await _send(client, request, deadline)
    except Exception as error:  # noqa: BLE001 - any exception means that there is no response
        raise TransientError(_describe(error, seconds)) from None
    try:
        truncation = await _read_into(body, response, deadline, max_bytes)
    except Exception as error:  # noqa: BLE001 - the same
        truncation = _describe(error, seconds)
    finally:
        await response.aclose()
    return HttpResponse(response.status_code, response.headers, bytes(body[:max_bytes]), truncation)


async def _send(client: httpx.AsyncClient, request: httpx.Request, deadline: float) -> httpx.Response:
    """Return the response to a request, its body unread; close a connection that httpcore leaves half open."""
    opened: list[Any] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            opened.append(info["return_value"])

    request.extensions["trace"] = trace
    try:
        async with asyncio.timeout_at(deadline):
            return await client.send(request, stream=True)
    except BaseException:
        for stream in opened:
            await stream.aclose()
        raise


async def _read_into(body: bytearray, response: httpx.Response, deadline: float, max_bytes: int) -> str | None:
    """Append the body of a response to `body`; return why it is incomplete, None if it is complete."""
    async with asyncio.timeout_at(deadline), aclosing(cast("AsyncGenerator[bytes]", response.aiter_raw())) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > max_bytes:
                return f"the answer is longer than {max_bytes} bytes"
    return None


def _describe(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no complete answer within {seconds:g} s"
    return excerpt(f"{type(error).__name__}: {error}", 200)
