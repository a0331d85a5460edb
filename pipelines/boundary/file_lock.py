"""Advisory locks on files and folders: one holder at a time, released by the kernel when the holder ends.

They exclude processes of one machine, on file systems with `flock` (`fenced` covers other hosts).
"""

import fcntl
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import ConfigurationError

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.02
_SILENT_SECONDS = 0.3
"""A holder that is done this soon is not worth a message."""
_PID_BYTES = 20


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the exclusive lock on `path` until it is closed; None if it is taken.

    A missing file is created, with the permissions that the umask leaves. Raises ConfigurationError if the file system
    has no locks.
    """
    folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise ConfigurationError(f"{path} cannot be locked ({error}): keep data_dir on a disk with locks") from error
    if not folder:
        _write_pid(descriptor)
    return descriptor


@contextmanager
def exclusive_lock(path: Path, seconds: float = 60.0) -> Generator[int]:
    """Hold the exclusive lock on `path` and yield its descriptor; wait up to `seconds` for another holder.

    A warning names the holder when the wait begins. Raises TimeoutError with the pid of the holder after `seconds`.
    """
    began, has_warned = time.monotonic(), False
    while (descriptor := try_lock(path)) is None:
        waited = time.monotonic() - began
        if waited > seconds:
            raise TimeoutError(f"{holder_of(path)} has held {path} for more than {seconds:g} s")
        if waited > _SILENT_SECONDS and not has_warned:
            _LOG.warning("waiting for %s, which holds %s, for up to %g s", holder_of(path), path, seconds)
            has_warned = True
        time.sleep(_POLL_SECONDS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on `path`, without side effects; False where locks do not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _write_pid(descriptor: int) -> None:
    """Name the holder for messages; on a full disk the lock holds without it."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def holder_of(path: Path) -> str:
    """Return a name of the process that holds the lock on `path`: by its pid, which a folder does not tell."""
    pid = "" if path.is_dir() else path.read_text(encoding="ascii", errors="replace")[:_PID_BYTES]
    return f"process {pid}" if pid else "another process"
