"""The worker process of a source: it starts on first use, is replaced when a record ends it, and ends with its user.

A record that ends the process, or stalls it beyond its CPU time, is found by dividing its batch: it alone becomes a
dead letter. If that takes too long altogether, the records not yet tried are rejected, and can be requeued.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import IO

import pyarrow as pa

from pipelines.contract.rejection import Reason
from pipelines.errors import ConfigurationError, TransientError
from pipelines.mapping.mapper import RESULT, Mapped, MapperConfig
from pipelines.mapping.values import ANY, ValueSchema
from pipelines.mapping.worker import HEADER_BYTES, as_stream, frame, parse_header

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_MAX_ROWS, _MAX_BYTES, _PARTS = 65_536, 16 * 1024 * 1024, 16
"""Records of a request, and into how many parts one that ends the process is divided."""
_REFUSALS = {b"e": Reason.REFUSED_SELECT, b"u": Reason.UNMAPPABLE}
"""By the kind of an answer of the process."""
_STALLED_SECONDS = 300.0
"""Wall-clock time for a sign of life, in case the process neither works nor dies."""
_CALL_SECONDS = 120.0
"""How long records that end the process are looked for in a batch, after the first one."""


class _LostError(Exception):
    """The process died or stalled."""


@dataclass(slots=True)
class Sandbox:
    """One source's worker process. Not thread-safe."""

    config: MapperConfig
    place: str
    """The file of the source, for messages."""
    process: subprocess.Popen[bytes] | None = None
    schema: ValueSchema | None = None
    names: frozenset[str] = field(default_factory=frozenset[str])
    """The names that the SELECT uses, in small letters; `*` for all."""
    fields: list[str] = field(default_factory=list[str])
    """The fields of the value; of JSON none, since each value has its own."""
    fits: bool = False
    """Whether the SELECT was accepted for a schema."""
    give_up_at: float | None = None

    def prepare(self, schema: ValueSchema) -> None:
        """Check the SELECT over records of a schema. Raises ConfigurationError for one that is refused."""
        try:
            problem = self._use(schema)
        except _LostError as error:
            self.close()
            problem = Reason.REFUSED_SELECT, f"before any record, it {error}: write it, or its schema, in a simpler way"
        if problem:
            key = "select" if problem[0] is Reason.REFUSED_SELECT else "schema"
            raise ConfigurationError(f"{self.place}: {key}: {problem[1]}")

    def map(self, records: pa.Table, schema: ValueSchema) -> Mapped:
        """Return the events of records (RECORD columns with headers as maps), and why others have none."""
        self.give_up_at = None
        events: list[pa.Table] = [RESULT.empty_table()]
        errors: dict[int, tuple[Reason, str]] = {}
        rows = max(1, min(_MAX_ROWS, _MAX_BYTES * max(1, len(records)) // max(1, records.nbytes)))
        self._map(records, schema, 0, rows, events, errors)
        return Mapped(pa.concat_tables(events).combine_chunks(), errors)

    def _map(
        self,
        records: pa.Table,
        schema: ValueSchema,
        first: int,
        rows: int,
        events: list[pa.Table],
        errors: dict[int, tuple[Reason, str]],
    ) -> None:
        """Map records in parts of `rows`; `first` is the row of the first one."""
        for start in range(0, len(records), rows):
            part = records.slice(start, rows)
            try:
                found = self._ask(part, schema)
            except _LostError as error:
                self.close()
                if len(part) == 1:
                    errors[first + start] = (Reason.UNMAPPABLE, f"It {error}.")
                elif self._is_over():
                    errors |= dict.fromkeys(range(first + start, first + start + len(part)), _NOT_TRIED)
                else:
                    self._map(part, schema, first + start, -(-len(part) // _PARTS), events, errors)
                continue
            numbers = pa.array(found.events["row"].to_numpy() + (first + start))
            events.append(found.events.set_column(0, "row", numbers))
            errors |= {first + start + row: problem for row, problem in found.errors.items()}

    def _is_over(self) -> bool:
        now = time.monotonic()
        self.give_up_at = self.give_up_at or now + _CALL_SECONDS
        return now > self.give_up_at

    def _ask(self, part: pa.Table, schema: ValueSchema) -> Mapped:
        if problem := self._use(schema):
            return Mapped(RESULT.empty_table(), dict.fromkeys(range(len(part)), problem))
        process = self._started()
        self._send(process, b"m", as_stream(part))
        _, content = self._receive(process)
        table = pa.ipc.open_stream(content).read_all()
        errors = json.loads((table.schema.metadata or {}).get(b"errors", b"{}"))
        found = {int(row): (Reason(reason), text) for row, (reason, text) in errors.items()}
        return Mapped(table.replace_schema_metadata(None), found)

    def _use(self, schema: ValueSchema) -> tuple[Reason, str] | None:
        """Have the process use a schema; return why the SELECT over it, or the schema itself, is refused."""
        process = self._started()
        if schema == self.schema:
            return None
        self.schema = None
        self._send(process, b"s", schema.to_json().encode())
        kind, content = self._receive(process)
        if kind in _REFUSALS:
            return _REFUSALS[kind], content.decode()
        names, self.fields = json.loads(content)
        self.schema, self.names, self.fits = schema, self.names | frozenset(names), self.fits or schema != ANY
        return None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            self.process = _start()
            self.schema = None
            self._send(self.process, b"c", self.config.to_json().encode())
        return self.process

    def _send(self, process: subprocess.Popen[bytes], kind: bytes, content: bytes | pa.Buffer) -> None:
        assert process.stdin  # noqa: S101 - tells the type checker
        try:
            process.stdin.write(frame(kind, content))
            process.stdin.write(content)
            process.stdin.flush()
        except OSError:
            raise _lost(process) from None

    def _receive(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        assert process.stdout  # noqa: S101 - tells the type checker
        kind, content = b"p", b""
        while kind == b"p":
            timer = Timer(_STALLED_SECONDS, process.kill)
            timer.daemon = True
            timer.start()
            try:
                kind, content = _frame(process.stdout)
            except EOFError:
                raise _lost(process) from None
            finally:
                timer.cancel()
        return kind, content

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = self.schema = None


_NOT_TRIED_DETAIL = (
    f"It was not tried: other records of its batch ended the process that maps them for {_CALL_SECONDS:.0f} s. "
    "Requeue it."
)
_NOT_TRIED = (Reason.UNMAPPABLE, _NOT_TRIED_DETAIL)


def _frame(stream: IO[bytes]) -> tuple[bytes, bytes]:
    header = stream.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise EOFError
    kind, length = parse_header(header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return kind, content


def _lost(process: subprocess.Popen[bytes]) -> _LostError:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code == -signal.SIGPROF:
        return _LostError("exceeds the CPU time of a mapping")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _LostError(f"ends the process that maps records ({how}), for example because of the memory it needs")


def _start() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(filter(None, [_PACKAGE_PARENT, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.mapping.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise TransientError(f"the process that maps records cannot be started: {error}") from None
