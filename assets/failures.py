"""Failures with an actionable message: what happened, where to read more, and whether a retry may help."""

import logging
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import dagster as dg

from pipelines.boundary.private_files import message_of
from pipelines.boundary.text import escape_lines
from pipelines.errors import DEFECT, KarmalakeError, exit_status_of, explain_command

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger(__name__)
RETRIES = dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Retries of transient errors, such as an unresponsive service; other failures are not retried."""


class Terminated(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """The run was terminated. Dagster applies the retry policy of a step to an interrupt, but not to a DagsterError."""


def explain_failures(compute: Callable[P, R]) -> Callable[P, R]:
    """Decorate an asset or check to fail with the message and code of an error instead of a traceback.

    Dagster would show the raw texts of an exception and of its causes, so they do not reach it: the traceback of a
    cause, or of an exception that is not of our tree, is logged, escaped. An interrupt ends the run: Dagster would
    start a step again that has a retry policy, and finish it.
    """

    @wraps(compute)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return compute(*args, **kwargs)
        except KarmalakeError as error:
            if error.__cause__ is not None:
                _log_traceback(error.__cause__)
            raise failure(error) from None
        except dg.DagsterExecutionInterruptedError as interrupt:
            raise Terminated from interrupt
        except (dg.DagsterError, dg.Failure, dg.RetryRequested):
            raise
        except Exception as error:  # noqa: BLE001 - any text is escaped
            if exit_status_of(error) != DEFECT:
                raise failure(error, message_of(error)) from None
            _log_traceback(error)
            raise failure(error, f"{type(error).__name__}: {error}") from None

    return wrapper


def failure(error: Exception, text: str | None = None) -> dg.Failure:
    """Return the Dagster failure for an error; only a transient one allows retries. `text` replaces its message.

    Dagster writes the text to its page and to the terminal, so control characters in it are escaped.
    """
    status = exit_status_of(error)
    metadata = {
        "kind": type(error).__name__,
        "code": status.code,
        "see": explain_command(status.code),
        "trying_again": "may help" if status.transient else "will not help until this is fixed",
    }
    return dg.Failure(escape_lines(text or str(error)), metadata=metadata, allow_retries=status.transient)


def _log_traceback(error: BaseException) -> None:
    _logger.error("%s", escape_lines("".join(traceback.format_exception(error))))
