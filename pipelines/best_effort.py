"""Best-effort work beside the commit, such as reports and metrics: its failures never stop the process (`isolated`)."""

import logging
from collections.abc import Callable
from typing import TypeVarTuple

from pipelines.errors import KarmalakeError, is_termination

A = TypeVarTuple("A")
_LOG = logging.getLogger(__name__)


def best_effort(function: Callable[[*A], object], action: str) -> Callable[[*A], None]:
    """Return a function that calls `function` and suppresses every exception that does not end the process.

    The first failure, and the first one after a success, is logged with `action`: a KarmalakeError by its message, any
    other exception with its traceback.
    """
    failures = 0

    def call(*arguments: *A) -> None:
        nonlocal failures
        try:
            function(*arguments)
        except BaseException as error:
            if is_termination(error):
                raise
            failures += 1
            if failures == 1:
                unexpected = None if isinstance(error, KarmalakeError) else error
                _LOG.warning("%s: %s; the process continues without it", action, error, exc_info=unexpected)
        else:
            failures = 0

    return call
