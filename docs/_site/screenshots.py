"""`make screenshots`: run the demo in a temporary folder, and take screenshots of dashboard and Dagster.

Needs chromium and takes about two minutes. The simulated events are the same each time, on the last days before today.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import FloatRect, Page, ViewportSize, sync_playwright

_IMAGES = Path(__file__).parents[1] / "images"
_BIN = Path(sys.executable).parent
_SIZE: ViewportSize = {"width": 1200, "height": 800}
_USER: ViewportSize = {"width": 1200, "height": 1400}
_TALL: ViewportSize = {"width": 1400, "height": 1500}
_GRAPH: FloatRect = {"x": 580, "y": 325, "width": 775, "height": 880}
_SECONDS = 60_000
_STEPS = ("events", "dead_letters", "reputation", "trends", "reputation_cache")


def main() -> None:
    """Take all screenshots."""
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        environment = _environment(Path(folder))
        _run("karmalake", "demo", environment=environment)
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=_SIZE, color_scheme="light", reduced_motion="reduce")
            page.set_default_timeout(_SECONDS)
            _dashboard(page, environment)
            _run("dagster", "job", "execute", "-m", "assets.definitions", "-j", "refresh", environment=environment)
            _dagster(page, environment)
            browser.close()
        finally:
            _run("karmalake", "local", "stop", environment=environment)


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment without this machine's settings, with temporary folders."""
    (folder / "dagster").mkdir()
    (folder / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KARMALAKE_", "DAGSTER_"))}
    return environment | {"KARMALAKE_DATA_DIR": str(folder / "data"), "DAGSTER_HOME": str(folder / "dagster")}


def _run(program: str, *arguments: str, environment: dict[str, str]) -> None:
    done = subprocess.run([_BIN / program, *arguments], env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{program} {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@contextmanager
def _serving(*command: str, environment: dict[str, str]) -> Generator[str]:
    """Yield the address of a server that takes its port as the last argument."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(  # noqa: S603
        [_BIN / command[0], *command[1:], "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _open(page: Page, address: str) -> None:
    """Open the page as soon as the server answers."""
    for _ in range(120):
        try:
            urllib.request.urlopen(address, timeout=5).close()  # noqa: S310
            break
        except OSError:
            page.wait_for_timeout(500)
    page.goto(address)


def _dashboard(page: Page, environment: dict[str, str]) -> None:
    token = secrets.token_urlsafe()
    known = environment | {"KARMALAKE_DASHBOARD_TOKEN": token}
    with _serving("karmalake", "dashboard", environment=known) as address:
        _open(page, f"{address}/?token={token}")
        page.locator("canvas, svg.marks").nth(2).wait_for()
        _save(page, "dashboard-trends")
        page.set_viewport_size(_USER)  # down to the table of reasons
        page.goto(f"{address}/?section=user&user=driver-ada")
        page.get_by_role("heading", name="Explanation of the score", exact=True).wait_for()
        page.locator("canvas, svg.marks").first.wait_for()
        _save(page, "dashboard-user")


def _dagster(page: Page, environment: dict[str, str]) -> None:
    token = secrets.token_urlsafe()
    known = environment | {"KARMALAKE_DAGSTER_TOKEN": token}
    with _serving("karmalake", "dagster", environment=known) as address:
        _open(page, f"{address}/?token={token}")
        page.wait_for_url("**/overview/**")
        page.set_viewport_size(_TALL)
        page.goto(f"{address}/asset-groups")
        page.get_by_text("serving", exact=True).filter(visible=True).nth(1).wait_for()
        page.keyboard.press("Alt+KeyE")  # expands every group, and adds them to the URL
        page.wait_for_url("**expanded=*")
        page.reload()  # fits the graph into the view
        for name in _STEPS:
            page.get_by_text(name, exact=True).filter(visible=True).first.wait_for()
        _save(page, "dagster-assets", _GRAPH)


def _save(page: Page, name: str, clip: FloatRect | None = None) -> None:
    page.wait_for_timeout(1_500)  # charts fade in
    page.screenshot(path=_IMAGES / f"{name}.png", animations="disabled", clip=clip)
    print(f"{name}.png: {(_IMAGES / f'{name}.png').stat().st_size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
