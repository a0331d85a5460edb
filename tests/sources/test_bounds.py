"""A small file that expands to a large one: read in parts, or refused by a bound, in bounded memory either way."""

import gzip
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from pipelines.sources.bounds import MAX_COLUMNS, MAX_PARQUET_BYTES
from tests.conftest import REPOSITORY
from tests.sources.workbook import write_workbook

_MEBIBYTE = 1024 * 1024
_MAX_OWN_MEBIBYTES = 500
_MAX_BATCH_MEBIBYTES = 1_200
_POLL = """
import sys
from pathlib import Path
from pipelines.ingest.file import open_file
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
source = open_file(Path(sys.argv[1]), ColumnMapping("user", "time", "s", "A"), Settings())
rejected = 0
while batch := source.poll(lambda *_: rejected or None):
    rejected += len(batch.decoded.rejected)
print(rejected)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)
"""
_READ = """
import resource, sys
from pathlib import Path
from pipelines.sources.files import ColumnMapping, read_events
from pipelines.errors import UsageError
rows = 0
try:
    for table in read_events(Path(sys.argv[1]), ColumnMapping("user", "time", "s", "A")):
        rows += len(table)
    print(rows)
except UsageError as error:
    print(error)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)  # of this program alone: ru_maxrss begins with that of its parent
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def _read(path: Path) -> tuple[str, int, int]:
    """Return the error or number of rows of reading a file, and peak MiB of the process and of its worker."""
    command = [sys.executable, "-c", _READ, str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *output, own_mebibytes, worker_mebibytes = done.stdout.splitlines()
    return "\n".join(output), int(own_mebibytes), int(worker_mebibytes)


@pytest.fixture(scope="module")
def plain_mebibytes(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the memory of reading a file of one row: interpreter and libraries."""
    path = tmp_path_factory.mktemp("plain") / "a.csv"
    path.write_text("user,time\nu,1\n")
    output, own_mebibytes, _ = _read(path)
    assert output == "1"
    return own_mebibytes


