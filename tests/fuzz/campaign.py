"""The parent of a target's children: forks them, watches them, and tells what they died of.

Run as `python -m tests.fuzz.campaign SECONDS FOLDER TARGET...`: one target after the other; a line of JSON for each.
This process imports the targets and uses nothing, so that a fork is cheap and harmless: no library has threads yet.
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

from tests.fuzz.finding import Finding, is_new, last_stack, place_of, save, seeds_of
from tests.fuzz.target import Target
from tests.fuzz.targets import load
from tests.fuzz.worker import Shared, Worker, shrink

_PREPARE_SECONDS = 240.0
"""A child may compile loops with their bounds checked."""
_SHRINK_SECONDS = 8.0
_COMPILER = "/numba/core/"
_STRIDE_SECONDS = 0.1
_SAMPLES = 10
_MOST_FINDINGS = 25
_PATIENCE = 3.0
_STARVED_PATIENCE = 20.0
"""How many times as long an input may take while its processes wait for a CPU that others have."""


@dataclass(slots=True)
class Report:
    """What came of one target."""

    target: str
    inputs: int = 0
    kept: int = 0
    children: int = 0
    findings: list[str] = field(default_factory=list[str])
    """Signatures."""
    files: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Campaign:
    """One target under way."""

    name: str
    target: Target
    folder: Path
    seeds: list[bytes]
    """Those that are still to be run."""
    seed: int = field(default_factory=time.time_ns)
    """Of the random numbers: with the same one, inputs begin alike."""
    shared: Shared = field(default_factory=Shared)
    corpus: list[bytes] = field(default_factory=list[bytes])
    features: set[int] = field(default_factory=set[int])
    """What the corpus reaches."""
    known: set[str] = field(default_factory=set[str])
    broken: bool = False
    """Whether the target refuses its own good input."""
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.name)

    def run(self, seconds: float) -> Report:
        """Run the seeds, and then new inputs for so many seconds; a child that died is followed by another."""
        self._run_children(time.monotonic())
        if seconds and not self.broken:
            self._run_children(time.monotonic() + seconds)
        self.report.inputs, self.report.kept = self.shared.tried, len(self.corpus)
        return self.report

    def _run_children(self, until: float) -> None:
        while self._run_child(until) and len(self.known) < _MOST_FINDINGS:
            pass

    def _run_child(self, until: float) -> bool:
        """Run one child to its end; return whether there is time, or there are seeds, for another."""
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
        self._bury(death, shortening=not seed)
        return bool(self.seeds) or time.monotonic() < until

    def _on_message(self, kind: str, said: Any) -> None:
        match kind:
            case "seed":
                self.corpus.append(self.seeds.pop(0))
            case "kept":
                self.corpus.append(said[0])
                self.features |= said[1]
            case "finding":
                self._keep(said)
            case _:
                pass

    def _bury(self, death: Finding, *, shortening: bool) -> None:
        """Keep what a child died of; an input that harms only in company is not shortened."""
        if not is_new(death.signature, self.known):
            return
        if death.kind == "hang":
            if self._is_slow(death.data):
                self._keep(death)
            return
        until = time.monotonic() + (_SHRINK_SECONDS if shortening else 0)
        shortest = shrink(death.data, lambda data: self._dies(data, death.signature), until)
        self._keep(Finding(shortest, death.kind, death.signature, death.text))

    def _is_slow(self, data: bytes) -> bool:
        """Return whether the input takes too long in a fresh child too, with every loop that it needs compiled."""
        with self._child() as child:
            if child.is_new:
                child.worker.run_twice(data)
            slow: list[Any] = []
            death = child.watch(lambda kind, _: slow.append(kind), _PATIENCE)
        return death is not None or "finding" in slow

    def _dies(self, data: bytes, signature: str) -> bool:
        """Return whether a fresh child dies of the input in the same way."""
        with self._child() as child:
            if child.is_new:
                child.worker.run_one(data)
            death = child.watch(lambda _kind, _said: None)
        return death is not None and death.signature == signature

    def _keep(self, finding: Finding) -> None:
        self.known.add(finding.signature)
        self.report.findings.append(finding.signature)
        self.report.files.append(str(save(finding, self.name, self.folder)))

    @contextlib.contextmanager
    def _child(self) -> "Generator[_Child]":
        ours, theirs = Pipe(duplex=False)
        log = Path(tempfile.gettempdir()) / f"{self.name}.log"
        pid = os.fork()
        child = _Child(
            pid, self.target, self.shared, ours, Worker(self.target, self.shared, theirs, set(self.features)), log
        )
        if child.is_new:
            ours.close()
            _redirect(log)
            with contextlib.suppress(BrokenPipeError):
                try:
                    yield child
                except BaseException as error:  # noqa: BLE001 - the end of this process
                    theirs.send(("broken", repr(error)))
            os._exit(0)
        theirs.close()
        try:
            yield child
        finally:
            child.kill()
            ours.close()


@dataclass(slots=True)
class _Child:
    """A forked child, or, in itself, the worker."""

    pid: int
    target: Target
    shared: Shared
    messages: Connection
    worker: Worker
    log: Path
    status: int | None = None

    @property
    def is_new(self) -> bool:
        return self.pid == 0

    def watch(self, on_message: Callable[[str, Any], object], patience: float = 1.0) -> Finding | None:
        """Wait until the child ends; return what it died of, None if it ended by itself.

        An input may take `patience` times as long as the target allows.
        """
        if self.is_new:
            return None
        ready, started = False, time.monotonic()
        while True:
            if self.messages.poll(_STRIDE_SECONDS):
                try:
                    kind, said = self.messages.recv()
                except EOFError:
                    return self._death(ready=ready)
                if kind == "done":
                    return None
                if kind == "broken":
                    return Finding(b"", "broken", f"the target itself is broken: {said}", self._words())
                ready = ready or kind == "ready"
                on_message(kind, said)
            began = self.shared.began
            if not ready and time.monotonic() - started > _PREPARE_SECONDS:
                return Finding(b"", "broken", "the good input has no outcome", self._words())
            took = time.monotonic() - began if ready and began else 0.0
            if took > patience * self.target.seconds and (took > _PREPARE_SECONDS or not self._is_compiling()):
                limit = patience * self.target.seconds * _STARVED_PATIENCE
                if took > limit or (not self._is_starved() and self.shared.began == began):
                    return self._hang()

    def kill(self) -> None:
        """End the child, if it has not ended."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)
        return self.status

    def _hang(self) -> Finding:
        data, words = self.shared.data, self._words()
        return Finding(
            data, "hang", f"hang in {place_of(words)}", f"no outcome within {self.target.seconds:g} s\n{words}"
        )

    def _death(self, *, ready: bool) -> Finding:
        code = os.waitstatus_to_exitcode(self._wait())
        words = self._words()
        if not ready:
            return Finding(b"", "broken", f"the good input ends the process: {code}", words)
        kind = signal.Signals(-code).name if code < 0 else f"exit-{code}"
        return Finding(self.shared.data, kind, f"{kind} in {place_of(words)}", words)

    def _is_starved(self) -> bool:
        """Return whether a process of the child would work and hardly gets to: then the machine is slow, not the input.

        One that waits for anything else sleeps, and one that loops uses its CPU.
        """
        used, waiting = _cpu_seconds(self.pid), 0
        for _ in range(_SAMPLES):
            time.sleep(_STRIDE_SECONDS)
            waiting += _is_runnable(self.pid)
        return waiting > 0 and _cpu_seconds(self.pid) - used < _SAMPLES * _STRIDE_SECONDS / 2

    def _is_compiling(self) -> bool:
        """Return whether the child compiled a loop when it last said where it is: that is no fault of an input."""
        return _COMPILER in last_stack(self._words())

    def _words(self) -> str:
        return self.log.read_text("utf-8", "replace")[-20_000:]


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _is_runnable(pid: int) -> bool:
    """Return whether any process of a tree runs, or would if it had a CPU or its page."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(each.status() in {psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP} for each in _tree(pid))
    return False


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        return sum(sum(each.cpu_times()[:2]) for each in _tree(pid))
    return 0.0


def _redirect(log: Path) -> None:
    """Let everything that the child prints go to its log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def _run(name: str, seconds: float, folder: Path, seed: int) -> Report:
    try:
        target = load(name)
    except Exception:  # noqa: BLE001 - a target that cannot be imported is a finding, and the others run
        return Report(name, findings=[traceback.format_exc()])
    return Campaign(name, target, folder, seeds_of(name), seed).run(seconds)


def main() -> None:
    """Run campaigns one after the other, and print a report of each."""
    seconds, folder, seed, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="karmalake-fuzz-") as scratch:
        tempfile.tempdir = scratch
        for name in names:
            report = _run(name, float(seconds), Path(folder), int(seed))
            sys.stdout.write(json.dumps(asdict(report)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
