"""Kills process trees, also on behalf of a test process that ended without cleaning up.

As a script, in a session of its own, it reads `+pid` and `-pid` lines. Its input ends with the test process (by
SIGKILL, `os._exit` or a crash); it then kills the remaining process trees.
"""

import contextlib
import sys

import psutil


def suspend_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, frozen so that they fork no more; empty if it has ended.

    A process group is not enough: PostgreSQL's processes lead groups of their own, and a busy one outlives its parent.
    """
    tree: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [psutil.Process(pid)]
        while found:
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            tree += found
            found = [process for process in tree[0].children(recursive=True) if process not in tree]
    return tree


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants with SIGKILL."""
    for process in suspend_tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main() -> None:
    remaining: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line.startswith("+"):
            remaining.add(pid)
        else:
            remaining.discard(pid)
    for pid in remaining:
        kill_tree(pid)


if __name__ == "__main__":
    main()