def _compressed(path: Path, start: bytes, piece: bytes, count: int, end: bytes = b"") -> Path:
    """Write a start, a piece many times and an end, each a member of gzip."""
    repeated = gzip.compress(piece * (_MEBIBYTE // len(piece)), 1) * count
    path.write_bytes(gzip.compress(start) + repeated + gzip.compress(end))
    return path


def _endless_line(folder: Path) -> Path:
    return _compressed(folder / "a.ndjson.gz", b'{"user": "u", "time": 1, "x": "', b"0", 1_000)


def _endless_row(folder: Path) -> Path:
    return _compressed(folder / "a.csv.gz", b"user,time,x\nu,1,", b"0", 1_000)


def _endless_quote(folder: Path) -> Path:
    return _compressed(folder / "a.csv.gz", b'user,time,x\nu,1,"', b"u,1,2\n", 1_000)


def _blank_lines(folder: Path) -> Path:
    return _compressed(folder / "a.ndjson.gz", b"", b"\n", 20, b'{"user": "u", "time": 1}\n')


def _many_members(folder: Path) -> Path:
    path = folder / "a.ndjson"
    path.write_text("\n".join(json.dumps({"user": "u", "time": 1, f"column{n}": 1}) for n in range(20_000)))
    return path


def _members_within_the_bound(folder: Path) -> Path:
    path = folder / "a.ndjson"
    path.write_text("\n".join(json.dumps({"user": "u", "time": 1, f"c{n}": 1}) for n in range(1_000)))
    return path


def _long_names(folder: Path) -> Path:
    path = folder / "a.csv"
    path.write_text(
        "user,time," + ",".join(f"{n:04}{'x' * 1_000}" for n in range(4_000)) + "\n" + f"u,1{',1' * 4_000}\n" * 20
    )
    return path


def _deep_line(folder: Path) -> Path:
    path = folder / "a.ndjson"
    path.write_text('{"user": "u", "time": 1, "x": ' + "[" * 500_000)
    return path


def _wide_line(folder: Path) -> Path:
    path = folder / "a.ndjson"
    path.write_text('{"user": "u", "time": 1, "x": [' + "[]," * 1_300_000 + "[]]}")
    return path


def _parquet(folder: Path, **columns: pa.Array) -> Path:
    path = folder / "a.parquet"
    rows = len(next(iter(columns.values())))
    table = pa.table({"user": pa.repeat("u", rows), "time": pa.repeat(1, rows), **columns})
    pq.write_table(table, path, compression="zstd")
    return path


def _one_long_value_in_every_row(folder: Path) -> Path:
    values = pa.DictionaryArray.from_arrays(np.zeros(5_000, np.int32), ["0" * 40_000])
    return _parquet(folder, x=values)


def _one_long_value_in_plain_pages(folder: Path) -> Path:
    path = folder / "a.parquet"
    values = ["0" * 40_000] * 5_000
    table = pa.table({"user": pa.repeat("u", 5_000), "time": pa.repeat(1, 5_000), "x": values})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    return path


def _long_prefixes(folder: Path) -> Path:
    path = folder / "a.parquet"
    table = pa.table(
        {
            "user": pa.repeat("u", 2_000),
            "time": pa.repeat(1, 2_000),
            "x": ["0" * 100_000 + str(n) for n in range(2_000)],
        }
    )
    pq.write_table(
        table, path, use_dictionary=False, column_encoding={"x": "DELTA_BYTE_ARRAY", "user": "PLAIN", "time": "PLAIN"}
    )
    return path


def _long_value(folder: Path) -> Path:
    return _parquet(folder, x=pa.array(["0" * 100_000_000, "1"]))


def _long_list(folder: Path) -> Path:
    offsets = pa.array([0, 30_000_000, 30_000_000], pa.int32())
    return _parquet(folder, x=pa.ListArray.from_arrays(offsets, pa.array(np.zeros(30_000_000, np.int8))))


def _many_columns(folder: Path) -> Path:
    return _parquet(folder, **{f"c{n}": pa.array([1]) for n in range(10_000)})


def _long_values() -> pa.Table:
    return pa.table({"user": pa.repeat("u", 4_000), "time": pa.repeat(1, 4_000), "x": ["0" * 300_000] * 4_000})


def _compressed_arrow(folder: Path) -> Path:
    path, table = folder / "a.arrow", _long_values()
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return path


def _one_stripe_of_orc(folder: Path) -> Path:
    path = folder / "a.orc"
    pyarrow.orc.write_table(_long_values(), path, compression="zstd", stripe_size=2**31 - 1)
    return path


def _avro(folder: Path, kind: object, record: bytes) -> Path:
    """Write an Avro file of one record, whose field `x` has a type of its own."""
    path = folder / "a.avro"
    fields = [{"name": "user", "type": "string"}, {"name": "time", "type": "long"}, {"name": "x", "type": kind}]
    with path.open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "R", "fields": fields}, [])
    head = path.read_bytes()
    path.write_bytes(head + _number(1) + _number(len(record)) + record + head[-16:])
    return path


def _number(number: int) -> bytes:
    """Return a number as Avro writes one, at most 2^62."""
    rest, written = number << 1, b""
    while rest > 127:
        written, rest = written + bytes([rest & 127 | 128]), rest >> 7
    return written + bytes([rest])


def _two_billion_nulls_of_avro(folder: Path) -> Path:
    return _avro(folder, {"type": "array", "items": "null"}, b"\x02u\x02" + _number(2_000_000_000) + b"\x00")


def _deep_record_of_avro(folder: Path) -> Path:
    return _avro(folder, ["null", "R"], b"\x02u\x02\x02" * 200_000 + b"\x02u\x02\x00")


