"""Ends whole families of processes, also for a test process that ended without doing so itself.

As a script, in a session of its own, it reads `+pid` and `-pid` lines; at the end of its input, which comes with
the end of the test process (be it SIGKILL, `os._exit` or a crash), it kills the families that are left.
"""

import contextlib
import sys

import psutil


def suspended_family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, frozen so that they fork no more; empty if it has ended.

    A process group is not enough: PostgreSQL's processes lead groups of their own, and a busy one outlives its parent.
    """
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [psutil.Process(pid)]
        while found:
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            family += found
            found = [process for process in family[0].children(recursive=True) if process not in family]
    return family


def kill_family(pid: int) -> None:
    """End a process and its descendants with SIGKILL."""
    for process in suspended_family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main() -> None:
    left: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line.startswith("+"):
            left.add(pid)
        else:
            left.discard(pid)
    for pid in left:
        kill_family(pid)


if __name__ == "__main__":
    main()
