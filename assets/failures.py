"""Failures with an actionable message: what happened, where to read more, and whether a retry may help."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import dagster as dg

from pipelines.boundary.text import escape_lines
from pipelines.errors import KarmalakeError, explain_command

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Retries of transient errors, such as an unresponsive service; other failures are not retried."""


class Terminated(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """The run was terminated. Dagster applies the retry policy of a step to an interrupt, but not to a DagsterError."""


def explain_failures(compute: Callable[P, R]) -> Callable[P, R]:
    """Decorate an asset or check to fail with the message and code of an error instead of a traceback.

    An interrupt ends the run: Dagster would start a step again that has a retry policy, and finish it.
    """

    @wraps(compute)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return compute(*args, **kwargs)
        except KarmalakeError as error:
            raise failure(error) from None  # Dagster would show the raw texts of the error and of its causes
        except dg.DagsterExecutionInterruptedError as interrupt:
            raise Terminated from interrupt

    return wrapper


def failure(error: KarmalakeError, text: str | None = None) -> dg.Failure:
    """Return the Dagster failure for an error; only a transient one allows retries. `text` replaces its message.

    Dagster writes the text to its page and to the terminal, so control characters in it are escaped.
    """
    metadata = {
        "kind": type(error).__name__,
        "code": error.code,
        "see": explain_command(error.code),
        "trying_again": "may help" if error.transient else "will not help until this is fixed",
    }
    return dg.Failure(escape_lines(text or str(error)), metadata=metadata, allow_retries=error.transient)
