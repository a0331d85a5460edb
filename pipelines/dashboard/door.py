"""The door of the dashboard: whatever asks has to call it by its name, come from its own page and know its token.

Stands before marimo, so that nothing, be it a file, a websocket or an error, is answered without. The token is in the
address that is printed; a browser that has shown it once holds a cookie, which this process alone takes.
"""

import secrets
from collections.abc import Collection
from html import escape
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.boundary.hosts import host_allowed, origin_allowed

QUERY = "token"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What a browser keeps to on this page: it asks no other server for anything, and no other page may frame it."""
_ENTER = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={}"><title>karmalake</title>'
_NOT_KNOWN = "the token is missing or wrong: open the address that `karmalake dashboard` printed\n"
_OTHER_HOST = "the dashboard is not known by this name: set dashboard.allowed_hosts\n"
_OTHER_PAGE = "a page of another origin may not ask\n"


class Door:
    """An ASGI application before another one."""

    def __init__(self, app: ASGIApp, token: str, names: Collection[str], port: int) -> None:
        self._app = app
        self._token = token
        self._names = tuple(names)
        self._cookie = f"karmalake-{port}"  # cookies know no ports: another dashboard's is not ours
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        answer = self._answer(HTTPConnection(scope))
        if answer is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "http":
            await answer(scope, receive, _with_headers(send))
        else:  # before it is accepted: the server answers 403
            await send({"type": "websocket.close", "code": 1008})

    def _answer(self, asked: HTTPConnection) -> Response | None:
        """Return what is answered instead of the page, or None for a request that may have it."""
        host = asked.headers.get("host")
        if host is None or not host_allowed(host, self._names):
            return PlainTextResponse(_OTHER_HOST, HTTPStatus.FORBIDDEN)
        if not origin_allowed(asked.headers.get("origin"), host, self._names):
            return PlainTextResponse(_OTHER_PAGE, HTTPStatus.FORBIDDEN)
        if _same(asked.cookies.get(self._cookie), self._session) or self._bears_token(asked):
            return None
        if asked.scope["type"] == "http" and _same(asked.query_params.get(QUERY), self._token):
            return self._enter(asked)
        return PlainTextResponse(_NOT_KNOWN, HTTPStatus.UNAUTHORIZED)

    def _bears_token(self, asked: HTTPConnection) -> bool:
        """Return whether a proxy that knows the token asks."""
        kind, _, token = asked.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and _same(token.strip(), self._token)

    def _enter(self, asked: HTTPConnection) -> Response:
        """Return a page that leads on without the token.

        A redirect would not do: where another site's link led here, a browser keeps a strict cookie from it.
        """
        rest = urlencode([(name, value) for name, value in asked.query_params.multi_items() if name != QUERY])
        answer = HTMLResponse(_ENTER.format(escape(f"?{rest}")), headers={"Cache-Control": "no-store"})
        answer.set_cookie(self._cookie, self._session, httponly=True, samesite="strict")
        return answer


def _same(given: str | None, known: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(), known.encode())


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sending
