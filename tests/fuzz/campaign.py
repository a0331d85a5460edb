"""The parent process of a fuzz campaign: forks a child for a target, watches it, and reports how it died.

Run as `python -m tests.fuzz.campaign SECONDS FOLDER SEED TARGET...`; prints a line of JSON for each target.
This process imports the targets but does not use them, so that a fork is cheap and safe: no library has threads yet.
"""

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.finding import Finding, corpus_of, is_new, last_stack, place_of, save, save_to_corpus, seeds_of
from tests.fuzz.target import Target
from tests.fuzz.targets import load
from tests.fuzz.worker import STACK_SIGNAL, Shared, Worker, shrink

_PREPARE_SECONDS = 240.0
"""A child may have to compile loops with bounds checks."""
_SHRINK_SECONDS = 8.0
_COMPILER = "/numba/core/"
_POLL_SECONDS = 0.1
_STACK_SECONDS = 10.0
"""A child writes its stack at once, unless it does not get a CPU."""
_SAMPLES = 10
_MAX_FINDINGS = 25
_RETRY_FACTOR = 3.0
_STARVED_FACTOR = 20.0
"""Multiples of the timeout of a target: for the second attempt, and by a clock while others use the CPUs."""


@dataclass(slots=True)
class Report:
    """The result of one target."""

    target: str
    inputs: int = 0
    kept: int = 0
    children: int = 0
    findings: list[str] = field(default_factory=list[str])
    """Signatures."""
    files: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Campaign:
    """The campaign of one target."""

    name: str
    target: Target
    folder: Path
    seeds: list[bytes]
    """Seeds that have not run yet."""
    seed: int = field(default_factory=time.time_ns)
    """The seed of the random numbers: the same one starts with the same inputs."""
    shared: Shared = field(default_factory=Shared)
    corpus: list[bytes] = field(default_factory=list[bytes])
    features: set[int] = field(default_factory=set[int])
    """The lines that the corpus reaches."""
    known: set[str] = field(default_factory=set[str])
    broken: bool = False
    """Whether the target rejects its own good input."""
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.name)

    def run(self, seconds: float) -> Report:
        """Run the seeds, then new inputs for `seconds`; a child that died is replaced."""
        self._run_children(time.monotonic())
        if seconds and not self.broken:
            self._run_children(time.monotonic() + seconds)
        self.report.inputs, self.report.kept = self.shared.tried, len(self.corpus)
        return self.report

    def _run_children(self, until: float) -> None:
        while self._run_child(until) and len(self.known) < _MAX_FINDINGS:
            pass

    def _run_child(self, until: float) -> bool:
        """Run one child until it ends; return whether time or seeds are left for another."""
        rng = random.Random(f"{self.seed}-{self.report.children}")
        with self._child() as child:
            if child.is_new:
                child.worker.run(self.seeds, self.corpus, self.known, rng, until)
            death = child.watch(self._on_message)
        self.report.children += 1
        if death is None:
            return False
        if death.kind == "broken":
            self._keep(death)
            self.broken = True
            return False
        seed = bool(self.seeds) and death.data == self.seeds[0]
        if seed:
            del self.seeds[0]
        self._record_death(death, shrinking=not seed)
        return bool(self.seeds) or time.monotonic() < until

    def _on_message(self, kind: str, content: Any) -> None:
        match kind:
            case "seed":
                self.corpus.append(self.seeds.pop(0))
            case "kept":
                self.corpus.append(content[0])
                self.features |= content[1]
                save_to_corpus(content[0], self.name, self.folder)
            case "finding":
                self._keep(content)
            case _:
                pass

    def _record_death(self, death: Finding, *, shrinking: bool) -> None:
        """Record how a child died. A hang is verified in a fresh child; other inputs are shrunk."""
        if not is_new(death.signature, self.known):
            return
        if death.kind == "hang":
            if self._is_slow(death.data):
                self._keep(death)
            return
        until = time.monotonic() + (_SHRINK_SECONDS if shrinking else 0)
        shortest = shrink(death.data, lambda data: self._dies(data, death.signature), until)
        self._keep(Finding(shortest, death.kind, death.signature, death.text))

    def _is_slow(self, data: bytes) -> bool:
        """Return whether the input also takes too long in a fresh child with all loops compiled."""
        with self._child() as child:
            if child.is_new:
                child.worker.run_twice(data)
            slow: list[Any] = []
            death = child.watch(lambda kind, _: slow.append(kind), _RETRY_FACTOR)
        return death is not None or "finding" in slow

    def _dies(self, data: bytes, signature: str) -> bool:
        """Return whether the input kills a fresh child in the same way."""
        with self._child() as child:
            if child.is_new:
                child.worker.run_one(data)
            death = child.watch(lambda _kind, _content: None)
        return death is not None and death.signature == signature

    def _keep(self, finding: Finding) -> None:
        self.known.add(finding.signature)
        self.report.findings.append(finding.signature)
        self.report.files.append(str(save(finding, self.name, self.folder)))

    @contextlib.contextmanager
    def _child(self) -> "Generator[_Child]":
        receiver, sender = Pipe(duplex=False)
        log = Path(tempfile.gettempdir()) / f"{self.name}.log"
        pid = os.fork()
        child = _Child(
            pid, self.target, self.shared, receiver, Worker(self.target, self.shared, sender, set(self.features)), log
        )
        if child.is_new:
            receiver.close()
            _redirect(log)
            with contextlib.suppress(BrokenPipeError):
                try:
                    yield child
                except BaseException as error:  # noqa: BLE001 - the end of this process
                    sender.send(("broken", repr(error)))
            os._exit(0)
        sender.close()
        try:
            yield child
        finally:
            child.kill()
            receiver.close()


