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
    host: Annotated[str, typer.Option(help="The address to listen at; the page comes over plain HTTP.")] = _LOCAL,
) -> None:
    """Serve a page to look at: trends, leaderboard, one user's story, health; read-only, until Ctrl-C.

    Open the address that it prints: the token in it lets a browser in, and no other page or user.
    Needs the extra `dashboard`: pip install 'karmalake[dashboard]'.
    """
    try:
        from pipelines.dashboard.serve import address_of, listen, new_token, serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'karmalake[dashboard]'") from None
    settings = current_settings().dashboard  # whatever is wrong with them is said here, not on the page
    token = settings.token.get_secret_value() if settings.token else new_token()
    listening = listen(host, port)
    say(f"dashboard at {address_of(host, listening, None if settings.token else token)}; Ctrl-C ends it")
    for number in (signal.SIGTERM, signal.SIGINT):  # the server ends by them, and then raises them again
        signal.signal(number, lambda _number, _frame: None)
    serve(listening, host, token, settings)
    say("ended")
    sys.stdout.flush()
    os._exit(0)  # sessions of who is still looking would keep the process, and hold nothing that is to be kept
