"""Lets through to marimo only what its page requests in run mode, and hides marimo's errors.

marimo answers about a hundred other addresses, some of which show where its files are, and an invalid request makes it
log a traceback. Here such a request gets a status, and the operator one line.
"""

import io
import logging
import re
from http import HTTPStatus
from typing import TextIO

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.boundary.text import escape_text
from pipelines.errors import truncate

_MAX_BODY_BYTES = 1024 * 1024
_READ = re.compile(r"/|/health|/(?:assets|@file)/.+|/[\w-]+\.(?:css|ico|js|json|png|svg|ttf|woff2)")
_SENT = {"/api/kernel/function_call", "/api/kernel/set_model_value", "/api/kernel/set_ui_element_value"}
_WEBSOCKET = "/ws"
_LOGGER = logging.getLogger("karmalake.dashboard")


class PageMiddleware:
    """ASGI middleware that lets only requests of the page through to `app`, and only its successes back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, or reject it."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"] != _WEBSOCKET:
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_of_page(scope["method"], scope["path"]):
            await _refuse(HTTPStatus.NOT_FOUND, scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        try:
            await self._app(scope, answer.receive, answer.send)
        except Exception as error:  # noqa: BLE001 - marimo's, of any kind; it is logged, in one line
            _LOGGER.warning("a request failed with %s", type(error).__name__)
            if not answer.has_started:
                await _refuse(HTTPStatus.INTERNAL_SERVER_ERROR, scope, receive, send)


class _Answer:
    """The answer to one request: its body is bounded, and an error has no text of marimo's."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._received = 0
        self._is_refused = False
        self.has_started = False

    async def receive(self) -> Message:
        """Return the next part of the request. Raises ValueError if its body is too long."""
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > _MAX_BODY_BYTES:
            raise ValueError(f"the body is longer than {_MAX_BODY_BYTES} bytes")
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer; instead of an error, its status alone."""
        if self._is_refused:
            return
        self.has_started = True
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            self._is_refused = True
            await _refuse(HTTPStatus(message["status"]), self._scope, self._receive, self._send)
        else:
            await self._send(message)


class ErrorLines(io.TextIOBase):
    """A standard error that shows each text as one line: of a traceback, only the error."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal

    def write(self, text: str, /) -> int:
        """Write the last line of a text that is not indented, escaped and truncated."""
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith((" ", "Traceback"))]
        if lines:
            self._terminal.write(f"{escape_text(truncate(lines[-1]))}\n")
            self._terminal.flush()
        return len(text)


def _is_of_page(method: str, path: str) -> bool:
    return path in _SENT if method == "POST" else method in {"GET", "HEAD"} and _READ.fullmatch(path) is not None


async def _refuse(status: HTTPStatus, scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(f"{status.phrase.lower()}\n", status)(scope, receive, send)
