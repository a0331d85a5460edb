"""Access control of a page: a request needs an allowed host name, its own origin, and the token.

Runs before marimo and Dagster, so that no file, websocket or error response bypasses it. The token is part of the
printed URL; a browser that has sent it once gets a session cookie, which only this process accepts.
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

from pipelines.boundary.hosts import is_allowed_host, is_allowed_origin

QUERY = "token"
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Beside the page's own Content-Security-Policy, if it has one: a browser applies both."""
_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response: the page loads nothing from other servers, and no other page may frame it."""
_FORWARD = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={}"><title>karmalake</title>'
)
_OWN_SITES = {"same-origin", "none"}
"""Where a request with the cookie may come from, by its Sec-Fetch-Site: the page, or the user. Cookies ignore ports, so
a link or an image on a page of another port has it, too; and what Dagster is asked in a GET request may start a run."""
_UNAUTHORIZED = (
    "the token is missing or wrong: open the address that the command printed, with ?token= if you set your own\n"
)
_UNKNOWN_HOST = "unknown host name: add it to the page's setting allowed_hosts\n"
_CROSS_ORIGIN = "cross-origin requests are not allowed\n"


class AccessMiddleware:
    """ASGI middleware that lets only authorized requests through to `app`."""

    def __init__(self, app: ASGIApp, token: str, names: Collection[str], port: int) -> None:
        self._app = app
        self._token = token
        self._names = tuple(names)
        self._cookie = f"karmalake-{port}"  # cookies ignore ports, so each page needs its own name
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, or reject it."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        answer = self._answer(HTTPConnection(scope))
        if answer is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "http":
            await answer(scope, receive, _with_headers(send))
        else:  # before it is accepted: the server responds 403
            await send({"type": "websocket.close", "code": 1008})

    def _answer(self, request: HTTPConnection) -> Response | None:
        """Return the response to an unauthorized request; None for an authorized one."""
        host = request.headers.get("host")
        if host is None or not is_allowed_host(host, self._names):
            return PlainTextResponse(_UNKNOWN_HOST, HTTPStatus.FORBIDDEN)
        if not is_allowed_origin(request.headers.get("origin"), host, self._names):
            return PlainTextResponse(_CROSS_ORIGIN, HTTPStatus.FORBIDDEN)
        if self._has_bearer_token(request):
            return None
        if _same(request.query_params.get(QUERY), self._token):  # closes a websocket, as any response does
            return self._set_cookie(request)
        if not _same(request.cookies.get(self._cookie), self._session):
            return PlainTextResponse(_UNAUTHORIZED, HTTPStatus.UNAUTHORIZED)
        if request.headers.get("sec-fetch-site", "none") not in _OWN_SITES:
            return PlainTextResponse(_CROSS_ORIGIN, HTTPStatus.FORBIDDEN)
        return None

    def _has_bearer_token(self, request: HTTPConnection) -> bool:
        """Return whether the request has the token as a bearer token, as sent by a proxy."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and _same(token.strip(), self._token)

    def _set_cookie(self, request: HTTPConnection) -> Response:
        """Return a page that sets the cookie and forwards to the URL without the token.

        Not a redirect: after a link from another site, a browser would not send the SameSite=Strict cookie with it.
        """
        rest = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != QUERY])
        answer = HTMLResponse(_FORWARD.format(escape(f"?{rest}")), headers={"Cache-Control": "no-store"})
        answer.set_cookie(self._cookie, self._session, httponly=True, samesite="strict")
        return answer


def _same(given: str | None, known: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(), known.encode())


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            headers.append("Content-Security-Policy", _POLICY)
        await send(message)

    return sending
