"""Where numba caches compiled functions for a user who can write neither beside the code nor to a home folder.

It is a private folder in the temporary one: numba would run whatever another user puts into it.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pipelines.contract as compiled_code

_VARIABLE = "NUMBA_CACHE_DIR"
_PRIVATE = stat.S_IFDIR | 0o700


def choose_numba_cache() -> None:
    """Set NUMBA_CACHE_DIR where numba would have no folder for its cache; call it before numba is imported."""
    beside = Path(compiled_code.__path__[0], "__pycache__")
    of_user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - no error without one
    if os.environ.get(_VARIABLE) or _can_hold(beside) or _can_hold(Path(of_user)):
        return
    folder = Path(tempfile.gettempdir(), f"karmalake-numba-{os.geteuid()}")
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    with suppress(OSError):
        found = folder.lstat()
        if (found.st_uid, found.st_mode & ~stat.S_ISGID) == (os.geteuid(), _PRIVATE):  # a folder inherits that bit
            os.environ[_VARIABLE] = str(folder)


def _can_hold(folder: Path) -> bool:
    """Return whether this user can write to a folder, or create it."""
    if not folder.is_absolute():  # that of a user without a home folder
        return False
    while not os.path.exists(folder):  # noqa: PTH110 - without an error where this user may not look
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
