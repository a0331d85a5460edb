"""The dashboard in a real browser: every section renders, missing data is explained, no code runs, any name is safe."""

import re
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pyarrow as pa
import pytest
import websockets
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from websockets.sync.client import ClientConnection, connect

from pipelines.boundary.text import escape_text
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.dashboard.queries import event_history, top_user
from pipelines.emit.producer import Record
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import open_warehouse
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.commands import KARMALAKE, Started, run
from tests.conftest import REPOSITORY
from tests.draining import NOON, drain_all, send, with_ingest
from tests.services.browser import running_browser
from tests.services.ports import free_port
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.share import share
from tests.test_crashes import environment

pytestmark = pytest.mark.slow
_MS = int(1_000 * PATIENCE_SECONDS)
_FAULTS = FaultRates(duplicates=0.02, conflicts=0.01, mis_keyed=0.0, malformed=0.05)


@pytest.fixture(scope="module")
def served(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings of a small world that was drained, derived and published."""
    kafka = local_settings.kafka.model_copy(update={"topic": "dashboard", "group_id": "dashboard"})
    redis = local_settings.redis.model_copy(update={"prefix": "dashboard"})
    update = {"data_dir": tmp_path_factory.mktemp("dashboard"), "kafka": kafka, "redis": redis}
    settings = with_ingest(local_settings.model_copy(update=update))
    send(settings, simulate(7, 2_000, days=20, rates=_FAULTS).records)
    drain_all(settings)
    refresh_warehouse(settings)
    publish_warehouse(settings)
    return settings


@contextmanager
def _dashboard(settings: Settings, folder: Path, *, stderr: Path | None = None, **variables: str) -> Iterator[str]:
    """Yield the URL of a dashboard; it exits with code 0 on SIGTERM."""
    values = environment(settings) | {
        "PYTHONUNBUFFERED": "1",
    }
    command = [*KARMALAKE, "dashboard", "--port", str(free_port())]
    values |= variables
    with (
        (stderr or folder / "stderr").open("w") as errors,
        Started(command, env=values, cwd=folder, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert line.startswith("dashboard at http://127.0.0.1:"), line
            yield line.removeprefix("dashboard at ").partition(";")[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(served: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _dashboard(served, tmp_path_factory.mktemp("elsewhere")) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Return a page that fails the test on any console error or request to another machine."""
    page = browser.new_page()
    page.set_default_timeout(_MS)
    errors: list[str] = []

    def record_error(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("console", record_error)
    page.on("pageerror", lambda error: errors.append(str(error)))
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    yield page
    page.close()
    assert errors == []
    assert [
        url for url in requested if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
    ] == []


def _heading(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible(timeout=_MS)


def test_clicking_through_every_section(page: Page, address: str) -> None:
    """Trends by day and week, the leaderboard, one user's history with every point, and health."""
    page.goto(address)
    _heading(page, "Trends")
    expect(page.locator("canvas, svg.marks")).to_have_count(3, timeout=_MS)
    page.get_by_role("radio", name="week").click()
    _heading(page, "Trends")
    page.get_by_role("tab", name="Leaderboard").click()
    _heading(page, "All time")
    expect(page.locator("table").first).to_contain_text("driver-", timeout=_MS)
    page.get_by_role("tab", name="User").click()
    _heading(page, "Explanation of the score")
    expect(page.get_by_text("counted events").first).to_be_visible()
    expect(page.locator("canvas, svg.marks")).to_have_count(2, timeout=_MS)
    page.get_by_role("tab", name="Health").click()
    _heading(page, "Latest commits")
    expect(page.get_by_text("The lake is 0 records and")).to_be_visible(timeout=_MS)
    expect(page.get_by_text("undecodable").first).to_be_visible()
    expect(page.get_by_text("The served scores are")).to_be_visible()


def test_filtering_the_reasons(page: Page, served: Settings, address: str) -> None:
    """The table has the ids of event, rater and transaction; a reason selects its rows, and leaves the charts alone."""
    with open_warehouse(served.data_dir) as warehouse:
        user_id = top_user(warehouse)
        reasons = event_history(warehouse, user_id)["reason"].value_counts().sort("count", "reason")
    reason, rows = reasons.row(0)
    page.goto(f"{address}&section=user&user={quote(user_id)}")
    table = page.locator("table.karmalake")
    for name in ("event_id", "rater_id", "transaction_id"):
        expect(table.get_by_role("columnheader", name=name, exact=True)).to_be_visible(timeout=_MS)
    expect(table.locator("tbody tr")).to_have_count(min(500, sum(reasons["count"].to_list())), timeout=_MS)
    page.get_by_label("Reason").select_option(f"{reason} ({rows:,})")
    expect(table.locator("tbody tr")).to_have_count(rows, timeout=_MS)
    expect(table.locator("tbody tr").get_by_text(reason, exact=True)).to_have_count(rows, timeout=_MS)
    expect(page.locator("canvas, svg.marks")).to_have_count(2, timeout=_MS)


def test_the_page_of_a_user_fits_a_phone(page: Page, address: str) -> None:
    """Cards wrap, the sentence above a chart is text that wraps, and a chart is as wide as the page allows."""
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{address}&section=user")
    expect(page.locator("canvas, svg.marks")).to_have_count(2, timeout=_MS)
    shown = [page.get_by_text(text).first for text in ("counted events", "rank ", "as known now", "points lost")]
    for part in (*shown, *page.locator("canvas, svg.marks").all()):
        box = part.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


_UNKNOWN = ["nobody", "<script>document.title = 'owned'</script>", "'; DROP TABLE events; --"]


@pytest.mark.parametrize("user_id", share(_UNKNOWN, 3))
def test_an_unknown_user(page: Page, address: str, user_id: str) -> None:
    """The page says so, and shows any name as plain text."""
    page.goto(f"{address}&section=user&user={quote(user_id)}")
    expect(page.get_by_text("no events of user")).to_be_visible(timeout=_MS)
    expect(page.get_by_role("textbox")).to_be_visible()  # to correct it
    assert page.title() != "owned"
    page.get_by_role("tab", name="Trends").click()
    _heading(page, "Trends")


def test_no_reader_can_run_code(page: Page, address: str) -> None:
    """The page has no editor: it neither shows code nor accepts any."""
    page.goto(address)
    _heading(page, "Trends")
    assert page.locator(".cm-editor").count() == 0


def _bare(address: str) -> str:
    return address.partition("?")[0]


def _token(address: str) -> str:
    return parse_qs(urlsplit(address).query)["token"][0]


PATHS = [
    "",
    "?section=user&user=driver-1",
    "health",
    "api/status",
    "assets/index.js",
    "favicon.ico",
    "auth/login",
    "@file/1-x.csv",
]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_answered_without_the_token(address: str, path: str) -> None:
    """No page, file, login or error: only one message, also with a wrong token."""
    for query in ("", "token=", "token=wrong", f"token={_token(address)[:-1]}"):
        separator = "&" if "?" in path else "?"
        answer = httpx.get(f"{_bare(address)}{path}{separator}{query}", timeout=PATIENCE_SECONDS)
        assert (answer.status_code, "the command printed" in answer.text) == (401, True)
        assert "set-cookie" not in answer.headers
    assert httpx.post(f"{_bare(address)}api/kernel/run", json={}, timeout=PATIENCE_SECONDS).status_code == 401
    assert (
        httpx.get(_bare(address), headers={"Authorization": "Bearer wrong"}, timeout=PATIENCE_SECONDS).status_code
        == 401
    )


@pytest.fixture
def known(address: str) -> Iterator[httpx.Client]:
    """Return a client that has sent the token once."""
    with httpx.Client(timeout=PATIENCE_SECONDS) as client:
        entered = client.get(f"{address}&section=health")
        assert (entered.status_code, "url=?section=health" in entered.text) == (200, True)
        assert _token(address) not in entered.text
        cookie = entered.headers["set-cookie"]
        assert all(attribute in cookie for attribute in ("HttpOnly", "SameSite=strict"))
        assert _token(address) not in cookie
        yield client


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b"]
)
def test_another_host_name_gets_nothing(known: httpx.Client, address: str, host: str) -> None:
    """A host name that resolves here (DNS rebinding) is refused, even with the cookie."""
    assert known.get(_bare(address)).status_code == 200
    assert known.get(_bare(address), headers={"Host": host}).status_code in {400, 403}
    assert httpx.get(address, headers={"Host": host}, timeout=PATIENCE_SECONDS).status_code in {400, 403}


@pytest.mark.parametrize("header", ["Host: evil.example", f"X: {'x' * 1_000_000}", "X: x\r\n" * 100_000])
def test_a_request_with_two_hosts_or_endless_headers_is_refused(address: str, header: str) -> None:
    """Before the token is looked at: a proxy may mean the other host, and headers are held in memory."""
    parts = urlsplit(address)
    for more, status in (("", b"200"), (f"{header}\r\n", b"400")):
        with socket.create_connection((parts.hostname, parts.port), PATIENCE_SECONDS) as connection:
            known = f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {_token(address)}\r\n"
            with suppress(ConnectionError):  # the server has closed it: it read no further
                connection.sendall(f"{known}{more}\r\n".encode())
            assert connection.recv(12).split()[1:] == [status]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", "file://"]
)
def test_another_origin_gets_nothing(known: httpx.Client, address: str, origin: str) -> None:
    """Requests and websockets from another origin are refused, even with the cookie; those of the page are not."""
    own = _bare(address).rstrip("/")
    assert known.get(_bare(address), headers={"Origin": own}).status_code == 200
    assert known.get(_bare(address), headers={"Origin": origin}).status_code == 403
    cookie = "; ".join(f"{name}={value}" for name, value in known.cookies.items())
    url = f"{_bare(address).replace('http', 'ws')}ws?session_id=s_000000"
    for headers in ({"Cookie": cookie, "Origin": origin}, {"Origin": own}, {}, {"Cookie": f"{cookie}x", "Origin": own}):
        with (
            pytest.raises(websockets.exceptions.InvalidStatus) as refused,
            connect(url, additional_headers=headers),
        ):
            pass
        assert refused.value.response.status_code == 403
    with connect(url, additional_headers={"Cookie": cookie, "Origin": own}) as opened:
        assert opened.recv(10)


def test_a_page_of_another_origin_reads_nothing(browser: Browser, address: str, tmp_path: Path) -> None:
    """In a browser with the cookie, another page can open no websocket and read no response (case 09)."""
    context = browser.new_context()
    page, other = context.new_page(), context.new_page()
    page.goto(address)
    _heading(page, "Trends")
    (tmp_path / "other.html").write_text("<title>other</title>")
    other.goto((tmp_path / "other.html").as_uri())
    ask = """async (url) => {
        const read = await fetch(url, {credentials: 'include'}).then((r) => r.text()).catch(() => 'refused')
        const ws = await new Promise((end) => {
            const socket = new WebSocket(url.replace('http', 'ws') + 'ws?session_id=s_000001')
            socket.onopen = () => end('opened'); socket.onerror = () => end('refused')
        })
        return [read, ws]
    }"""
    assert other.evaluate(ask, _bare(address)) == ["refused", "refused"]
    context.close()


def test_the_page_asks_no_other_server_and_is_in_no_frame(known: httpx.Client, address: str) -> None:
    """Headers of every response enforce it in browsers."""
    headers = known.get(_bare(address)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


def _known_session(known: httpx.Client, address: str) -> tuple[dict[str, str], ClientConnection]:
    """Return the headers of a reader's session, and its websocket."""
    found = re.search(r'"serverToken": "([^"]*)"', known.get(_bare(address)).text)
    assert found
    headers = {"Marimo-Server-Token": found[1], "Marimo-Session-Id": "s_reader"}
    cookie = "; ".join(f"{name}={value}" for name, value in known.cookies.items())
    url = f"{_bare(address).replace('http', 'ws')}ws?session_id=s_reader&section=trends"
    return headers, connect(url, additional_headers={"Cookie": cookie}, max_size=None)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "api/home/workspace_files"),
        ("POST", "api/kernel/run"),
        ("POST", "api/export/html"),
        ("POST", "auth/login"),
        ("GET", "api/export/availability"),
        ("GET", "api/status/connections"),
        ("GET", "auth/login"),
        ("GET", "sse"),
        ("GET", "@file/../../etc/passwd"),
        ("GET", "assets/%2e%2e/%2e%2e/%2e%2e/py.typed"),
        ("GET", "?file=/etc/passwd"),
        ("DELETE", ""),
    ],
)
def test_marimo_answers_only_its_page(known: httpx.Client, address: str, method: str, path: str) -> None:
    """A reader gets nothing from the other addresses of marimo, not even why."""
    refused = known.request(method, f"{_bare(address)}{path}", json={} if method == "POST" else None)
    assert (refused.status_code, refused.text) == (404, "not found\n")


