"""Files of history, careless or hostile, in the formats that `backfill` reads, and read as it reads them.

A file in canonical form gives the rows of Python's own reader. Any other gives events and dead letters that add up to
its rows, or one error message.
"""

import csv
import gzip
import io
import json
import random
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from pyarrow import orc

from pipelines.errors import RejectedError, UsageError
from pipelines.ingest.file import open_file
from pipelines.settings import ContractSettings, Settings
from pipelines.sources.files import ColumnMapping
from pipelines.sources.rows import count_rows
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import Target, demand
from tests.sources.workbook import workbook, zipped

_MAPPING = ColumnMapping("user", "at", "iso", action_type_column="did", metadata=(("stars", "stars"),))
_COLUMNS = ("user", "at", "did", "stars")
_TIME = "2026-01-01T00:00:00Z"
_USERS = (
    "u-1",
    "a,b",
    'say "x"',
    "line\nbreak",
    "cr\rlf\r\n",
    " u ",
    "\u4e16",
    "",
    "=1+1",
    "\x00",
    "\ufeff",
    "1e5",
    "x" * 300,
)
_REFUSALS = (UsageError, RejectedError)
"""RejectedError if no row is an event: then the mapping is wrong."""
_CONTRACT = ContractSettings()
_MAX_AHEAD = timedelta(seconds=_CONTRACT.max_ahead_seconds)
"""Once: settings for each of 130,000 rows take longer than the file, and on a slow machine than the time allowed."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_DECOMPRESSED_BYTES = 8 * 1024 * 1024
Rows = list[dict[str, str]]


def _rows(rng: random.Random) -> Rows:
    times = (_TIME,) * 6 + ("", "never", "2026-02-30", "99999-01-01T00:00:00Z", "1999-01-01")
    return [
        {
            "user": rng.choice(_USERS),
            "at": rng.choice(times),
            "did": rng.choice(("Rated", "Rated", "")),
            "stars": str(n),
        }
        for n in range(rng.choice((1, 2, 5, 200)))
    ]


def _to_csv(rows: Rows) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def generate_csv(rng: random.Random) -> bytes:
    """Return canonical CSV, or CSV with a broken line, in another dialect, or compressed."""
    if rng.random() < 0.01:
        return gzip.compress(_to_csv([{"user": "u-1", "at": _TIME, "did": "Rated", "stars": "cr\r\nlf"}] * 130_000), 1)
    data = _to_csv(_rows(rng))
    if rng.random() < 0.4:
        lines = data.split(b"\n")
        odd = (
            b'"unclosed,x,y,z',
            b"one,too,many,cells,here",
            b"",
            b'"a"b,c,d,e',
            b"\xff\xfe,a,b,c",
            b"a;b;c;d",
            b"'a,b',c,d",
        )
        lines.insert(rng.randint(0, len(lines)), rng.choice(odd))
        data = b"\n".join(lines)
    if rng.random() < 0.1:
        data = data.replace(
            b"user,at", rng.choice((b"user,user,at", b",".join(b"c%d" % n for n in range(5_000)) + b",user,at"))
        )
    return _maybe_compressed(rng, data)


def _to_ndjson(rows: Rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def generate_ndjson(rng: random.Random) -> bytes:
    """Return canonical NDJSON, or NDJSON with other members, or compressed."""
    lines = _to_ndjson(_rows(rng)).splitlines(keepends=True)
    for _ in range(rng.choice((0, 0, 1, 3))):
        lines.insert(rng.randint(0, len(lines)), _odd_line(rng) + b"\n")
    return _maybe_compressed(rng, b"".join(lines))


def _odd_line(rng: random.Random) -> bytes:
    many = {f"c{rng.randrange(10**6)}": "" for _ in range(200)}
    values: list[Any] = [[], "text", 7, None, {"user": {"id": [1, None]}}, {"user": 1e400}, {"user": 10**400}, many]
    texts = (
        b"",
        b"{",
        b"[" * 5_000,
        b'{"user":' * 2_000,
        b'{"user":"\\ud800"}',
        b'{"a":1,"a":2}',
        b"\xff",
        b"{'user':1}",
    )
    return rng.choice((*texts, *(json.dumps(value).encode() for value in values)))


def _maybe_compressed(rng: random.Random, data: bytes) -> bytes:
    """Sometimes compress the data, and sometimes append a very long line, which compresses to little."""
    if rng.random() < 0.03:
        data += b"x" * rng.choice((10**6, 2 * 10**8))
    match rng.randrange(8) if len(data) < 10**6 else rng.choice((0, 1)):
        case 0:
            return gzip.compress(data, 1)
        case 1:
            return zstandard.compress(data, 1)
        case _:
            return data


def _table(rng: random.Random, count: int) -> pa.Table:
    """Return rows with columns of many types."""
    return pa.table(
        {
            "user": _user_column(rng, count),
            "at": _time_column(rng, count),
            "did": pa.repeat(pa.scalar("Rated"), count),
            "stars": rng.choice((pa.repeat(pa.scalar(5), count), pa.nulls(count))),
        }
    )


def generate_parquet(rng: random.Random) -> bytes:
    """Return a Parquet file with columns of many types; a large value that repeats takes little space."""
    table = _table(rng, rng.choice((0, *(1, 5, 100) * 5, 70_000)))
    out = io.BytesIO()
    codec = rng.choice(("none", "snappy", "gzip", "zstd"))
    pq.write_table(table, out, compression=codec, row_group_size=rng.choice((1_000, 10**6)))
    return out.getvalue()


def generate_arrow(rng: random.Random, write: Callable[[pa.Table, str | None], bytes]) -> bytes:
    """Return an Arrow or ORC file with columns of many types, or of text where the format lacks one of them."""
    table = _table(rng, rng.choice((0, 1, 5, 100, 1_000)))
    try:
        return write(table, rng.choice(("zstd", "lz4", None)))
    except (pa.ArrowException, NotImplementedError):
        return write(pa.Table.from_pylist(_rows(rng)), None)


def generate_container(rng: random.Random) -> bytes:
    """Return an Avro file of text."""
    fields = [{"name": name, "type": ["null", "string"]} for name in _COLUMNS]
    out = io.BytesIO()
    schema = {"type": "record", "name": "R", "fields": fields}
    fastavro.writer(out, schema, _rows(rng), codec=rng.choice(("null", "deflate")))
    return out.getvalue()


def generate_workbook(rng: random.Random) -> bytes:
    """Return a workbook of text."""
    return workbook([[*_COLUMNS], *([escape(cell) for cell in row.values()] for row in _rows(rng))])


def _to_arrow(table: pa.Table, codec: str | None) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return out.getvalue()


def _to_orc(table: pa.Table, codec: str | None) -> bytes:
    out = io.BytesIO()
    orc.write_table(table, out, compression=codec or "uncompressed")
    return out.getvalue()


def _mutate_workbook(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Mutate the archive, or more often a member in it, which stays a valid archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, zlib.error, ValueError, RuntimeError):
        return mutate_bytes(rng, data, other)
    if not members or rng.random() < 0.2:
        return mutate_bytes(rng, data, other)
    name = rng.choice([*members])
    return zipped(members | {name: mutate_bytes(rng, members[name], members[rng.choice([*members])])})


def _user_column(rng: random.Random, count: int) -> pa.Array:
    choices: list[Callable[[], pa.Array]] = [
        lambda: pa.array([rng.choice(_USERS) for _ in range(min(count, 100))] + ["u"] * max(0, count - 100)),
        lambda: pa.repeat(pa.scalar("x" * rng.choice((300, 20_000))), count),
        lambda: pa.repeat(pa.scalar(7.6561198e16), count),
        lambda: pa.repeat(pa.scalar(b"\xff\xfe"), count),
        lambda: pa.array([["u"]] * count, pa.list_(pa.string())),
        lambda: pa.repeat(pa.scalar({"id": "u"}), count),
        lambda: pa.repeat(pa.scalar(2**63, pa.uint64()), count),
        lambda: pa.repeat(pa.scalar(True), count),
        lambda: pa.nulls(count),
    ]
    return rng.choice(choices)()


def _time_column(rng: random.Random, count: int) -> pa.Array:
    number = rng.choice((0, -1, 1_767_225_600, 1_767_225_600_000, 2**53, 2**63 - 1, -(2**63)))
    kind = pa.timestamp(rng.choice(("s", "ms", "us", "ns")), rng.choice((None, "UTC", "Asia/Tokyo")))
    match rng.randrange(4):
        case 0:
            return pa.repeat(pa.scalar(_TIME), count)
        case 1:
            # Parquet cannot store seconds outside the range of milliseconds.
            return pa.repeat(pa.scalar(number if kind.unit != "s" else number % 10**12, pa.int64()), count).cast(kind)
        case 2:
            return pa.repeat(pa.scalar(number, pa.int64()), count)
        case _:
            return pa.repeat(pa.scalar(20_000, pa.int32()), count).cast(pa.date32())


def _expected_of_csv(data: bytes) -> Rows | None:
    """Return the rows of a canonical CSV, None for any other."""
    try:
        rows: Rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
        return rows if rows and _to_csv(rows) == data else None
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError):
        return None


def _has_unclosed_quote(data: bytes) -> bool:
    """Return whether a CSV has an unclosed quote, which makes the rest of the file one cell."""
    try:
        list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    except UnicodeDecodeError:
        return False
    return False


def _expected_of_ndjson(data: bytes) -> Rows | None:
    try:
        rows: Rows = [json.loads(line) for line in data.split(b"\n")[:-1]]
        plain = all(set(row) == set(_COLUMNS) and all(isinstance(cell, str) for cell in row.values()) for row in rows)
        return rows if rows and plain and _to_ndjson(rows) == data else None
    except (ValueError, TypeError, RecursionError):
        return None


def check(data: bytes, ending: str, expected: Callable[[bytes], Rows | None]) -> str:
    """Load the file as `backfill` does, up to the commit."""
    path = _path(data, ending)
    path.write_bytes(data)
    content = _decompressed(data)
    expected_rows = expected(content)
    try:
        events, rejected = _load(path)
    except _REFUSALS as error:
        demand(expected_rows is None or isinstance(error, RejectedError), f"a valid file is refused: {error}")
        demand(
            str(path) in str(error) and len(str(error)) < 20_000,
            f"the message does not name the file: {str(error)[:200]}",
        )
        raise
    demand(len(events) + len(rejected) == count_rows(path, names=_MAPPING.required_columns()), "rows are missing")
    demand(ending != ".csv" or not _has_unclosed_quote(content), "rows after an unclosed quote are missing")
    if expected_rows is not None:
        _compare(events, rejected, expected_rows)
    return f"{bool(events)} {sorted(set(rejected))}"


def _path(data: bytes, ending: str) -> Path:
    suffix = ".gz" if data.startswith(_GZIP) else ".zst" if data.startswith(_ZSTD) else ""
    return _folder() / f"history{ending}{suffix}"


def _decompressed(data: bytes) -> bytes:
    """Return the decompressed data, or b"" if it cannot be decompressed."""
    try:
        if data.startswith(_GZIP):
            return gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MAX_DECOMPRESSED_BYTES)
        if data.startswith(_ZSTD):
            reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
            return reader.read(_MAX_DECOMPRESSED_BYTES)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError):
        return b""
    return data


def _load(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    source = open_file(path, _MAPPING, Settings(data_dir=_folder()))
    events: list[dict[str, Any]] = []
    rejected: list[str] = []

    def read(_topic_id: str, _topic_partition: int) -> int | None:
        return len(events) + len(rejected) or None

    while batch := source.poll(read):
        events += batch.decoded.events.select(["event_id", "user_id", "event_time", "offset"]).to_pylist()
        rejected += batch.decoded.rejected["reason"].to_pylist()
    return events, rejected


def _compare(events: list[dict[str, Any]], rejected: list[str], expected_rows: Rows) -> None:
    """Check that each valid row is an event of its user at its place, and each other row a dead letter."""
    users = {n: row["user"] for n, row in enumerate(expected_rows) if row["user"] and row["did"] and _is_good(row)}
    demand({event["offset"]: event["user_id"] for event in events} == users, "the events have other users or places")
    demand(len(rejected) == len(expected_rows) - len(users), f"{len(rejected)} rows are rejected")


def _is_good(row: dict[str, str]) -> bool:
    try:
        time = datetime.fromisoformat(row["at"])
    except ValueError:
        return False
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    latest = datetime.now(UTC) + _MAX_AHEAD
    bounds = {
        "user": _CONTRACT.max_user_id_bytes,
        "did": _CONTRACT.max_action_type_bytes,
        "stars": _CONTRACT.max_metadata_bytes - len("stars"),
    }
    is_short = all(len(row[name].encode()) <= bound for name, bound in bounds.items())
    return is_short and datetime(2000, 1, 1, tzinfo=UTC) <= time <= latest


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


_GOOD: Rows = [{"user": "u-1", "at": _TIME, "did": "Rated", "stars": "5"}]
_GOOD_TABLE = pa.Table.from_pylist(_GOOD)
_MEGABYTES = 2_048
"""One file takes half of it (`tests/sources/test_bounds.py`); a child retains memory of thousands of them."""
_FORMS = {
    "csv": (generate_csv, ".csv", _expected_of_csv, _to_csv(_GOOD)),
    "ndjson": (generate_ndjson, ".ndjson", _expected_of_ndjson, _to_ndjson(_GOOD)),
    "parquet": (generate_parquet, ".parquet", lambda _: None, generate_parquet(random.Random(0))),
    "arrow": (partial(generate_arrow, write=_to_arrow), ".arrow", lambda _: None, _to_arrow(_GOOD_TABLE, None)),
    "orc": (partial(generate_arrow, write=_to_orc), ".orc", lambda _: None, _to_orc(_GOOD_TABLE, None)),
    "container": (generate_container, ".avro", lambda _: None, generate_container(random.Random(0))),
    "workbook": (generate_workbook, ".xlsx", lambda _: None, generate_workbook(random.Random(0))),
}
TARGETS = {
    name: Target(
        generate,
        partial(check, ending=ending, expected=expected),
        good,
        _REFUSALS,
        _mutate_workbook if name == "workbook" else mutate_bytes,
        60.0,
        _MEGABYTES,
    )
    for name, (generate, ending, expected, good) in _FORMS.items()
}