def _workbook(folder: Path, cells: bytes, times: int) -> Path:
    """Write a workbook whose sheet has some cells many times in its second row."""
    write_workbook(folder / "one.xlsx", [["user", "time"], ["u", 1]])
    path, quickly = folder / "a.xlsx", {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with zipfile.ZipFile(folder / "one.xlsx") as one, zipfile.ZipFile(path, "w", **quickly) as many:
        for name in one.namelist():
            head, end, rest = one.read(name).partition(b"</row></sheetData>")
            with many.open(name, "w") as member:
                member.write(head)
                for _ in range(times if end else 0):
                    member.write(cells)
                member.write(end + rest)
    return path


def _long_cell(folder: Path) -> Path:
    return _workbook(folder, b'<c t="inlineStr"><is><t>' + b"0" * 1_200_000_000 + b"</t></is></c>", 1)


def _many_rows_of_a_workbook(folder: Path) -> Path:
    return _workbook(folder, b'</row><row><c t="inlineStr"><is><t>u</t></is></c><c><v>1</v></c>' * 1_000, 15_000)


def _damaged(folder: Path) -> Path:
    path = _parquet(folder, x=pa.array([str(n) for n in range(10_000)]))
    content = bytearray(path.read_bytes())
    content[200:2_000] = bytes(1_800)
    path.write_bytes(content)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "outcome"),
    [
        (_endless_line, "line 1 is longer than 4 MiB"),
        (_endless_row, "is longer than 4 MiB, the limit for a row"),
        (_endless_quote, r"row 1 \(line 2\): is longer than 4 MiB, .*, or it has an unclosed quote"),
        (_blank_lines, "^1$"),
        (_many_members, f"up to row 4095, objects have 4,097 members; at most {MAX_COLUMNS:,} are read"),
        (_members_within_the_bound, "^1000$"),
        (_long_names, "^20$"),
        (_deep_line, "row 1 is nested over 100 levels deep: flatten it"),
        (_wide_line, "^1$"),
        (_one_long_value_in_every_row, "^5000$"),
        (_one_long_value_in_plain_pages, "^5000$"),
        (_long_prefixes, "^2000$|over 1024 MiB"),
        (_long_value, "row 1 is longer than 4 MiB"),
        (_long_list, "longer than 4 MiB|over 1024 MiB"),
        (_many_columns, f"has 10,002 columns; at most {MAX_COLUMNS:,} are read"),
        (_damaged, "a.parquet"),
        (_compressed_arrow, "over 1024 MiB"),
        (_one_stripe_of_orc, "over 1024 MiB"),
        (_two_billion_nulls_of_avro, "over 1024 MiB"),
        (_deep_record_of_avro, "its reader crashed"),
        (_long_cell, "over 1024 MiB"),
        (_many_rows_of_a_workbook, "over 1024 MiB"),
    ],
)
def test_memory_is_bounded(tmp_path: Path, plain_mebibytes: int, write: Callable[[Path], Path], outcome: str) -> None:
    """For any content: at most 500 MiB in the process, and the bound of the worker; the error names the bound."""
    found, own_mebibytes, worker_mebibytes = _read(write(tmp_path))
    assert re.search(outcome, found), found
    assert own_mebibytes - plain_mebibytes < _MAX_OWN_MEBIBYTES
    assert worker_mebibytes < MAX_PARQUET_BYTES // _MEBIBYTE + _MAX_OWN_MEBIBYTES


@pytest.mark.slow
def test_a_batch_of_dead_letters_takes_bounded_memory(tmp_path: Path, plain_mebibytes: int) -> None:
    """A file of 20 kB whose 20,000 users are 20,000 bytes long each: dead letters, a batch at a time."""
    path = tmp_path / "a.parquet"
    users = pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["u" * 20_000])
    pq.write_table(pa.table({"user": users, "time": pa.repeat(1, 20_000)}), path)
    command = [sys.executable, "-c", _POLL, str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rejected, mebibytes = map(int, done.stdout.split())
    assert rejected == 20_000
    assert mebibytes - plain_mebibytes < _MAX_BATCH_MEBIBYTES
