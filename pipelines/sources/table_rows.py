"""Decoding of Parquet, Arrow, ORC, Avro and Excel into rows of text, in a separate process (`table_worker.py`).

A Parquet file of a kilobyte may expand to gigabytes, and a damaged one may crash its reader; the process contains both.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from pipelines.errors import UsageError
from pipelines.sources.bounds import CHUNK_ROWS, MAX_PARQUET_BYTES, mebibytes

_WORKER = "pipelines.sources.table_worker"
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_HEADER_BYTES = 9


def read_table(
    path: Path, form: str, ids: Collection[str], names: Collection[str] = ()
) -> Iterator[tuple[int, pa.Table]]:
    """Yield chunks of rows with the number of their first row, from 1.

    `ids` are the columns that hold ids, `names` those that are mapped: the header of Excel is the row that has them.
    `form` is one of `options.FORMATS`. Columns are those of `rows.Rows`; one without a text form has its type
    in the field metadata. Raises UsageError for an invalid file and one that exceeds a limit of `bounds.py`.
    """
    if not path.exists():
        raise UsageError(f"{path}: No such file or directory")
    row = 1
    asked = {"path": str(path), "format": form, "chunk_rows": CHUNK_ROWS}
    with _worker({**asked, "ids": sorted(ids), "names": [*names]}) as frames:
        for kind, content in _frames(path, frames):
            if kind == b"r":
                raise UsageError(f"{path}: {content.decode(errors='replace')}")
            if kind == b"e":
                return
            table = pa.ipc.open_stream(content).read_all()
            yield row, table
            row += len(table)


@contextmanager
def _worker(request: dict[str, object]) -> Generator[IO[bytes]]:
    """Start a worker and yield its standard output; kill it at the end of the block."""
    paths = os.pathsep.join(filter(None, [_PACKAGE_PARENT, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
    worker = subprocess.Popen(  # noqa: S603 - this interpreter and a module of karmalake
        [sys.executable, "-P", "-m", _WORKER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with worker:
        assert worker.stdin  # noqa: S101 - tells the type checker
        assert worker.stdout  # noqa: S101
        worker.stdin.write(json.dumps(request).encode() + b"\n")
        worker.stdin.flush()
        try:
            yield worker.stdout
        finally:
            worker.kill()


def _frames(path: Path, stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    while len(header := stream.read(_HEADER_BYTES)) == _HEADER_BYTES:
        kind, length = struct.unpack(">cQ", header)
        content = stream.read(length)
        if len(content) < length:
            break
        yield kind, content
    raise UsageError(
        f"{path}: its reader crashed: the file is damaged, or a part of it needs over {mebibytes(MAX_PARQUET_BYTES)} "
        "or ten minutes; rewrite it in smaller parts (Parquet: row groups)"
    )
