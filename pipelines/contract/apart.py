"""Avro values decoded in a process of their own, one by one: for writers' schemas that may end or stall a decoder.

The process is started when it is first needed, kept between batches, replaced when it dies, and ends with its parent.
It answers each value before it decodes the next, so the value that it dies of is known. Limits: 1 GiB of memory; half a
second of the CPU for a value, a tenth once sixteen values of one call were lost, and a second more for each MiB; a
minute for a call, a millisecond more for each value and a second for each MiB, after which the rest is refused untried.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipelines.errors import TransientError

Row = list[Any]
"""What a value holds in the fields that were asked for."""

REFUSED = "is not an event by its writer's Avro schema:"
"""How what is wrong with a value begins, where the decoder says it."""

_SCRIPT = Path(__file__).with_name("avro_process.py")
_MIB = 1024 * 1024
_STALLED_SECONDS = 60.0
"""Of any clock: how long an answer may take at all, where the process neither works nor dies."""
_SCHEMA_CPU_SECONDS = 10.0
_VALUE_CPU_SECONDS, _SHORT_CPU_SECONDS, _PATIENT_FOR = 0.5, 0.1, 16
_SECONDS_A_MIB = 1.0
_CALL_SECONDS, _CALL_SECONDS_A_VALUE = 60.0, 0.001
_VALUES_A_REQUEST = 256
_OWN_DOING = {signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""Signals that the value at hand has brought about; any other death may be a stranger's doing."""


class _LostError(Exception):
    """The process died, or is stuck: what the value at hand did to it, if it is `certain` that it did."""

    def __init__(self, what: str, *, certain: bool) -> None:
        super().__init__(what)
        self.what, self.certain = what, certain


@dataclass(slots=True)
class _Process:
    """One process, ready for requests."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    answers: IO[bytes]
    owner: int = field(default_factory=os.getpid)
    schema: str | None = None

    def ask(self, schema: str, names: list[str], values: list[bytes], cpu_seconds: float) -> Iterator[Row | str]:
        """Yield for each value its row or what is wrong with it.

        Raises _LostError when the process dies, ValueError for a schema that cannot be read.
        """
        unknown = schema != self.schema
        limits = [cpu_seconds + _SECONDS_A_MIB * len(value) / _MIB for value in values]
        header = {
            "schema": schema if unknown else None,
            "names": names,
            "sizes": list(map(len, values)),
            "cpu_seconds": [_SCHEMA_CPU_SECONDS, *limits] if unknown else limits,
        }
        self._send(json.dumps(header).encode() + b"\n" + b"".join(values))
        if unknown:
            self.schema = None
            answer = self._answer()
            if "error" in answer:
                raise ValueError(f"it cannot be read ({answer['error']})")
            self.schema = schema
        for _ in values:
            answer = self._answer()
            yield f"{REFUSED} {answer['error']}" if "error" in answer else answer["row"]

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.answers.close()
        self.connection.close()

    def wait_until_ready(self) -> None:
        """Raise _LostError if the process does not start."""
        self._answer()

    def _send(self, request: bytes) -> None:
        try:
            self.connection.sendall(request)
        except OSError:
            raise self._lost() from None

    def _answer(self) -> dict[str, Any]:
        try:
            line = self.answers.readline()
        except OSError:
            raise self._lost() from None
        if not line.endswith(b"\n"):
            raise self._lost()
        try:
            return json.loads(line)
        except ValueError:
            self.process.kill()
            raise self._lost() from None

    def _lost(self) -> _LostError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.poll()
        if code is None:
            return _LostError(f"stalls the process that decodes it for {_STALLED_SECONDS:.0f} s", certain=False)
        if code == -signal.SIGPROF:
            return _LostError("takes too much time to decode", certain=True)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _LostError(f"ends the process that decodes it ({how})", certain=-code in _OWN_DOING)


@dataclass(slots=True)
class _Call:
    """One call of `decode_apart`: what became of its values so far, and what it may still cost."""

    schema: str
    names: list[str]
    values: list[bytes]
    outcomes: list[Row | str] = field(default_factory=list[Row | str])
    lost: int = 0
    ends: float = 0

    def run(self) -> list[Row | str]:
        mib = sum(map(len, self.values)) / _MIB
        seconds = _CALL_SECONDS + _CALL_SECONDS_A_VALUE * len(self.values) + _SECONDS_A_MIB * mib
        self.ends = time.monotonic() + seconds
        while (at := len(self.outcomes)) < len(self.values):
            if time.monotonic() > self.ends:
                untried = (
                    f"is not tried: {self.lost} values of its schema before it ended or stalled the process that "
                    f"decodes them, and the {seconds:.0f} s for this batch are over; requeue it"
                )
                self.outcomes += [untried] * (len(self.values) - at)
            else:
                self._decode_some(at)
        return self.outcomes

    def _decode_some(self, at: int) -> None:
        """Decode a request's worth of values, up to and with the first one that the process is lost at."""
        try:
            for outcome in _process().ask(self.schema, self.names, self._request(at), self._patience()):
                self.outcomes.append(outcome)
        except _LostError as error:
            _stop()
            self.lost += 1
            value = self.values[len(self.outcomes)]
            self.outcomes.append(error.what if error.certain else self._once_more(value))

    def _once_more(self, value: bytes) -> Row | str:
        """Decode a value alone in a new process: something else may have ended the one before."""
        try:
            return next(_process().ask(self.schema, self.names, [value], self._patience()))
        except _LostError as error:
            _stop()
            return error.what

    def _request(self, at: int) -> list[bytes]:
        """Return the values of the next request: some, and of about a MiB."""
        size, end = 0, at
        while end < min(len(self.values), at + _VALUES_A_REQUEST) and size < _MIB:
            size, end = size + len(self.values[end]), end + 1
        return self.values[at:end]

    def _patience(self) -> float:
        return _VALUE_CPU_SECONDS if self.lost < _PATIENT_FOR else _SHORT_CPU_SECONDS


_LOCK = threading.Lock()
_running: list[_Process] = []
"""The process, once it is started."""


def decode_apart(schema: str, names: list[str], values: list[bytes]) -> list[Row | str]:
    """Return for each value its row, or what is wrong with it as the predicate of a sentence.

    Raises ValueError for a schema that cannot be read, TransientError when no process can be started. Whatever else
    interrupts a call (Ctrl-C in a notebook, say) ends the process: its answers would pass for those to the next call.
    """
    with _LOCK:
        try:
            return _Call(schema, names, values).run()
        except (ValueError, TransientError):
            raise
        except BaseException:
            _stop()
            raise


def check_apart(schema: str) -> None:
    """Raise ValueError for a schema that cannot be read, or that ends or stalls its reader."""
    with _LOCK:
        try:
            list(_process().ask(schema, [], [], 0))
        except _LostError as error:
            _stop()
            raise ValueError(f"it {error.what}") from None


def _process() -> _Process:
    if _running and _running[0].owner != os.getpid():
        _running.clear()  # of the process that this one was forked from
    if not _running:
        _running.append(_start())
    return _running[0]


def _start() -> _Process:
    ours, theirs = socket.socketpair()
    ours.settimeout(_STALLED_SECONDS)
    try:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-P", str(_SCRIPT)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        raise TransientError(f"the process that decodes Avro cannot be started: {error}") from None
    started = _Process(process, ours, ours.makefile("rb"))
    try:
        started.wait_until_ready()
    except _LostError as error:
        started.stop()
        raise TransientError(f"the process that decodes Avro does not start: it {error.what}") from None
    return started


def _stop() -> None:
    for process in _running:
        process.stop()
    _running.clear()


atexit.register(_stop)