def test_a_reader_neither_writes_tracebacks_nor_learns_where_the_code_is(served: Settings, tmp_path: Path) -> None:
    """Invalid requests and values: a status for the reader, one line for the operator, and no path of the package."""
    with (
        _dashboard(served, tmp_path, stderr=tmp_path / "errors") as address,
        httpx.Client(timeout=PATIENCE_SECONDS) as known,
    ):
        known.get(address)
        headers, session = _known_session(known, address)
        page = known.get(_bare(address)).text
        with session:
            opened = ""
            while not (elements := set(re.findall(r"object-id=\\*['\"]([^'\"\\]+)", opened))):
                opened += str(session.recv(PATIENCE_SECONDS))
            for body, status in ((b"{}", 400), (b"garbage\xff", 500), (b"x" * 2_000_000, 500)):
                for path in ("function_call", "set_ui_element_value"):
                    answer = known.post(f"{_bare(address)}api/kernel/{path}", content=body, headers=headers)
                    assert (answer.status_code, answer.text.strip()) == (status, HTTPStatus(status).phrase.lower())
            for value in ("nothing \x1b[31m", {"a": 1}, None, ["x"]):
                values = {"objectIds": [*elements], "values": [value] * len(elements)}
                answer = known.post(f"{_bare(address)}api/kernel/set_ui_element_value", json=values, headers=headers)
                assert answer.status_code == 200
            errors = wait_for("the last error", lambda: _with(tmp_path / "errors", "'list'"))
    lines = errors.splitlines()
    assert not [line for line in lines if line.startswith((" ", "Traceback")) or "\x1b" in line]
    assert len(lines) < 50
    assert str(REPOSITORY) not in page + opened + errors


