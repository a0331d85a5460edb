"""What a notebook shows while something takes long: what it is, for how long, and afterwards how long it took.

Elsewhere, and for what takes less than two seconds, nothing is shown. DuckDB's own bar needs ipywidgets in a notebook,
and begins anew for each of the many statements that scores are made of.
"""

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

PATIENCE_SECONDS = 2.0
_TURN_SECONDS = 1.0
PROGRESS = {"karmalake": "progress"}
"""The metadata of what is shown: it is no answer, and is told by this from one."""


@contextmanager
def waiting(doing: str) -> Generator[None]:
    """Show that `doing` is under way, in the cell that waits for it."""
    if not _in_a_notebook():
        yield
        return
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(doing, done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _in_a_notebook() -> bool:
    """Tell whether a kernel runs this; a shell in a terminal is none."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython  # noqa: PLC0415 - where it is not imported, it is not needed

    return getattr(get_ipython(), "kernel", None) is not None


def _tell(doing: str, done: threading.Event) -> None:
    from IPython.display import display  # noqa: PLC0415

    begin = time.monotonic()
    if done.wait(PATIENCE_SECONDS):
        return
    handle = display(_said(f"{doing}: under way", begin), raw=True, display_id=True, metadata=PROGRESS)
    while handle is not None and not done.wait(_TURN_SECONDS):
        handle.update(_said(f"{doing}: under way", begin), raw=True, metadata=PROGRESS)
    if handle is not None:
        handle.update(_said(f"{doing}: took", begin), raw=True, metadata=PROGRESS)


def _said(words: str, begin: float) -> dict[str, str]:
    return {"text/plain": f"{words} {time.monotonic() - begin:.0f} s"}
