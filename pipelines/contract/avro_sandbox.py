"""Decoding of Avro values in a sandbox process, one by one: for schemas that may crash or stall a decoder.

The process starts on first use, stays between batches, is replaced when it dies, and ends with its parent. It responds
to each value before it decodes the next one, so the value that kills it is known. Limits: 1 GiB of memory; 0.5 s of CPU
time for a value (0.1 s once 16 values of a call were lost) plus 1 s for each MiB; 60 s for a call plus 1 ms for each
value and 1 s for each MiB, after which the remaining values are rejected without decoding.
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
"""The values of the requested fields."""

DECODE_ERROR_PREFIX = "is not an event by its writer's Avro schema:"
"""The start of an error message that comes from the decoder."""

_SCRIPT = Path(__file__).with_name("avro_worker.py")
_MIB = 1024 * 1024
_STALLED_SECONDS = 60.0
"""Wall-clock time for a response, in case the process neither works nor dies."""
_SCHEMA_CPU_SECONDS = 10.0
_VALUE_CPU_SECONDS, _REDUCED_CPU_SECONDS, _LOST_BEFORE_REDUCED = 0.5, 0.1, 16
_SECONDS_PER_MIB = 1.0
_CALL_SECONDS, _CALL_SECONDS_PER_VALUE = 60.0, 0.001
_MAX_VALUES_PER_REQUEST = 256
_CAUSED_BY_VALUE = {signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""Signals that only the current value can cause; any other end of the process may have an external cause."""


class _LostError(Exception):
    """The process died or stalled; `certain` if the current value is the cause."""

    def __init__(self, description: str, *, certain: bool) -> None:
        super().__init__(description)
        self.description, self.certain = description, certain


