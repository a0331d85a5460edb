"""Access control of a page at its own interface: each check, each response header, each cookie attribute.

tests/dashboard/test_dashboard.py and tests/test_ports.py make such requests to the running commands.
"""

import asyncio
from collections.abc import Sequence
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from pipelines.pages.access import AccessMiddleware
from pipelines.pages.connections import BoundedProtocol
from pipelines.pages.server import listen, new_token, serve
from pipelines.settings import PageSettings

TOKEN = "Secret-Token-0123456789"  # noqa: S105 - of no server
HOST = "127.0.0.1:2718"
WITH_TOKEN = urlencode({"token": TOKEN})
POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}
"""Only sources on the page's own origin, or within the page."""


class Response(NamedTuple):
    """What the middleware sent: a status, 101 for an accepted websocket and 403 for a closed one."""

    status: int
    headers: Headers
    text: str


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request and accept every websocket that the middleware lets through."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse("the page")(scope, receive, send)


def guard(port: int = 2718) -> AccessMiddleware:
    return AccessMiddleware(page, TOKEN, ("127.0.0.1", "karma.example"), port)


def request(
    app: AccessMiddleware, query: str = "", host: str | None = HOST, *, kind: str = "http", **headers: str
) -> Response:
    """Send a request to an app, with `headers`; `kind` is `http` or `websocket`."""
    pairs = headers if host is None else {"host": host} | headers
    scope: Scope = {
        "type": kind,
        "method": "GET",
        "path": "/",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return _response(sent)


def _response(sent: Sequence[Message]) -> Response:
    first, *rest = sent
    if first["type"].startswith("websocket"):
        return Response(101 if first["type"] == "websocket.accept" else 403, Headers(), "")
    body = b"".join(message["body"] for message in rest)
    return Response(first["status"], Headers(raw=first["headers"]), body.decode())


def cookie(app: AccessMiddleware) -> str:
    """Return the session cookie, as a browser sends it."""
    [morsel] = SimpleCookie(request(app, WITH_TOKEN).headers["set-cookie"]).values()
    return f"{morsel.key}={morsel.value}"


WRONG = ["", TOKEN[:-1], f"{TOKEN}x", f"x{TOKEN}", TOKEN.lower(), "\u00e9"]


@pytest.mark.parametrize("token", WRONG)
def test_a_token_is_compared_in_full(token: str) -> None:
    """In the URL, as a bearer token and as the session cookie: a part of it, or another case, is refused."""
    app = guard()
    assert request(app, urlencode({"token": token})).status == 401
    assert request(app, authorization=f"Bearer {token}").status == 401
    assert request(app, cookie=f"karmalake-2718={token}").status == 401


def test_only_a_bearer_token_is_a_token() -> None:
    """The scheme is required, in any case; the token is not a password of another scheme."""
    app = guard()
    for kind in ("Bearer", "bearer", "BEARER"):
        assert request(app, authorization=f"{kind} {TOKEN}").text == "the page"
    for header in (TOKEN, f"Basic {TOKEN}", f"Token {TOKEN}", f" {TOKEN}", f"Bearer{TOKEN}"):
        assert request(app, authorization=header).status == 401


def test_the_cookie_is_neither_the_token_nor_that_of_another_process() -> None:
    """Cookies ignore ports: each page has a cookie name of its own, and each start another value."""
    app = guard()
    name, _, value = cookie(app).partition("=")
    assert request(app, cookie=f"{name}={value}").text == "the page"
    assert TOKEN not in value
    assert request(guard(), cookie=f"{name}={value}").status == 401
    assert cookie(guard(2719)).partition("=")[0] != name


def test_the_cookie_stays_with_the_page() -> None:
    """No script reads it, no other site sends it, and the response that sets it is not cached."""
    headers = request(guard(), WITH_TOKEN).headers
    attributes = {part.strip().lower() for part in headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict"} <= attributes
    assert headers["cache-control"] == "no-store"


class _Refresh(HTMLParser):
    """Collects the tags of a page and the target of its refresh."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.target = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.target = (dict(attrs).get("content") or "").partition("url=")[2] or self.target


@pytest.mark.parametrize(
    "user", ['"><script>alert(1)</script>', "a&b=c", "x;url=//evil.example", "\u202e\u00e9 +%", ""]
)
def test_the_token_leaves_the_url_and_other_parameters_stay(user: str) -> None:
    """The page that forwards has all parameters except the token, encoded so that they add no tag or parameter."""
    query = urlencode({"section": "user", "token": TOKEN, "user": user})
    forward = _Refresh()
    forward.feed(request(guard(), query).text)
    assert forward.tags == ["meta", "meta", "title"]
    assert parse_qsl(forward.target.removeprefix("?"), keep_blank_values=True) == [("section", "user"), ("user", user)]


def test_every_response_has_the_headers() -> None:
    """Of pages and refusals: the page loads nothing from elsewhere, is shown in no frame, and sends no referrer."""
    app = guard()
    responses = {
        200: [request(app, cookie=cookie(app)), request(app, WITH_TOKEN)],
        401: [request(app)],
        403: [request(app, host="evil.example"), request(app, origin="http://evil.example")],
    }
    for status, found in responses.items():
        for response in found:
            directives = (
                part.strip().partition(" ") for part in response.headers["content-security-policy"].split(";")
            )
            assert response.status == status
            assert {name: sources for name, _, sources in directives} == POLICY
            assert response.headers["cross-origin-resource-policy"] == "same-origin"
            assert response.headers["referrer-policy"] == "no-referrer"
            assert response.headers["x-content-type-options"] == "nosniff"


def test_the_policy_of_a_page_stays() -> None:
    """Dagster's page allows only scripts with a nonce: a browser applies both policies."""
    own = "script-src 'nonce-1'"

    async def with_policy(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("the page", headers={"Content-Security-Policy": own})(scope, receive, send)

    app = AccessMiddleware(with_policy, TOKEN, (), 2718)
    policies = request(app, cookie=cookie(app)).headers.getlist("content-security-policy")
    assert policies[0] == own
    assert "frame-ancestors 'none'" in policies[1]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_page_of_another_port_cannot_use_the_cookie(kind: str) -> None:
    """To a browser it is the same site, so the cookie comes with its links and images, which have no Origin."""
    app = guard()
    known = cookie(app)
    for site, status in (
        ("same-origin", {101, 200}),
        ("none", {101, 200}),
        ("same-site", {403}),
        ("cross-site", {403}),
    ):
        headers = {"cookie": known, "sec-fetch-site": site}
        assert request(app, kind=kind, **headers).status in status
    link = {"cookie": known, "sec-fetch-site": "cross-site"}
    assert request(app, WITH_TOKEN, **link).headers["set-cookie"], "the printed address may be a link"


def test_a_websocket_needs_the_cookie_and_the_origin_of_the_page() -> None:
    """A token in its URL is not enough: only the page opens a websocket, and its address has no token."""
    app = guard()
    known = cookie(app)
    for headers in ({"cookie": known}, {"cookie": known, "origin": f"http://{HOST}"}):
        assert request(app, kind="websocket", **headers).status == 101
    assert request(app, kind="websocket", cookie=known, origin="http://evil.example").status == 403
    assert request(app, host="evil.example", kind="websocket", cookie=known).status == 403
    assert request(app, kind="websocket").status == 403
    assert request(app, WITH_TOKEN, kind="websocket").status == 403


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("host", [None, "", "evil.example", "127.0.0.1.evil.example:2718"])
def test_a_host_is_required_and_known(kind: str, host: str | None) -> None:
    """Even with the token: a page of another site reaches this server by a host name of its own (DNS rebinding)."""
    assert request(guard(), host=host, kind=kind, authorization=f"Bearer {TOKEN}").status == 403
    assert request(guard(), host="KARMA.example", kind=kind, authorization=f"Bearer {TOKEN}").status in {101, 200}


def test_the_server_is_guarded_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs the page behind the checks, limits connections, and logs no URL, which may have the token."""
    started: list[uvicorn.Config] = []

    def run(server: uvicorn.Server, sockets: object) -> None:
        assert sockets
        started.append(server.config)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    with listen("127.0.0.1", 0) as listening:
        serve(page, listening, "127.0.0.1", TOKEN, PageSettings(allowed_hosts=("karma.example",)))
    [config] = started
    app: Any = config.app
    assert (config.limit_concurrency, config.server_header, config.log_level) == (200, False, "error")
    assert (config.http, config.h11_max_incomplete_event_size) == (BoundedProtocol, 65_536)
    assert [request(app, WITH_TOKEN, host).status for host in ("karma.example", "evil.example")] == [200, 403]
    assert request(app).status == 401


def test_tokens_are_random() -> None:
    """Each start has a new one, of 32 random bytes."""
    tokens = {new_token() for _ in range(10)}
    assert len(tokens) == 10
    assert all(len(token) >= 43 for token in tokens)
