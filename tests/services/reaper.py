"""Kills the servers of a test process that ended without doing so itself (SIGKILL, `os._exit`, a crash).

Reads `+pid` and `-pid` lines; at the end of its input, which comes with the end of the test process, it kills the
process groups that are left. Run as a script, in a session of its own.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    left: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line.startswith("+"):
            left.add(pid)
        else:
            left.discard(pid)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
