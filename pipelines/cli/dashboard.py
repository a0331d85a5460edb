"""The command dashboard: the page for those who would rather look."""

import os
import signal
import sys
from typing import Annotated

import typer

from pipelines.cli.options import current_settings
from pipelines.cli.output import say
from pipelines.errors import ConfigurationError

_LOCAL = "127.0.0.1"


def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen; 0 takes a free port.")] = 2718,
    host: Annotated[str, typer.Option(help="The address to listen at; there is no password.")] = _LOCAL,
) -> None:
    """Serve a page to look at: trends, leaderboard, one user's story, health; read-only, until Ctrl-C.

    Needs the extra `dashboard`: pip install 'karmalake[dashboard]'.
    """
    try:
        from pipelines.dashboard.serve import listen, serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'karmalake[dashboard]'") from None
    current_settings()  # whatever is wrong with them is said here, not on the page
    listening = listen(host, port)
    say(f"dashboard at http://{host}:{listening.getsockname()[1]}/; Ctrl-C ends it")
    for number in (signal.SIGTERM, signal.SIGINT):  # the server ends by them, and then raises them again
        signal.signal(number, lambda _number, _frame: None)
    serve(listening)
    say("ended")
    sys.stdout.flush()
    os._exit(0)  # sessions of who is still looking would keep the process, and hold nothing that is to be kept
