"""Cheap kills by SIGKILL: of a child at a given call of a given function, or of several children at some time.

Children are forked from a server process that has imported every library and called none: polars and deltalake do not
survive a fork once their threads run; those that imports start (of allocators) are not missed. So a kill has no
start-up cost, and a run can have hundreds.
"""

import importlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from tests.services.waiting import PATIENCE_SECONDS

_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(
    [
        "pytest",
        "pyarrow.dataset",
        "pipelines.operate.dead_letters",
        "pipelines.dlq",
        "pipelines.emit.relay",
        "pipelines.lake.upkeep",
        "pipelines.refresh",
        "tests.chaos.tasks",
        "tests.draining",
        "tests.crashes.compiled",
    ]
)
Task = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Moment:
    """Before or after the n-th call of a function such as `pipelines.lake.index:Runs.add`."""

    place: str
    when: Literal["before", "after"]
    call: int

    def __str__(self) -> str:
        return f"{self.when} {self.place.removeprefix('pipelines.')} {self.call}"


def moments(calls: Mapping[str, int]) -> Iterator[Moment]:
    """Yield the moments before and after the first calls of functions; `calls` has the number of calls by function."""
    for place, count in calls.items():
        for call in range(1, count + 1):
            yield Moment(place, "before", call)
            yield Moment(place, "after", call)


def kill(moment: Moment, log: Path, task: Task, *arguments: Any) -> None:
    """Run a task in a child that kills itself at the moment; fail with the child's output if the moment never comes."""
    with child(log, _run_until, moment, task, *arguments) as killed:
        killed.join(PATIENCE_SECONDS)
        assert killed.exitcode == -signal.SIGKILL, (
            f"{moment}: the child ended with {killed.exitcode}\n{log.read_text()}"
        )


def trace(
    tested: Sequence[Moment], state: Callable[..., str], log: Path, task: Task, *arguments: Any
) -> dict[Moment, str]:
    """Run a task to its end in a child; return the moments that came, each with the digest `state(*arguments)` then."""
    answer = log.with_suffix(".states")
    with child(log, _run_traced, answer, tested, state, task, *arguments) as traced:
        traced.join(PATIENCE_SECONDS)
        assert traced.exitcode == 0, f"the child ended with {traced.exitcode}\n{log.read_text()}"
    return {Moment(*moment): digest for *moment, digest in json.loads(answer.read_text("utf-8"))}


def kill_all_after(seconds: float, log: Path, tasks: Sequence[Task], *arguments: Any) -> int:
    """Run each task in a child, kill all after `seconds`, and return how many had not ended by then.

    Fails with the output of a child that ended with an error.
    """
    deadline, cut = time.monotonic() + seconds, 0
    with ExitStack() as children:
        running = [children.enter_context(child(log, task, *arguments)) for task in tasks]
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in running:
            process.kill()
        for process in running:
            process.join()
            cut += process.exitcode == -signal.SIGKILL
            assert process.exitcode in {0, -signal.SIGKILL}, log.read_text()
    return cut


@contextmanager
def child(log: Path, task: Task, *arguments: Any) -> Generator[BaseProcess]:
    """Yield a child that runs a task, with its output in the log; kill it on exit."""
    process = _SERVED.Process(target=_run, args=(log, task, arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _run(log: Path, task: Task, arguments: tuple[Any, ...]) -> None:
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(errors, stream)
    task(*arguments)


def _run_until(moment: Moment, task: Task, *arguments: Any) -> None:
    owner, name = find_function(moment.place)
    setattr(owner, name, _killing(getattr(owner, name), moment))
    task(*arguments)


def _run_traced(answer: Path, tested: Sequence[Moment], state: Callable[..., str], task: Task, *arguments: Any) -> None:
    found: list[tuple[str, str, int, str]] = []
    lock = threading.Lock()  # the calls may be in several threads

    def note(place: str, when: Literal["before", "after"], call: int) -> None:
        if Moment(place, when, call) in tested:
            with lock:
                found.append((place, when, call, state(*arguments)))

    for place in {moment.place for moment in tested}:
        owner, name = find_function(place)
        setattr(owner, name, _noting(getattr(owner, name), partial(note, place)))
    task(*arguments)
    answer.write_text(json.dumps(found), "utf-8")


def find_function(place: str) -> tuple[Any, str]:
    """Return the module or class of a function, and its attribute name."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name


def _noting(
    function: Callable[..., Any], note: Callable[[Literal["before", "after"], int], None]
) -> Callable[..., Any]:
    """Return a function that notes each call, before and after."""
    numbers = itertools.count(1)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        number = next(numbers)
        note("before", number)
        answer = function(*arguments, **named)
        note("after", number)
        return answer

    return wrapper


def _killing(function: Callable[..., Any], moment: Moment) -> Callable[..., Any]:
    """Return a function that kills the process at the moment, without cleanup."""
    calls: list[None] = []

    def wrapper(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        due = len(calls) == moment.call
        if due and moment.when == "before":
            _die()
        answer = function(*arguments, **named)
        if due and moment.when == "after":
            _die()
        return answer

    return wrapper


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
