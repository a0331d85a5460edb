"""The commands dashboard and dagster: each serves a page, behind a token of its own."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from pipelines.boundary.extras import require_extra
from pipelines.cli.options import current_settings
from pipelines.cli.output import print_line
from pipelines.errors import UsageError
from pipelines.settings import PageSettings

_LOCAL = "127.0.0.1"
_Host = Annotated[str, typer.Option(help="The address to listen on; the page is served over plain HTTP.")]
_Port = Annotated[int, typer.Option(min=0, max=65_535, help="The port to listen on; 0 picks a free one.")]


def dashboard(port: _Port = 2718, host: _Host = _LOCAL) -> None:
    """Serve a read-only dashboard of trends, leaderboard, users and health, until Ctrl-C.

    Open the printed address: the token in it authorizes your browser, and no other page or user.
    Needs the extra `dashboard`: pip install 'karmalake[dashboard]'.
    """
    require_extra("dashboard", "the dashboard")
    from pipelines.dashboard.serve import serve  # noqa: PLC0415

    settings = current_settings().dashboard  # invalid settings are reported here, not on the page
    _serve("dashboard", host, port, settings, lambda listening, token: serve(listening, host, token, settings))


def dagster(
    port: _Port = 3000,
    host: _Host = _LOCAL,
    workspace: Annotated[
        Path | None,
        typer.Option(help="A workspace file of Dagster; our own assets if not given."),
    ] = None,
) -> None:
    """Serve Dagster's page behind a token, until Ctrl-C: runs, assets, schedules, of the instance in DAGSTER_HOME.

    Open the printed address: the token in it authorizes your browser, and no other page or user.
    Needs the extra `dagster`: pip install 'karmalake[dagster]'.
    """
    require_extra("dagster", "Dagster's page")
    if workspace is not None and not workspace.is_file():
        raise UsageError(f"--workspace {workspace}: there is no such file")
    serve = import_module("assets.page").serve  # by its name: nothing in `pipelines` depends on Dagster
    settings = current_settings().dagster
    _serve("Dagster", host, port, settings, lambda listening, token: serve(listening, host, token, settings, workspace))


def _serve(
    what: str, host: str, port: int, settings: PageSettings, serve: Callable[[socket.socket, str], None]
) -> None:
    """Print the address, and serve there until a signal."""
    from pipelines.pages.server import address_of, listen, new_token  # noqa: PLC0415

    token = settings.token.get_secret_value() if settings.token else new_token()
    listening = listen(host, port)
    for number in (signal.SIGTERM, signal.SIGINT):  # the server stops on these signals, then raises them again
        signal.signal(number, _end)
    with suppress(_EndedError):
        print_line(f"{what} at {address_of(host, listening, None if settings.token else token)}; Ctrl-C stops it")
        serve(listening, token)
    print_line("stopped")
    sys.stdout.flush()
    os._exit(0)  # open sessions would keep the process alive; they hold no data to save


class _EndedError(BaseException):
    """A signal ended the page, perhaps before its server handled signals."""


def _end(_number: int, _frame: object) -> None:
    raise _EndedError
