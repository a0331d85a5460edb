"""The command dashboard: serves the dashboard page."""

import os
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from pipelines.boundary.extras import require_extra
from pipelines.cli.options import current_settings
from pipelines.cli.output import print_line

_LOCAL = "127.0.0.1"


def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port to listen on; 0 picks a free one.")] = 2718,
    host: Annotated[str, typer.Option(help="The address to listen on; the page is served over plain HTTP.")] = _LOCAL,
) -> None:
    """Serve a read-only dashboard of trends, leaderboard, users and health, until Ctrl-C.

    Open the printed address: the token in it authorizes your browser, and no other page or user.
    Needs the extra `dashboard`: pip install 'karmalake[dashboard]'.
    """
    require_extra("dashboard", "the dashboard")
    from pipelines.dashboard.serve import address_of, listen, new_token, serve  # noqa: PLC0415

    settings = current_settings().dashboard  # invalid settings are reported here, not on the page
    token = settings.token.get_secret_value() if settings.token else new_token()
    listening = listen(host, port)
    for number in (signal.SIGTERM, signal.SIGINT):  # the server stops on these signals, then raises them again
        signal.signal(number, _end)
    with suppress(_EndedError):
        print_line(f"dashboard at {address_of(host, listening, None if settings.token else token)}; Ctrl-C stops it")
        serve(listening, host, token, settings)
    print_line("stopped")
    sys.stdout.flush()
    os._exit(0)  # open sessions would keep the process alive; they hold no data to save


class _EndedError(BaseException):
    """A signal ended the dashboard, perhaps before its server handled signals."""


def _end(_number: int, _frame: object) -> None:
    raise _EndedError
