"""Avro values decoded in a process of their own, one by one: for writers' schemas that may end or stall a decoder.

The process is started when it is first needed, kept between batches, replaced when it dies or is late, and ends with
its parent. It answers each value before it reads the next, so the value that it dies of is known. Limits: 1 GiB of memory;
two seconds a value (and one more for each MiB), a quarter of a second once eight values of one call were lost; and a
total for a call, after which what is left is refused untried.
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
_START_SECONDS = 60.0
_SCHEMA_SECONDS = 10.0
_VALUE_SECONDS, _SHORT_SECONDS, _PATIENT_FOR = 2.0, 0.25, 8
_SECONDS_A_MIB = 1.0
_CALL_SECONDS, _CALL_SECONDS_A_VALUE = 30.0, 0.001
_VALUES_A_REQUEST = 256


class _LostError(Exception):
    """The process died, or was late; the message is what the value at hand did to it."""


@dataclass(slots=True)
class _Process:
    """One process, ready for requests."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    answers: IO[bytes]
    owner: int = field(default_factory=os.getpid)
    schema: str | None = None

    def ask(self, schema: str, names: list[str], values: list[bytes], seconds: float) -> Iterator[Row | str]:
        """Yield for each value its row or what is wrong with it.

        Raises _LostError when the process dies or a value takes longer, ValueError for a schema that cannot be read.
        """
        header = {"schema": None if schema == self.schema else schema, "names": names, "sizes": list(map(len, values))}
        self._send(json.dumps(header).encode() + b"\n", *values)
        if schema != self.schema:
            self.schema = None
            answer = self._answer(_SCHEMA_SECONDS)
            if "error" in answer:
                raise ValueError(f"it cannot be read ({answer['error']})")
            self.schema = schema
        for value in values:
            answer = self._answer(seconds + _SECONDS_A_MIB * len(value) / _MIB)
            yield f"{REFUSED} {answer['error']}" if "error" in answer else answer["row"]

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.answers.close()
        self.connection.close()

    def wait_until_ready(self) -> None:
        """Raise _LostError if the process does not start."""
        self._answer(_START_SECONDS)

    def _send(self, *parts: bytes) -> None:
        self.connection.settimeout(_SCHEMA_SECONDS + _SECONDS_A_MIB * sum(map(len, parts)) / _MIB)
        try:
            self.connection.sendall(b"".join(parts))
        except OSError as error:
            raise _LostError(self._end(error)) from None

    def _answer(self, seconds: float) -> dict[str, Any]:
        self.connection.settimeout(seconds)
        try:
            line = self.answers.readline()
        except OSError as error:
            raise _LostError(self._end(error, seconds)) from None
        if not line.endswith(b"\n"):
            raise _LostError(self._end(EOFError()))
        return json.loads(line)

    def _end(self, error: Exception, seconds: float = 0) -> str:
        if isinstance(error, TimeoutError):
            return f"takes over {seconds:.3g} s to decode"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.poll()
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"ends the process that decodes it ({how})"


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
            self.outcomes.append(self._once_more(self.values[len(self.outcomes)], str(error)))

    def _once_more(self, value: bytes, lost_by: str) -> Row | str:
        """Decode a value alone in a new process: what ended the old one may have been something else."""
        if self.lost > _PATIENT_FOR:
            return lost_by
        try:
            return next(_process().ask(self.schema, self.names, [value], self._patience()))
        except _LostError as error:
            _stop()
            return str(error)

    def _request(self, at: int) -> list[bytes]:
        """Return the values of the next request: some, and of about a MiB."""
        size, end = 0, at
        while end < min(len(self.values), at + _VALUES_A_REQUEST) and size < _MIB:
            size, end = size + len(self.values[end]), end + 1
        return self.values[at:end]

    def _patience(self) -> float:
        return _VALUE_SECONDS if self.lost <= _PATIENT_FOR else _SHORT_SECONDS


_LOCK = threading.Lock()
_running: list[_Process] = []
"""The process, once it is started."""


def decode_apart(schema: str, names: list[str], values: list[bytes]) -> list[Row | str]:
    """Return for each value its row, or what is wrong with it as the predicate of a sentence.

    Raises ValueError for a schema that cannot be read, TransientError when no process can be started.
    """
    with _LOCK:
        return _Call(schema, names, values).run()


def check_apart(schema: str) -> None:
    """Raise ValueError for a schema that cannot be read, or that ends or stalls its reader."""
    with _LOCK:
        try:
            list(_process().ask(schema, [], [], _VALUE_SECONDS))
        except _LostError as error:
            _stop()
            raise ValueError(f"it {error}") from None


def _process() -> _Process:
    if _running and _running[0].owner != os.getpid():
        _running.clear()  # of the process that this one was forked from
    if not _running:
        _running.append(_start())
    return _running[0]


def _start() -> _Process:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )
        started = _Process(process, ours, ours.makefile("rb"))
        started.wait_until_ready()
    except OSError as error:
        ours.close()
        raise TransientError(f"the process that decodes Avro cannot be started: {error}") from None
    except _LostError as error:
        started.stop()
        raise TransientError(f"the process that decodes Avro does not start: it {error}") from None
    return started


def _stop() -> None:
    for process in _running:
        process.stop()
    _running.clear()


atexit.register(_stop)
