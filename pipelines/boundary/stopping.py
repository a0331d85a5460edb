"""How the loops of a long-lived process end together: a signal ends them, or an error of one of them."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


class Stopping(threading.Event):
    """Is set when the process is to end; the command line then gives it `seconds` (`cli/signals.py`).

    The default is half of what Docker allows before it kills. `karmalake notify` adds `notify.stop_seconds` (10 by
    default), and then needs longer than Docker's 10 s.
    """

    seconds = 5.0
    error: BaseException | None = None
    """The first error that ended a loop; what ends the other loops may take long, and may raise others."""


@contextmanager
def ending_all(
    stopping: threading.Event, unless: Callable[[BaseException], bool] = lambda _error: False
) -> Generator[None]:
    """Set `stopping` if the block raises an error; a `Stopping` also notes it, if it is the first one.

    Inside a context whose exit may take long, since it is noted before that; errors that are retried are excepted by
    `unless`.
    """
    try:
        yield
    except BaseException as error:
        if not unless(error):
            if isinstance(stopping, Stopping):
                stopping.error = stopping.error or error
            stopping.set()
        raise
