"""The dashboard's page in marimo's run mode, where visitors cannot run code; `page.py` says which requests reach it."""

import importlib
import logging
import shutil
import socket
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import marimo

from pipelines.dashboard.page import ErrorLines, PageMiddleware
from pipelines.pages import server
from pipelines.settings import PageSettings

_APP = Path(__file__).with_name("app.py")


def serve(listening: socket.socket, host: str, token: str, settings: PageSettings) -> None:
    """Serve the page to clients with the token until SIGTERM or Ctrl-C, then close the socket."""
    importlib.import_module("pipelines.dashboard.sections")  # preload, so that the first visitor does not wait
    errors = ErrorLines(sys.stderr)
    with redirect_stderr(errors), tempfile.TemporaryDirectory(prefix="karmalake-") as folder:
        app = shutil.copy(_APP, folder)  # the page shows its path, and importing it adds its folder to Python's
        page = PageMiddleware(marimo.create_asgi_app(quiet=True).with_app(path="", root=app).build())
        for handler in logging.getLogger("marimo").handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(errors)
        server.serve(page, listening, host, token, settings)
