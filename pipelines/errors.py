"""Everything karmalake raises on purpose, and how a process ends by it.

KarmalakeError                the message says what, where and what to do; a check failed, or nothing was found (exit 1)
+-- UsageError                a mistake in a command, a file or a call (exit 2)
+-- ConfigurationError        a setting is missing, unknown or contradicts another (exit 78)
+-- PolicyError               a policy file says something that cannot be meant; names file and line (exit 80)
+-- TransientError            a service did not answer; trying again may help (exit 75)
+-- RejectedError             too many records were rejected: the schema is wrong, not the record (exit 65)
+-- LostRecordsError          the broker no longer has records that no checkpoint has passed (exit 81)
+-- FencedError               another process has moved the checkpoint, or published something newer (exit 83)
+-- CommitUnknownError        a commit whose outcome could not be learned; reopening the lake tells (exit 84)
+-- CorruptionError           the lake contradicts itself; nothing was changed (exit 82)

Exit codes are those of sysexits.h where one of them means the same, and from 80 on otherwise. Codes and exit codes are
stable: supervisors are configured with them. docs/operations.md has a section for each code.
Which of them another try may cure is `may_pass`: long-lived loops go on after those, and end with the others.
"""

import errno
import re
from typing import ClassVar, NamedTuple

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


class Ending(NamedTuple):
    """How a command ends by an error."""

    code: str
    """What the message begins with, and what `karmalake errors` explains."""
    exit_code: int
    transient: bool
    """Whether another try may cure it without an operator."""


IO = Ending("KL-IO", 74, transient=True)
"""The machine could not read or write: a full disk."""
PERMISSION = Ending("KL-PERMISSION", 77, transient=False)
"""This user may not read or write a file."""
DEFECT = Ending("KL-DEFECT", 70, transient=True)
"""Anything that was not raised on purpose."""
INTERRUPTED = Ending("KL-INTERRUPTED", 130, transient=True)
"""Ctrl-C, with the exit code that shells give it."""
_DENIALS = {errno.EACCES, errno.EPERM, errno.EROFS}


def ending_of(error: BaseException) -> Ending:
    """Return how a command ends by an error."""
    match error:
        case KarmalakeError():
            return Ending(error.code, error.exit_code, error.transient)
        case KeyboardInterrupt():
            return INTERRUPTED
        case OSError():
            return PERMISSION if error.errno in _DENIALS else IO
        case _:
            return DEFECT


def endings() -> list[Ending]:
    """Return every way in which a command ends by an error, by exit code."""
    kinds = [KarmalakeError, *KarmalakeError.__subclasses__()]
    ours = [Ending(kind.code, kind.exit_code, kind.transient) for kind in kinds]
    return sorted([*ours, IO, PERMISSION, DEFECT, INTERRUPTED], key=lambda ending: ending.exit_code)


def help_on(code: str) -> str:
    """Return the command that explains an error code, wherever karmalake is installed."""
    return f"karmalake errors {code}"


class KarmalakeError(Exception):
    """Base of the tree: every message is written for the person who has to act on it."""

    code: ClassVar[str] = "KL-FAILED"
    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False
    """Whether another try may cure it without an operator."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the sentence, without the way to it."""
        return [f"{type(self).__name__} {self.code}: {self}", f"see {help_on(self.code)}"]


class UsageError(KarmalakeError):
    """A mistake in a command, a file or a call."""

    code = "KL-USAGE"
    exit_code = 2


class ConfigurationError(KarmalakeError):
    """A setting is missing, unknown or contradicts another."""

    code = "KL-CONFIGURATION"
    exit_code = 78


class PolicyError(KarmalakeError):
    """A policy file says something that cannot be meant."""

    code = "KL-POLICY"
    exit_code = 80


class TransientError(KarmalakeError):
    """A service did not answer; trying again may help."""

    code = "KL-UNAVAILABLE"
    exit_code = 75
    transient = True


class RejectedError(KarmalakeError):
    """Too many records were rejected: the schema is wrong, not the record (`not-blocked`)."""

    code = "KL-REJECTED-RECORDS"
    exit_code = 65


class LostRecordsError(KarmalakeError):
    """The broker no longer has records that no checkpoint has passed (`nothing-lost`)."""

    code = "KL-LOST-RECORDS"
    exit_code = 81


class FencedError(KarmalakeError):
    """Another process has moved the checkpoint, or published something newer (`fenced`)."""

    code = "KL-FENCED"
    exit_code = 83


class CommitUnknownError(KarmalakeError):
    """A commit whose outcome could not be learned; reopening the lake tells."""

    code = "KL-COMMIT-UNKNOWN"
    exit_code = 84
    transient = True


class CorruptionError(KarmalakeError):
    """The lake contradicts itself; nothing was changed."""

    code = "KL-CORRUPTION"
    exit_code = 82


def may_pass(error: BaseException) -> bool:
    """Return whether another try, from a fresh start, may cure an error: what it asks did not answer, or is unknown.

    A fence, corrupt state, a setting, rejected or lost records and a bug stay what they are, however often it is tried.
    """
    if isinstance(error, KarmalakeError | OSError):
        return ending_of(error).transient
    return not {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}.isdisjoint(_PASSING)
