"""Progress of slow calls in a notebook: what runs, for how long, and at the end how long it took.

Outside notebooks, and for the first two seconds, nothing is shown. DuckDB's own progress bar needs ipywidgets in a
notebook, and restarts with each of the many statements behind a score.
"""

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from uuid import uuid4

DELAY_SECONDS = 2.0
_UPDATE_SECONDS = 1.0
PROGRESS = {"karmalake": "progress"}
"""Metadata of a progress output, which tells it from a result."""


@contextmanager
def show_progress(task: str) -> Generator[None]:
    """Show in the running cell that `task` is under way, and for how long."""
    if not _in_notebook():
        yield
        return
    done = threading.Event()
    updater = threading.Thread(target=_update, args=(task, done), daemon=True)
    updater.start()
    try:
        yield
    finally:
        done.set()
        updater.join()


def _in_notebook() -> bool:
    """Return whether a notebook kernel runs this process; a shell in a terminal is not one."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython  # noqa: PLC0415 - not needed unless it is already imported

    return getattr(get_ipython(), "kernel", None) is not None


def _update(task: str, done: threading.Event) -> None:
    from IPython.core.display_functions import publish_display_data  # noqa: PLC0415 - marimo replaces `display`

    started = time.monotonic()
    place = {"display_id": uuid4().hex}
    if done.wait(DELAY_SECONDS):
        return
    publish_display_data(_describe(f"{task}: under way", started), PROGRESS, transient=place)
    while not done.wait(_UPDATE_SECONDS):
        publish_display_data(_describe(f"{task}: under way", started), PROGRESS, transient=place, update=True)
    publish_display_data(_describe(f"{task}: took", started), PROGRESS, transient=place, update=True)


def _describe(text: str, started: float) -> dict[str, str]:
    return {"text/plain": f"{text} {time.monotonic() - started:.0f} s"}
