"""What stands beside the commit is best effort: it may fail in any way, and ingest goes on (`isolated`)."""

import logging
from collections.abc import Callable
from typing import TypeVarTuple

from pipelines.errors import KarmalakeError

A = TypeVarTuple("A")
_LOG = logging.getLogger(__name__)


def best_effort(function: Callable[[*A], object], doing: str) -> Callable[[*A], None]:
    """Return a function that calls `function` and raises nothing that it raises.

    A failure is logged when it is the first one, or the first after a success: an error of ours by its sentence,
    another one with its traceback.
    """
    failures = 0

    def call(*arguments: *A) -> None:
        nonlocal failures
        try:
            function(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the commit is made, and a panic in Rust is none of Exception
            failures += 1
            if failures == 1:
                unforeseen = None if isinstance(error, KarmalakeError) else error
                _LOG.warning("%s: %s; ingest goes on without", doing, error, exc_info=unforeseen)
        else:
            failures = 0

    return call
