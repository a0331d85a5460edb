"""Delivery beside the work: a loop that brings what is in the lake to a topic, in a thread, best effort.

It is what the copies of dead letters (`dlq.py`) and the feed (`feed_relay.py`) share. A failure is logged, reported and
retried, and never stops or delays the process (`isolated`).
"""

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from pipelines.errors import KarmalakeError, TransientError, is_termination

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 10.0
"""How often to look for commits of other processes."""
_RETRY_SECONDS, _MAX_RETRY_SECONDS = 2.0, 60.0

OnOutage = Callable[[KarmalakeError | None], None]


class Closable(Protocol):
    """Anything with a connection to close."""

    def close(self) -> None:
        """Close the client."""
        ...


O = TypeVar("O", bound=Closable)  # noqa: E741


@contextmanager
def delivering(
    name: str, open_outbox: Callable[[], O], deliver: Callable[[O], None], doing: str, report_outage: OnOutage
) -> Generator[Callable[[], None]]:
    """Deliver in a thread until the block ends, and then a last time; yield the function to call after a commit.

    The thread looks for commits of other processes every 10 s. It ends with the block and not with the signal that
    ends the process: what the block commits after that signal is delivered too.

    open_outbox: called until it succeeds. deliver: delivers what is pending in it. doing: both, in messages.
    A failure is reported to `report_outage` and retried after 2 s, doubling up to 60 s; a success reports None.
    """
    committed, ended = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1, name) as pool:
        running = pool.submit(deliver_until, ended, committed, open_outbox, deliver, doing, report_outage)
        try:
            yield committed.set
        finally:
            ended.set()
            committed.set()
        running.result()


def deliver_until(
    ended: threading.Event,
    committed: threading.Event,
    open_outbox: Callable[[], O],
    deliver: Callable[[O], None],
    doing: str,
    report_outage: OnOutage,
) -> None:
    """Deliver whenever `committed` is set, until `ended` is set; set both to end it at once."""
    outbox: O | None = None
    delay, last = _RETRY_SECONDS, False
    while not last:
        last = ended.is_set()
        committed.clear()
        try:
            outbox = outbox or open_outbox()
            deliver(outbox)
        except BaseException as error:  # a Rust panic is not an Exception
            if is_termination(error):
                raise
            report_outage(_log_outage(error, doing, delay))
            ended.wait(delay)
            delay = min(2 * delay, _MAX_RETRY_SECONDS)
        else:
            report_outage(None)
            delay = _RETRY_SECONDS
            committed.wait(0 if last else _POLL_SECONDS)
    if outbox:
        outbox.close()


def _log_outage(error: BaseException, doing: str, delay: float) -> KarmalakeError:
    """Log an error of the loop, and return it as a KarmalakeError."""
    is_expected = isinstance(error, KarmalakeError)
    message = "%s: %s; nothing is lost from the lake, next attempt in %.0f s"
    _LOG.warning(message, doing, error, delay, exc_info=None if is_expected else error)
    return error if is_expected else TransientError(f"{doing} failed: {error!r}")