@dataclass(slots=True)
class _Process:
    """A sandbox process, ready for requests."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    responses: IO[bytes]
    owner: int = field(default_factory=os.getpid)
    schema: str | None = None

    def decode(self, schema: str, names: list[str], values: list[bytes], cpu_seconds: float) -> Iterator[Row | str]:
        """Yield for each value its row, or the error as the predicate of a sentence.

        Raises _LostError if the process dies, ValueError for an invalid schema.
        """
        is_new = schema != self.schema
        limits = [cpu_seconds + _SECONDS_PER_MIB * len(value) / _MIB for value in values]
        header = {
            "schema": schema if is_new else None,
            "names": names,
            "sizes": list(map(len, values)),
            "cpu_seconds": [_SCHEMA_CPU_SECONDS, *limits] if is_new else limits,
        }
        self._send(json.dumps(header).encode() + b"\n" + b"".join(values))
        if is_new:
            self.schema = None
            response = self._receive()
            if "error" in response:
                raise ValueError(f"it cannot be read ({response['error']})")
            self.schema = schema
        for _ in values:
            response = self._receive()
            yield f"{DECODE_ERROR_PREFIX} {response['error']}" if "error" in response else response["row"]

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        self.responses.close()
        self.connection.close()

    def wait_until_ready(self) -> None:
        """Raise _LostError if the process does not start."""
        self._receive()

    def _send(self, request: bytes) -> None:
        try:
            self.connection.sendall(request)
        except OSError:
            raise self._lost() from None

    def _receive(self) -> dict[str, Any]:
        try:
            line = self.responses.readline()
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
            return _LostError(f"stalls the decoder process for {_STALLED_SECONDS:.0f} s", certain=False)
        if code == -signal.SIGPROF:
            return _LostError("exceeds the CPU time limit of the decoder", certain=True)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _LostError(f"terminates the decoder process ({how})", certain=-code in _CAUSED_BY_VALUE)


@dataclass(slots=True)
class _Call:
    """One call of `decode_sandboxed`: its outcomes so far, and its deadline."""

    schema: str
    names: list[str]
    values: list[bytes]
    outcomes: list[Row | str] = field(default_factory=list[Row | str])
    lost: int = 0
    deadline: float = 0

    def run(self) -> list[Row | str]:
        mib = sum(map(len, self.values)) / _MIB
        seconds = _CALL_SECONDS + _CALL_SECONDS_PER_VALUE * len(self.values) + _SECONDS_PER_MIB * mib
        self.deadline = time.monotonic() + seconds
        while (at := len(self.outcomes)) < len(self.values):
            if time.monotonic() > self.deadline:
                skipped = (
                    f"was not tried: {self.lost} earlier values of its schema ended or stalled the process that "
                    f"decodes them, and the {seconds:.0f} s for this batch are over; requeue it"
                )
                self.outcomes += [skipped] * (len(self.values) - at)
            else:
                self._decode_request(at)
        return self.outcomes

    def _decode_request(self, at: int) -> None:
        """Decode the values of one request, up to and including the first one that loses the process."""
        try:
            for outcome in _process().decode(self.schema, self.names, self._request(at), self._cpu_seconds()):
                self.outcomes.append(outcome)
        except _LostError as error:
            _stop()
            self.lost += 1
            value = self.values[len(self.outcomes)]
            self.outcomes.append(error.description if error.certain else self._retry(value))

    def _retry(self, value: bytes) -> Row | str:
        """Decode one value in a new process: the previous one may have ended for another reason."""
        try:
            return next(_process().decode(self.schema, self.names, [value], self._cpu_seconds()))
        except _LostError as error:
            _stop()
            return error.description

    def _request(self, at: int) -> list[bytes]:
        """Return the values of the next request: at most 256, of about 1 MiB."""
        size, end = 0, at
        while end < min(len(self.values), at + _MAX_VALUES_PER_REQUEST) and size < _MIB:
            size, end = size + len(self.values[end]), end + 1
        return self.values[at:end]

    def _cpu_seconds(self) -> float:
        return _VALUE_CPU_SECONDS if self.lost < _LOST_BEFORE_REDUCED else _REDUCED_CPU_SECONDS


_LOCK = threading.Lock()
_running: list[_Process] = []
"""The process, once it has started; at most one."""


def decode_sandboxed(schema: str, names: list[str], values: list[bytes]) -> list[Row | str]:
    """Decode Avro `values` by `schema` (JSON); return for each the values of the fields `names`, or the error.

    An error is the predicate of a sentence about the value. Raises ValueError for an invalid schema, TransientError if
    no process can be started. Any other exception, such as KeyboardInterrupt, ends the process: its pending responses
    would be read as those of the next call.
    """
    with _LOCK:
        try:
            return _Call(schema, names, values).run()
        except (ValueError, TransientError):
            raise
        except BaseException:
            _stop()
            raise


def check_schema_sandboxed(schema: str) -> None:
    """Raise ValueError for a schema that is invalid, or that crashes or stalls its parser."""
    with _LOCK:
        try:
            list(_process().decode(schema, [], [], 0))
        except _LostError as error:
            _stop()
            raise ValueError(f"it {error.description}") from None


def _process() -> _Process:
    if _running and _running[0].owner != os.getpid():
        _running.clear()  # it belongs to the process that this one was forked from
    if not _running:
        _running.append(_start())
    return _running[0]


def _start() -> _Process:
    parent_end, child_end = socket.socketpair()
    parent_end.settimeout(_STALLED_SECONDS)
    try:
        with child_end:
            process = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-P", str(_SCRIPT)],
                stdin=child_end.fileno(),
                stdout=child_end.fileno(),
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )
    except OSError as error:
        parent_end.close()
        raise TransientError(f"the Avro decoder process cannot be started: {error}") from None
    started = _Process(process, parent_end, parent_end.makefile("rb"))
    try:
        started.wait_until_ready()
    except _LostError as error:
        started.stop()
        raise TransientError(f"the Avro decoder process does not start: it {error.description}") from None
    return started


def _stop() -> None:
    for process in _running:
        process.stop()
    _running.clear()


atexit.register(_stop)
