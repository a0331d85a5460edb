"""A process that has imported every slow library, and becomes the command that a test asks for.

Started by `tests/commands.py`. It forks itself for each request; the child takes over the standard streams, the folder
and the environment of the request, and goes on as the program of a new interpreter would: exit code, exit handlers and
signals are those of Python. The server has called nothing of what it has imported but one compiled loop, because
threads do not survive a fork. The process of the tests adopts the child, and waits for it as for any other.
"""

from pipelines.ingest.malloc import tune_malloc

tune_malloc()  # as the command does, before any other import

import atexit  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import runpy  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

LIMIT_BYTES = 150_000
"""Of a request, which is one packet of a socket."""
_IMPORTED = (
    *("pipelines.cli.app", "pipelines.stream", "pipelines.backfill", "pipelines.dlq", "pipelines.ingester"),
    *("pipelines.emit.relay", "pipelines.lake.upkeep", "pipelines.notify.run", "pipelines.operate.audit"),
    *("pipelines.operate.check", "pipelines.operate.dead_letters", "pipelines.operate.doctor"),
    *("pipelines.operate.erase", "pipelines.operate.verify", "pipelines.reputation.activation"),
    *("pipelines.simulate.simulator", "pyarrow.dataset", "pytest", "tests.crashes.compiled"),
)


def main() -> None:
    """Serve the requests of a socket until it is closed; in a child, run what was requested."""
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for the tests
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        request = _first_in_child(requests)
    if request is None:
        os._exit(0)
    _become(request)
    _exit(_status_of(lambda: _run(*request["arguments"])))


def _first_in_child(requests: socket.socket) -> dict[str, Any] | None:
    """Return the request in a child that was forked for it, and None in the server at its end."""
    while True:
        message, streams, _, _ = socket.recv_fds(requests, LIMIT_BYTES, 3)
        if not message:
            return None
        request = json.loads(message) | {"streams": streams}
        if (pid := _fork_orphan(session=request["session"])) == 0:
            return request
        for stream in streams:
            os.close(stream)
        requests.send(str(pid).encode())


def _fork_orphan(*, session: bool) -> int:
    """Return 0 in a child whose parent has ended, and the child's process id in the server once that is so."""
    reading, writing = os.pipe()
    if (parent := os.fork()) == 0:
        dying = os.getpid()
        if os.fork() != 0:
            os._exit(0)
        while os.getppid() == dying:
            time.sleep(0.001)
        if session:
            os.setsid()
        os.write(writing, str(os.getpid()).encode())
        os.close(reading)
        os.close(writing)
        return 0
    os.close(writing)
    os.waitpid(parent, 0)
    with open(reading, "rb") as answer:  # noqa: PTH123 - a file descriptor
        return int(answer.read())


def _become(request: dict[str, Any]) -> None:
    """Take over what the request gives: mask, folder, environment and streams."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _take_over(request["streams"])


def _run(option: str, program: str, *arguments: str) -> None:
    """Run `python -c CODE ...` or `python -m MODULE ...`."""
    sys.argv = [option, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        module = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), module.__dict__)  # noqa: S102 - the code is a test's


def _status_of(program: Callable[[], object]) -> int:
    """Run a program; return the exit code that Python would have."""
    try:
        program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)  # noqa: T201 - as Python does
        return 1
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _exit(status: int) -> NoReturn:
    """End as Python does, but do not free each object, which takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _take_over(streams: list[int]) -> None:
    """Make the three files the standard streams."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc] # noqa: SIM115
    buffering = 1 if os.environ.get("PYTHONUNBUFFERED") else -1
    sys.stdout = sys.__stdout__ = open(1, "w", buffering, closefd=False)  # type: ignore[misc] # noqa: SIM115
    errors = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = errors  # type: ignore[misc]


if __name__ == "__main__":
    main()
