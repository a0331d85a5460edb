"""Progress of slow calls in a notebook: what runs, for how long, and at the end how long it took.

Outside notebooks, and for the first two seconds, nothing is shown. DuckDB's own progress bar needs ipywidgets in a
notebook, and restarts with each of the many statements behind a score.
"""

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

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
    from IPython.core.display_functions import display  # noqa: PLC0415 - marimo replaces IPython.display

    started = time.monotonic()
    if done.wait(DELAY_SECONDS):
        return
    handle = display(_describe(f"{task}: under way", started), raw=True, display_id=True, metadata=PROGRESS)
    while handle is not None and not done.wait(_UPDATE_SECONDS):
        handle.update(_describe(f"{task}: under way", started), raw=True, metadata=PROGRESS)
    if handle is not None:
        handle.update(_describe(f"{task}: took", started), raw=True, metadata=PROGRESS)


def _describe(text: str, started: float) -> dict[str, str]:
    return {"text/plain": f"{text} {time.monotonic() - started:.0f} s"}
