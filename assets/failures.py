"""Failures that a person can act on: what happened, where it says more, and whether trying again may help."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import dagster as dg

from pipelines.errors import KarmalakeError, may_pass

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For what may pass by itself: a service that did not answer. Whatever else fails is not tried again."""


def actionable(compute: Callable[P, R]) -> Callable[P, R]:
    """Let an asset or check fail with the sentence of the error and the page about it, instead of a traceback."""

    @wraps(compute)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return compute(*args, **kwargs)
        except KarmalakeError as error:
            raise failure(error) from error

    return told


def failure(error: KarmalakeError) -> dg.Failure:
    """Return the failure that tells of an error; only a transient one may be tried again."""
    transient = may_pass(error)
    metadata = {
        "kind": type(error).__name__,
        "see": dg.MetadataValue.path(error.page),
        "trying_again": "may help" if transient else "does not help before this is mended",
    }
    return dg.Failure(str(error), metadata=metadata, allow_retries=transient)