def _with(file: Path, text: str) -> str:
    """Return the content of a file if it has a text."""
    content = file.read_text()
    return content if text in content else ""


def test_a_configured_token_and_a_public_name(served: Settings, tmp_path: Path) -> None:
    """A configured token is not printed; a proxy sends it as a header, under the public host name."""
    token = secrets.token_hex(8)
    names = {"KARMALAKE_DASHBOARD_TOKEN": token, "KARMALAKE_DASHBOARD_ALLOWED_HOSTS": "karma.example"}
    with _dashboard(served, tmp_path, **names) as address:
        assert address.endswith("/")
        proxied = {"Host": "karma.example", "Origin": "https://karma.example", "Authorization": f"Bearer {token}"}
        assert httpx.get(address, headers=proxied, timeout=PATIENCE_SECONDS).status_code == 200
        assert (
            httpx.get(
                address, headers=proxied | {"Origin": "https://karma.example:8443"}, timeout=PATIENCE_SECONDS
            ).status_code
            == 403
        )
        assert httpx.get(f"{address}?token={token}", timeout=PATIENCE_SECONDS).status_code == 200
        assert httpx.get(address, timeout=PATIENCE_SECONDS).status_code == 401


HOSTILE = [
    "https://evil.example/pixel.png",
    "![x](https://evil.example/markdown.png)",
    "[click](https://evil.example/)",
    "<img src='https://evil.example/tag.png' onerror='document.title = \"owned\"'>",
    "data:image/svg+xml,<svg onload='document.title = 1'/>",
    "$$\\href{https://evil.example}{x}$$",
    "\u202egnp.exe\x1b[31m",
]


