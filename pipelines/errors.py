"""The exception tree of karmalake, with the error code and the exit code of each class.

KarmalakeError                the message says what, where and what to do; a check failed, or nothing was found (exit 1)
+-- UsageError                a mistake in a command, a file or a call (exit 2)
+-- ConfigurationError        a setting is missing, unknown or contradicts another (exit 78)
+-- PolicyError               a policy file is invalid; names file and line (exit 80)
+-- TransientError            a service did not answer; a retry may succeed (exit 75)
+-- RejectedError             too many records were rejected: the schema is wrong, not the record (exit 65)
+-- LostRecordsError          the broker deleted records beyond the checkpoint (exit 81)
+-- FencedError               another process moved the checkpoint, or published a newer state (exit 83)
+-- CommitUnknownError        the outcome of a commit is unknown until the lake is reopened (exit 84)
+-- CorruptionError           the lake is inconsistent; nothing was changed (exit 82)
+-- NewerFormatError          a newer release wrote the data; nothing was changed (exit 85)

Exit codes follow sysexits.h where it defines a matching code, and start at 80 otherwise. Error codes and exit codes
are stable: supervisors are configured with them. docs/operations.md has a section for each code.
`is_transient` decides which errors are retried: long-lived loops continue after those, and end with the others.
`is_termination` decides which exceptions no code may suppress, whatever else it tolerates.
"""

import errno
import re
from typing import ClassVar, NamedTuple

_MAX_CHARACTERS = 500
_ANSI_COLORS = re.compile("\x1b\\[[0-9;]*m")
_TRANSIENT_LIBRARY_ERRORS = {
    "_internal.DeltaError",
    "_duckdb.IOException",
    "_duckdb.FatalException",
    "_duckdb.TransactionException",
}
"""Library errors for a store or disk that did not answer, as qualified names: not every process imports the library.

A fatal error is one of the disk, for all connections to the file; one of a transaction, of the disk or of another
transaction: a full disk is "Failed to commit: Could not write file".
"""
_SQLITE_OUTAGES = {5, 6, 10, 13, 14}
"""SQLite's result codes for a file in use, one that cannot be read, written or opened, and a full disk."""
_SQLITE_PERMISSIONS = {3, 8}
"""Those for a file that this user may not open, or not write."""
SQLITE_DAMAGES = {11, 26}
"""Those for a file that is damaged, or is no database."""
_ERROR_OF_A_FILE_SYSTEM = re.compile(r"^Traceback .*^OSError: (?P<message>[^\n]*)", re.DOTALL | re.MULTILINE)
"""An error of the object store inside DuckDB, which keeps only the text of the exception of its Python file system."""
_RUST_PANIC_MODULE = "pyo3_runtime"
"""Every extension written in Rust has a PanicException of its own there; it is not a subclass of Exception."""
_NO_PERMISSION = re.compile("Permission denied|Read-only file system|Operation not permitted")
"""How a library quotes the error of the system for a missing permission."""
_NETWORK_ERRORS = {"ssl.SSLError", "socket.gaierror", "socket.herror"}
"""Errors that are OSErrors whose numbers are not those of files: 1 would be a missing permission."""
_PERMISSION_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS}


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, without ANSI colors, truncated."""
    text = _ANSI_COLORS.sub("", str(error)).replace("\u21b3", "")
    of_a_file_system = _ERROR_OF_A_FILE_SYSTEM.search(text)
    return truncate(" ".join((of_a_file_system["message"] if of_a_file_system else text).split()))


def truncate(text: str) -> str:
    """Return at most 500 characters of a text from outside: a server may quote any amount of input."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


class ExitStatus(NamedTuple):
    """The error code and the exit code of a command that failed."""

    code: str
    """The prefix of the message, and the argument of `karmalake errors`."""
    exit_code: int
    transient: bool
    """Whether a retry may succeed without an operator."""


IO = ExitStatus("KL-IO", 74, transient=True)
"""An I/O error of the machine, such as a full disk."""
PERMISSION = ExitStatus("KL-PERMISSION", 77, transient=False)
"""This user has no permission to read or write a file."""
DEFECT = ExitStatus("KL-DEFECT", 70, transient=True)
"""Any other exception: a bug."""
INTERRUPTED = ExitStatus("KL-INTERRUPTED", 130, transient=True)
"""Ctrl-C, with the exit code that shells use."""


