"""The worker process that decodes foreign records and runs a source's SELECT; `sandbox.py` starts it.

It may be killed by any value: its memory is limited, and a timer of CPU time, restarted before each run of the SELECT,
ends it with SIGPROF. Frames in both directions: 1 byte of kind, 8 bytes of length, the content.

Requests: `c` with the config, `s` with a schema, `m` with records as an Arrow stream, and in its metadata how many
seconds they may be divided. Answers: `k` with the names that the SELECT uses and the fields of the value, `e` with the
reason why the SELECT is refused, `u` with the reason why the schema is, `r` with the events as an Arrow stream and the
errors in its metadata, `p` as a sign of life.
"""

import json
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import duckdb
import pyarrow as pa

from pipelines.contract.times import read_times
from pipelines.mapping.json_values import exact_json
from pipelines.mapping.mapper import Mapped, Mapper, MapperConfig
from pipelines.mapping.row_wise import SelectError
from pipelines.mapping.values import ValueSchema

MEMORY_BYTES = 3 * 1024**3
_CPU_SECONDS, _CPU_SECONDS_PER_MIB = 4.0, 1.0
_MIB = 1024 * 1024
_HEADER = ">cQ"
HEADER_BYTES = struct.calcsize(_HEADER)


def frame(kind: bytes, content: bytes | pa.Buffer) -> bytes:
    """Return the header of a frame."""
    return struct.pack(_HEADER, kind, len(content))


def parse_header(header: bytes) -> tuple[bytes, int]:
    """Return kind and length of a frame."""
    return struct.unpack(_HEADER, header)


def as_stream(table: pa.Table) -> pa.Buffer:
    """Return a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def main() -> None:
    """Answer requests until standard input ends."""
    _limit_memory()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints does not reach the parent
    _compile_loops()
    config = _read()
    if not config:
        return
    schema = ValueSchema("json")

    def before_each(size: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS + _CPU_SECONDS_PER_MIB * size / _MIB)
        _answer(out, b"p", b"")

    mapper = Mapper(MapperConfig.from_json(config[1].decode()), before_each)
    while request := _read():
        kind, content = request
        before_each(len(content))
        if kind == b"s":
            schema = ValueSchema.from_json(content.decode())
            _prepare(out, mapper, schema)
        elif kind == b"m":
            try:
                records = pa.ipc.open_stream(content).read_all()
                mapped = mapper.map(records, schema, float(records.schema.metadata[b"seconds"]))
            except (duckdb.InternalException, duckdb.FatalException):
                os.abort()
            _answer(out, b"r", as_stream(_with_errors(mapped)))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _compile_loops() -> None:
    """Compile, or load, before CPU time is limited: without a cache that takes longer than any record may."""
    exact_json(pa.array([b"[1.0]"], pa.binary()))
    read_times(pa.array(["2026-01-31T12:00:00Z"]), "iso")


def _prepare(out: BinaryIO, mapper: Mapper, schema: ValueSchema) -> None:
    try:
        mapper.prepare(schema)
    except (SelectError, duckdb.Error) as error:
        _answer(out, b"e", str(error).encode())
    except ValueError as error:
        _answer(out, b"u", str(error).encode())
    else:
        _answer(out, b"k", json.dumps([sorted(mapper.names), mapper.fields]).encode())


def _with_errors(mapped: Mapped) -> pa.Table:
    errors = {row: [reason.value, text] for row, (reason, text) in mapped.errors.items()}
    return mapped.events.replace_schema_metadata({"said": json.dumps({"errors": errors, "divided": mapped.divided})})


def _limit_memory() -> None:
    pa.set_cpu_count(1)
    statm = Path("/proc/self/statm")
    now = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    with suppress(ValueError, OSError):  # a system may lack this limit, or have a lower hard limit
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read() -> tuple[bytes, bytes] | tuple[()]:
    header = sys.stdin.buffer.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return ()
    kind, length = parse_header(header)
    return kind, sys.stdin.buffer.read(length)


def _answer(out: BinaryIO, kind: bytes, content: bytes | pa.Buffer) -> None:
    out.write(frame(kind, content))
    out.write(content)
    out.flush()


if __name__ == "__main__":
    main()