_POLICY = """
name = "hostile"
version = "<b>1</b>"
[actions.DriverRated]
points = 1
"""


def test_names_are_plain_text(page: Page, served: Settings, tmp_path: Path) -> None:
    """Ids and action types that are addresses, images, Markdown or HTML are shown as text: nothing is fetched."""
    kafka = served.kafka.model_copy(update={"topic": "dashboard-hostile", "group_id": "dashboard-hostile"})
    hostile = served.model_copy(update={"data_dir": tmp_path / "hostile", "kafka": kafka})
    send(hostile, [record for n, name in enumerate(HOSTILE) for record in _named(name, n)])
    drain_all(hostile)
    policy = tmp_path / "policy.toml"
    policy.write_text(_POLICY, encoding="utf-8")
    refresh_warehouse(
        hostile.model_copy(update={"reputation": hostile.reputation.model_copy(update={"policy": str(policy)})})
    )
    with _dashboard(hostile, tmp_path) as address:
        page.goto(f"{address}&section=leaderboard")
        _heading(page, "All time")
        expect(page.get_by_text("<b>1</b>")).to_be_visible()
        for name in HOSTILE:
            expect(page.get_by_text(escape_text(name)).first).to_be_visible()
        for name in share(HOSTILE, 3):  # each loads the page, which takes seconds
            page.goto(f"{_bare(address)}?section=user&user={quote(name)}")
            _heading(page, "Explanation of the score")
            expect(page.locator("td").get_by_text(escape_text(name)[:100]).first).to_be_visible()
        assert page.locator("a[href*='evil'], img[src*='evil']").count() == 0
        assert page.title() != "owned"
        page.goto("about:blank")


