"""A memory limit for a process, by a control group of Linux, where the machine permits one."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_V1, _V2 = "memory.limit_in_bytes", "memory.max"


@contextmanager
def memory_limit(limit: int) -> "Generator[Path | None]":
    """Yield a group whose processes may use `limit` bytes, pages of files included; None if not permitted."""
    folder = _ROOT / "memory" if (_ROOT / "memory").is_dir() else _ROOT
    group = folder / f"karmalake-bench-{os.getpid()}"
    try:
        group.mkdir()
        name = _V1 if (group / _V1).exists() else _V2
        (group / name).write_text(str(limit), encoding="ascii")
    except OSError:
        yield None
    else:
        yield group
    finally:
        if group.is_dir():
            group.rmdir()


def join(group: Path) -> None:
    """Move this process into a group. Pages that it has in memory stay with the group that it leaves."""
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