@dataclass(slots=True)
class _Child:
    """A forked child as its parent sees it; in the child itself, the worker."""

    pid: int
    target: Target
    shared: Shared
    messages: Connection
    worker: Worker
    log: Path
    status: int | None = None
    _timed: float = field(default=0.0, init=False)
    _used_before: float = field(default=0.0, init=False)
    """The start of the input that runs, and the CPU time used before it; both from its first second on."""

    @property
    def is_new(self) -> bool:
        return self.pid == 0

    def watch(self, on_message: Callable[[str, Any], object], timeout_factor: float = 1.0) -> Finding | None:
        """Wait until the child ends; return how it died, None if it finished.

        An input may take `timeout_factor` times as long as the target allows.
        """
        if self.is_new:
            return None
        ready, started = False, time.monotonic()
        while True:
            if self.messages.poll(_POLL_SECONDS):
                try:
                    kind, content = self.messages.recv()
                except EOFError:
                    return self._death(ready=ready)
                if kind == "done":
                    return None
                if kind == "broken":
                    return Finding(b"", "broken", f"the target itself is broken: {content}", self._log_tail())
                ready = ready or kind == "ready"
                on_message(kind, content)
            if not ready and self._is_over(_PREPARE_SECONDS, time.monotonic() - started):
                return Finding(b"", "broken", "the good input has no outcome", self._log_tail())
            if ready and self._hangs(timeout_factor * self.target.seconds):
                return self._hang()

    def kill(self) -> None:
        """Kill the child if it is running."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)
        return self.status

    def _hang(self) -> Finding:
        data, log = self.shared.data, self._log_with_stack()
        return Finding(data, "hang", f"hang in {place_of(log)}", f"no outcome within {self.target.seconds:g} s\n{log}")

    def _death(self, *, ready: bool) -> Finding:
        code = os.waitstatus_to_exitcode(self._wait())
        log = self._log_tail()
        if not ready:
            return Finding(b"", "broken", f"the good input ends the process: {code}", log)
        kind = signal.Signals(-code).name if code < 0 else f"exit-{code}"
        return Finding(self.shared.data, kind, f"{kind} in {place_of(log)}", log)

    def _hangs(self, seconds: float) -> bool:
        """Return whether the current input takes more than `seconds`, the compiler's aside."""
        began = self.shared.began
        took = time.monotonic() - began if began else 0.0
        if took > 1 and began != self._timed:  # most inputs take less
            self._timed, self._used_before = began, _cpu_seconds(self.pid)
        is_over = self._is_over(seconds, took) and (took > _PREPARE_SECONDS or not self._is_compiling())
        return is_over and self.shared.began == began

    def _is_over(self, seconds: float, elapsed: float) -> bool:
        """Return whether what began `elapsed` seconds ago used more than `seconds` of CPU time, or sleeps after that.

        Elapsed time alone says nothing: others may use the CPUs. It ends what alternates between sleep and work.
        """
        if elapsed <= seconds:
            return False
        used_too_much = _cpu_seconds(self.pid) - self._used_before > seconds
        return used_too_much or elapsed > seconds * _STARVED_FACTOR or self._sleeps()

    def _sleeps(self) -> bool:
        """Return whether no process of the child is seen to run, or to wait for a CPU or a page, in a second."""
        for _ in range(_SAMPLES):
            if _is_runnable(self.pid):
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _is_compiling(self) -> bool:
        """Return whether the child is in the compiler now, which is not the fault of an input."""
        return _COMPILER in last_stack(self._log_with_stack())

    def _log_with_stack(self) -> str:
        """Ask the child for its stack; return the end of its log, where the child writes it."""
        before = size = self.log.stat().st_size
        os.kill(self.pid, STACK_SIGNAL)
        until = time.monotonic() + _STACK_SECONDS
        while time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            earlier, size = size, self.log.stat().st_size
            if size == earlier != before:
                break
        return self._log_tail()

    def _log_tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-20_000:]


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _is_runnable(pid: int) -> bool:
    """Return whether any process of a tree is running, runnable or waiting for a page."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(each.status() in {psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP} for each in _tree(pid))
    return False


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a tree, with that of its processes that have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return sum(sum(each.cpu_times()[:4]) for each in _tree(pid))
    return 0.0


def _redirect(log: Path) -> None:
    """Redirect the standard output and error of the child to its log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def _run(name: str, seconds: float, folder: Path, seed: int) -> Report:
    try:
        target = load(name)
    except Exception:  # noqa: BLE001 - a target that cannot be imported is a finding, and the others run
        return Report(name, findings=[traceback.format_exc()])
    seeds = seeds_of(name) + corpus_of(name, folder, random.Random(seed))
    return Campaign(name, target, folder, seeds, seed).run(seconds)


def main() -> None:
    """Run campaigns one after the other, and print the report of each."""
    seconds, folder, seed, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="karmalake-fuzz-") as scratch:
        tempfile.tempdir = scratch
        for name in names:
            report = _run(name, float(seconds), Path(folder), int(seed))
            sys.stdout.write(json.dumps(asdict(report)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