def _named(name: str, n: int) -> list[Record]:
    row = {
        "event_id": f"{n}",
        "user_id": name,
        "action_type": name[:100],
        "event_time": NOON,
        "metadata": [(name[:100], name)],
    }
    rated = row | {"event_id": f"{n}-rated", "action_type": "DriverRated"}
    events = encode(pa.Table.from_pylist([row, rated], EVENT)).to_pylist()
    return [Record(name.encode(), value) for value in events]


def test_without_a_warehouse(page: Page, served: Settings, tmp_path: Path) -> None:
    """Without a warehouse the page says so, and what to do."""
    empty = served.model_copy(update={"data_dir": tmp_path / "nothing"})
    with _dashboard(empty, tmp_path) as address:
        page.goto(address)
        expect(page.get_by_text("there is no warehouse at")).to_be_visible(timeout=_MS)
        page.goto("about:blank")


def test_a_port_that_is_taken(address: str) -> None:
    """The error is one sentence."""
    port = str(urlsplit(address).port)
    done = run([*KARMALAKE, "dashboard", "--port", port])
    assert (done.returncode, "cannot listen" in done.stderr, "Traceback" in done.stderr) == (78, True, False)


def test_a_signal_as_soon_as_the_address_is_printed(settings: Settings, tmp_path: Path) -> None:
    """SIGTERM before the server handles signals ends the command as well."""
    with _dashboard(settings, tmp_path):
        pass
