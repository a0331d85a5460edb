"""The worker process of a source: it starts on first use, is replaced when a record ends it, and ends with its user.

A record that ends the process, or stalls it beyond its CPU time, is found by dividing its batch: it alone becomes a
dead letter. If that takes too long altogether, the records not yet tried are rejected, and can be requeued. Records of
all schemas of a batch share this time, and none is divided before each was tried together with its neighbours.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import IO

import pyarrow as pa

from pipelines.contract.rejection import Reason
from pipelines.errors import ConfigurationError, TransientError
from pipelines.mapping.mapper import NOT_TRIED, RESULT, Mapped, MapperConfig
from pipelines.mapping.values import ANY, ValueSchema
from pipelines.mapping.worker import HEADER_BYTES, as_stream, frame, parse_header

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_MAX_ROWS, _MAX_BYTES, _PARTS = 65_536, 16 * 1024 * 1024, 16
"""Records of a request, and into how many parts one that ends the process is divided."""
_REFUSALS = {b"e": Reason.REFUSED_SELECT, b"u": Reason.UNMAPPABLE}
"""By the kind of an answer of the process."""
_STALLED_SECONDS = 300.0
"""Wall-clock time for a sign of life, in case the process neither works nor dies."""
_BATCH_SECONDS = 120.0
"""How long records that end the process, or on which the SELECT fails, are looked for in a batch."""
_LOG = logging.getLogger(__name__)


class _LostError(Exception):
    """The process died or stalled."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Records of one schema that are tried together."""

    group: int
    """The number of their schema in the batch."""
    first: int
    """The row of the first one among the records of the schema."""
    records: pa.Table

    def divide(self, rows: int) -> Iterator["_Part"]:
        """Yield parts of `rows` records."""
        for start in range(0, len(self.records), rows):
            yield _Part(self.group, self.first + start, self.records.slice(start, rows))

    @property
    def rows(self) -> range:
        """The rows of the records."""
        return range(self.first, self.first + len(self.records))

    def place(self) -> str:
        """Return where the records are, for logs."""
        names = ["row"] if "row" in self.records.column_names else ["topic", "topic_partition", "offset"]
        ends = self.records.select(names).take(pa.array([0, len(self.records) - 1])).to_pylist()
        form = "row {row}" if names == ["row"] else "{topic}-{topic_partition}@{offset}"
        return " to ".join(dict.fromkeys(form.format(**end) for end in ends))


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
    seconds_left: float = 0.0
    """Of those for the records of a batch that make trouble."""

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

    def map(self, groups: Sequence[tuple[pa.Table, ValueSchema]]) -> list[Mapped]:
        """Return for the records of each schema of a batch their events, and why others have none.

        groups: RECORD columns with headers as maps, or rows of files.
        """
        self.seconds_left = _BATCH_SECONDS
        events: list[list[pa.Table]] = [[RESULT.empty_table()] for _ in groups]
        errors: list[dict[int, tuple[Reason, str]]] = [{} for _ in groups]
        parts = deque(part for number, (records, _) in enumerate(groups) for part in _requests(number, records))
        while parts and self.seconds_left > 0:
            part = parts.popleft()
            try:
                found = self._ask_in_time(part.records, groups[part.group][1])
            except _LostError as error:
                self.close()
                _LOG.warning("%s: a record of %s %s", self.place, part.place(), error)
                if len(part.records) > 1:
                    parts.extend(part.divide(-(-len(part.records) // _PARTS)))
                else:
                    errors[part.group][part.first] = (Reason.UNMAPPABLE, f"It {error}.")
                continue
            numbers = pa.array(found.events["row"].to_numpy() + part.first)
            events[part.group].append(found.events.set_column(0, "row", numbers))
            errors[part.group] |= {part.first + row: problem for row, problem in found.errors.items()}
        for part in parts:
            errors[part.group] |= dict.fromkeys(part.rows, NOT_TRIED)
        self._report(errors)
        return [Mapped(pa.concat_tables(e).combine_chunks(), p) for e, p in zip(events, errors, strict=True)]

    def _report(self, errors: list[dict[int, tuple[Reason, str]]]) -> None:
        if self.seconds_left <= 0:
            skipped = sum(problem == NOT_TRIED for found in errors for problem in found.values())
            _LOG.warning(
                "%s: records were looked for that end or stall the mapping of their batch, for %.0f s; the %s not yet "
                "tried are dead letters, to be requeued",
                self.place,
                _BATCH_SECONDS,
                f"{skipped:,}",
            )

    def _ask_in_time(self, records: pa.Table, schema: ValueSchema) -> Mapped:
        """Map records; the time that it takes counts if they make trouble, or earlier ones of the batch did."""
        started, is_trouble = time.monotonic(), True
        try:
            found = self._ask(records, schema)
            is_trouble = found.divided or self.seconds_left < _BATCH_SECONDS
        finally:
            if is_trouble:
                self.seconds_left -= time.monotonic() - started
        return found

    def _ask(self, part: pa.Table, schema: ValueSchema) -> Mapped:
        if problem := self._use(schema):
            return Mapped(RESULT.empty_table(), dict.fromkeys(range(len(part)), problem))
        process = self._started()
        self._send(process, b"m", as_stream(part.replace_schema_metadata({"seconds": str(self.seconds_left)})))
        _, content = self._receive(process)
        table = pa.ipc.open_stream(content).read_all()
        said = json.loads(table.schema.metadata[b"said"])
        errors = {int(row): (Reason(reason), text) for row, (reason, text) in said["errors"].items()}
        return Mapped(table.replace_schema_metadata(None), errors, said["divided"])

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


def _requests(group: int, records: pa.Table) -> Iterator[_Part]:
    rows = max(1, min(_MAX_ROWS, _MAX_BYTES * max(1, len(records)) // max(1, records.nbytes)))
    return _Part(group, 0, records).divide(rows)


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
