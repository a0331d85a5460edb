"""The child process: runs inputs on a target one by one, until the time is up or an input kills it.

The current input is in memory shared with the parent, so it is known whatever kills the child. An input that reaches
new lines of our code, or a new outcome, is kept and mutated again: libraries in C and Rust are not instrumented, but
their error messages tell which of their paths was taken.
"""

import faulthandler
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.finding import Finding, is_new, shape
from tests.fuzz.mutation import MAX_BYTES
from tests.fuzz.target import Target, WrongError

_HEAD = struct.Struct("=dQQ")
_PACKAGE = "/pipelines/"
STACK_SIGNAL = signal.SIGUSR1
"""On it a child writes the stack of its main thread to its log, even if C code holds the interpreter.

The thread writes its own stack. `faulthandler.dump_traceback_later` reads it from another thread while it changes, and
such a read ended children with SIGSEGV.
"""
_SHRINK_SECONDS = 5.0
_MIB = 1024 * 1024
_POOL_BYTES = 32 * _MIB
_OWN_BYTES = 256 * _MIB
"""The memory of the harness itself in a child."""
_ROOM = 2
"""The child's address space is this many times the target's memory, so that the check of the peak comes first."""


class Shared:
    """The current input, its start time, and the number of inputs tried; `began` is 0 between two inputs."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD.size + MAX_BYTES)

    def begin(self, data: bytes) -> None:
        """Record the input that runs now."""
        self._memory[_HEAD.size : _HEAD.size + len(data)] = data
        self._write(time.monotonic(), len(data), self.tried)

    def end(self) -> None:
        """Count the input."""
        self._write(0.0, 0, self.tried + 1)

    def _write(self, began: float, size: int, tried: int) -> None:
        self._memory[: _HEAD.size] = _HEAD.pack(began, size, tried)

    @property
    def began(self) -> float:
        return self._head()[0]

    @property
    def tried(self) -> int:
        return self._head()[2]

    @property
    def data(self) -> bytes:
        return self._memory[_HEAD.size : _HEAD.size + self._head()[1]]

    def _head(self) -> tuple[float, int, int]:
        return _HEAD.unpack(self._memory[: _HEAD.size])


class Worker:
    """One child. Its output goes to a log that no other process writes.

    It sends to its parent ("ready", None), ("seed", None) after each seed, ("kept", (input, new features)), ("finding",
    Finding) and, at the end, ("done", None).
    """

    def __init__(self, target: Target, shared: Shared, parent: Connection, features: set[int]) -> None:
        self._target, self._shared, self._parent, self._features = target, shared, parent, features
        self._peak = 0

    def run_one(self, data: bytes) -> None:
        """Run one input, and report whether it is a finding."""
        self._prepare()
        finding = self._attempt(data)
        self._parent.send(("finding", finding) if finding else ("done", None))

    def run_twice(self, data: bytes) -> None:
        """Run an input once everything is loaded, and report whether it uses too much CPU time."""
        self._prepare()
        self._attempt(data)
        used = sum(os.times()[:4])
        self._attempt(data)
        slow = sum(os.times()[:4]) - used > self._target.seconds
        self._parent.send(("finding", None) if slow else ("done", None))
        if slow:
            self._parent.send(("done", None))

    def run(self, seeds: list[bytes], corpus: list[bytes], known: set[str], rng: random.Random, until: float) -> None:
        """Run the seeds, then generated and mutated inputs, until the time is up."""
        self._prepare()
        for data in seeds:
            self._judge(data, known, minimize=False)
            self._parent.send(("seed", None))
        pool = [*seeds, *corpus, self._target.good]
        room = _POOL_BYTES - sum(map(len, pool))
        while time.monotonic() < until:
            data = self._next(rng, pool)
            new = self._judge(data, known, minimize=True)
            if new and len(data) <= room:
                room -= len(data)
                pool.append(data)
                self._parent.send(("kept", (data, new)))
        self._parent.send(("done", None))

    def _next(self, rng: random.Random, pool: list[bytes]) -> bytes:
        match rng.randrange(4):
            case 0:
                return self._target.generate(rng)[:MAX_BYTES]
            case 1:
                generated = self._target.generate(rng)
                return self._target.mutate(rng, generated, rng.choice(pool))[:MAX_BYTES]
            case _:
                recent = pool[-64:] if rng.random() < 0.5 else pool
                return self._target.mutate(rng, rng.choice(recent), rng.choice(pool))[:MAX_BYTES]

    def _prepare(self) -> None:
        """Trigger lazy loading with the valid input; then set the limits."""
        faulthandler.enable(sys.stderr, all_threads=False)
        faulthandler.register(STACK_SIGNAL, sys.stderr, all_threads=False)
        self._target.check(self._target.good)
        self._peak = _peak_bytes()
        _limit_memory(_ROOM * self._target.megabytes * _MIB + _OWN_BYTES)
        self._parent.send(("ready", None))

    def _judge(self, data: bytes, known: set[str], *, minimize: bool) -> set[int]:
        """Run an input, report a new finding, and return the features that no earlier input reached."""
        before = set(self._features)
        finding = self._attempt(data)
        new = self._features - before
        if finding and is_new(finding.signature, known):
            known.add(finding.signature)
            self._parent.send(("finding", self._shrunk(finding) if minimize else finding))
        return new

    def _shrunk(self, finding: Finding) -> Finding:
        best = finding

        def fails(data: bytes) -> bool:
            nonlocal best
            found = self._attempt(data)
            if found is None or found.signature != finding.signature:
                return False
            best = found
            return True

        if finding.kind != "memory":
            shrink(finding.data, fails, time.monotonic() + _SHRINK_SECONDS)
        return best

    def _attempt(self, data: bytes) -> Finding | None:
        self._shared.begin(data)
        os.ftruncate(sys.stderr.fileno(), 0)
        sys.settrace(_tracer(self._features))
        try:
            outcome = self._target.check(data)
        except self._target.refusals as error:
            outcome = f"{type(error).__name__}: {shape(str(error))}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a Rust panic is not an Exception
            return _finding(data, error)
        finally:
            sys.settrace(None)
            self._shared.end()
        self._features.add(hash(outcome))
        return self._too_large(data)

    def _too_large(self, data: bytes) -> Finding | None:
        grown = (_peak_bytes() - self._peak) // _MIB
        if grown <= self._target.megabytes:
            return None
        self._peak = _peak_bytes()
        return Finding(
            data, "memory", "memory", f"the process grew by {grown} MiB; {self._target.megabytes} are allowed"
        )


def shrink(data: bytes, fails: Callable[[bytes], bool], until: float) -> bytes:
    """Return a shorter input that still fails: remove parts, large ones first, then simplify bytes."""
    size = max(1, len(data) // 2)
    while size:
        at = 0
        while at < len(data) and time.monotonic() < until:
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
        size = size // 2 if time.monotonic() < until else 0
    return data


def _finding(data: bytes, error: BaseException) -> Finding:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in frame.filename]
    place = f" in {frames[-1].filename.rpartition(_PACKAGE)[2]} {frames[-1].name}" if frames else ""
    kind = "wrong" if isinstance(error, WrongError) else "error"
    signature = f"{type(error).__name__}{place if kind == 'error' else ''}: {shape(str(error))}"
    return Finding(data, kind, signature, "".join(traceback.format_exception(error))[-4_000:])


def _tracer(features: set[int]) -> Callable[..., Any]:
    """Return a trace function that adds a number to `features` for each line of our code that runs."""

    def on_line(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            features.add(hash((frame.f_code.co_filename, frame.f_lineno)))
        return on_line

    def on_call(frame: FrameType, _event: str, _: object) -> Any:
        return on_line if _PACKAGE in frame.f_code.co_filename else None

    return on_call


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _limit_memory(additional_bytes: int) -> None:
    """Limit the address space of the process to its current size plus `more` bytes; Linux only."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        current_bytes = int(statm.read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (current_bytes + additional_bytes, current_bytes + additional_bytes))