def exit_status_of(error: BaseException) -> ExitStatus:
    """Return the exit status of a command that raised `error`."""
    match error:
        case KarmalakeError():
            return ExitStatus(error.code, error.exit_code, error.transient)
        case KeyboardInterrupt():
            return INTERRUPTED
        case OSError() if is_network_error(error):
            return ExitStatus(TransientError.code, TransientError.exit_code, TransientError.transient)
        case OSError():
            return PERMISSION if _is_denied(error) else IO
        case _ if sqlite_code(error) in _SQLITE_PERMISSIONS:
            return PERMISSION
        case _ if _is_library_outage(error):
            return PERMISSION if _is_denied(error) else IO
        case _:
            return DEFECT


def exit_statuses() -> list[ExitStatus]:
    """Return all exit statuses of failed commands, sorted by exit code."""
    classes = [KarmalakeError, *KarmalakeError.__subclasses__()]
    ours = [ExitStatus(error.code, error.exit_code, error.transient) for error in classes]
    return sorted([*ours, IO, PERMISSION, DEFECT, INTERRUPTED], key=lambda status: status.exit_code)


def explain_command(code: str) -> str:
    """Return the command that explains an error code."""
    return f"karmalake errors {code}"


class KarmalakeError(Exception):
    """Base of the tree: every message tells the operator what happened, where, and what to do."""

    code: ClassVar[str] = "KL-FAILED"
    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False
    """Whether a retry may succeed without an operator."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message without the traceback."""
        return [f"{type(self).__name__} {self.code}: {self}", f"see {explain_command(self.code)}"]


class UsageError(KarmalakeError):
    """A mistake in a command, a file or a call."""

    code = "KL-USAGE"
    exit_code = 2


class ConfigurationError(KarmalakeError):
    """A setting is missing, unknown or contradicts another."""

    code = "KL-CONFIGURATION"
    exit_code = 78


class PolicyError(KarmalakeError):
    """A policy file is invalid; the message names file and line."""

    code = "KL-POLICY"
    exit_code = 80


class TransientError(KarmalakeError):
    """A service did not answer; a retry may succeed."""

    code = "KL-UNAVAILABLE"
    exit_code = 75
    transient = True


class RejectedError(KarmalakeError):
    """Too many records were rejected: the schema is wrong, not the record (`not-blocked`)."""

    code = "KL-REJECTED-RECORDS"
    exit_code = 65


class LostRecordsError(KarmalakeError):
    """The broker deleted records beyond the checkpoint (`nothing-lost`)."""

    code = "KL-LOST-RECORDS"
    exit_code = 81


class FencedError(KarmalakeError):
    """Another process moved the checkpoint, or published a newer state (`fenced`)."""

    code = "KL-FENCED"
    exit_code = 83


class CommitUnknownError(KarmalakeError):
    """The outcome of a commit is unknown until the lake is reopened."""

    code = "KL-COMMIT-UNKNOWN"
    exit_code = 84
    transient = True


class CorruptionError(KarmalakeError):
    """The lake is inconsistent; nothing was changed."""

    code = "KL-CORRUPTION"
    exit_code = 82


class NewerFormatError(KarmalakeError):
    """A newer release of karmalake wrote the data; nothing was changed (`formats.py`)."""

    code = "KL-NEWER-FORMAT"
    exit_code = 85


def is_transient(error: BaseException) -> bool:
    """Return whether a retry from a fresh start may succeed: a service did not answer, or an outcome is unknown.

    Fencing, corruption, wrong settings, rejected or lost records and bugs are permanent.
    """
    if isinstance(error, KarmalakeError | OSError):
        return exit_status_of(error).transient
    return exit_status_of(error) == IO


def is_network_error(error: BaseException) -> bool:
    """Return whether an error is one of TLS or of a host name: not of a file, although it is an OSError."""
    return not _qualified_names(error).isdisjoint(_NETWORK_ERRORS)


def _qualified_names(error: BaseException) -> set[str]:
    return {f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__}


def _is_library_outage(error: BaseException) -> bool:
    names = _qualified_names(error)
    if not names.isdisjoint(_TRANSIENT_LIBRARY_ERRORS) or sqlite_code(error) in _SQLITE_OUTAGES:
        return True
    return "_duckdb.Error" in names and _ERROR_OF_A_FILE_SYSTEM.search(str(error)) is not None


def _is_denied(error: BaseException) -> bool:
    """Return whether an error of a file is one of permissions: by its number, or its text if a library lost that."""
    number = getattr(error, "errno", None)
    return number in _PERMISSION_ERRNOS if number else _NO_PERMISSION.search(str(error)) is not None


def sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's primary result code; None for an error of something else."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def is_termination(error: BaseException) -> bool:
    """Return whether an exception asks the process to end: by Ctrl-C, an exit, an interrupt of Dagster.

    Code that tolerates every failure of a call raises these again. A panic of a Rust library is a failure of the call.
    """
    return not isinstance(error, Exception) and type(error).__module__ != _RUST_PANIC_MODULE
