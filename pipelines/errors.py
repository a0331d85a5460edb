"""Everything karmalake raises on purpose.

KarmalakeError                the message says what, where and what to do; the CLI prints it and exits 1
+-- UsageError                a mistake in a command, a file or a call (exit 2)
+-- ConfigurationError        a setting is missing, unknown or contradicts another (exit 2)
+-- PolicyError               a policy file says something that cannot be meant; names file and line (exit 2)
+-- TransientError            a service did not answer; trying again may help
+-- RejectedError             too many records were rejected: the schema is wrong, not the record
+-- LostRecordsError          the broker no longer has records that no checkpoint has passed
+-- FencedError               somebody else has moved the checkpoint, or published something newer
+-- CommitUnknownError        a commit whose outcome could not be learned; reopening the lake tells
+-- CorruptionError           the lake contradicts itself; nothing was changed

Which of them another try may cure is `may_pass`: long-lived loops go on after those, and end with the others.
"""

import re

_MAX_CHARACTERS = 500
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_PASSING = {"_internal.DeltaError", "_duckdb.IOException"}
"""Errors of libraries that stand for a store or a disk that did not answer, by name: not every process loads them."""


def one_line(error: BaseException) -> str:
    """Return what another library's error says, without its colours and lines, and no more than a sentence takes."""
    return shortened(" ".join(_COLOURS.sub("", str(error)).replace("\u21b3", "").split()))


def shortened(said: str) -> str:
    """Return the beginning of what came from outside: a server may quote as much as it likes."""
    return said if len(said) <= _MAX_CHARACTERS else f"{said[:_MAX_CHARACTERS]}..."


class KarmalakeError(Exception):
    """Base of the tree: every message is written for the person who has to act on it."""

    exit_code = 1
    page = "docs/operations.md"
    """Where more is said about it."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the sentence, without the way to it."""
        return [f"{type(self).__name__}: {self}", f"see {self.page}"]


class UsageError(KarmalakeError):
    """A mistake in a command, a file or a call."""

    exit_code = 2
    page = "docs/cli.md"


class ConfigurationError(KarmalakeError):
    """A setting is missing, unknown or contradicts another."""

    exit_code = 2
    page = "docs/settings.md"


class PolicyError(KarmalakeError):
    """A policy file says something that cannot be meant."""

    exit_code = 2
    page = "pipelines/reputation/policies/README.md"


class TransientError(KarmalakeError):
    """A service did not answer; trying again may help."""

    page = "docs/operations.md"


class RejectedError(KarmalakeError):
    """Too many records were rejected: the schema is wrong, not the record (`not-blocked`)."""

    page = "docs/operations.md#records"


class LostRecordsError(KarmalakeError):
    """The broker no longer has records that no checkpoint has passed (`nothing-lost`)."""

    page = "docs/operations.md#the-bus"


class FencedError(KarmalakeError):
    """Somebody else has moved the checkpoint, or published something newer (`fenced`)."""

    page = "docs/operations.md#the-lake"


class CommitUnknownError(KarmalakeError):
    """A commit whose outcome could not be learned; reopening the lake tells."""

    page = "docs/operations.md#the-lake"


class CorruptionError(KarmalakeError):
    """The lake contradicts itself; nothing was changed."""

    page = "docs/operations.md#the-lake"


def may_pass(error: BaseException) -> bool:
    """Return whether another try, from a fresh start, may cure an error: what it asks did not answer, or is unknown.

    A fence, corrupt state, a setting, rejected or lost records and a bug stay what they are, however often it is tried.
    """
    if isinstance(error, KarmalakeError):
        return isinstance(error, TransientError | CommitUnknownError)
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return isinstance(error, OSError) or not kinds.isdisjoint(_PASSING)
