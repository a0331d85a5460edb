"""Parquet files: their layout, writing and reading, and how any file is made durable. Independent of commits.

The name of a file ends with the checksum of its bytes (`a.1c291ca3.parquet`), so a path is enough to tell whether they
are what was written. Every reader here compares it; before DuckDB and Spark read files, `compare_checksums` does.

Events are written by time: small days share a file, a large day has its own (`write_ranges`), so that few files hold a
fine-grained history, and a reader of one day reads little else. In a lake that was created before format 3, `events` is
partitioned by day, and each day has its own file (`write_days`).
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import json
import os
import re
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from pipelines.errors import CorruptionError, TransientError, one_line
from pipelines.lake.stores import (
    checksum_of,
    delete_files,
    ensure_parent_folder,
    is_remote,
    local_paths,
    require_object_store,
    resolve_store,
    translate_store_errors,
)
from pipelines.lake.threads import kept_threads

DAY_COLUMN = "event_day"
"""The UTC day of event_time, by which other engines skip files. In lakes before format 3 it is the partition column of
`events`: a folder and not a column of its files."""
_DAY_US = 86_400_000_000
_flushers = kept_threads(8, "flush")
"""Kept between calls: a commit makes nine."""
_BUFFER_BYTES = 1024 * 1024
"""The read buffer of a column, where a file is read in parts."""
# Readers find the events of one user without reading the others: the Bloom filter of a row group excludes it, and pages
# without a match are skipped. DuckDB does so only if user_ids are not dictionary-encoded. Nested metadata are read by
# whole row groups.
_ROW_GROUP_ROWS, _PAGE_ROWS = 32_768, 4_096
RANGE_ROWS = _ROW_GROUP_ROWS
"""A file of several days has at most this many rows, one row group: a reader of one day reads no more than that."""
FULL_ROWS = RANGE_ROWS // 2
"""A day of this many rows has its own file. Files of several days have as many, except the last of a call."""
_ROW_GROUP_BYTES = 16 * 1024 * 1024
"""Of rows with records as they were received: a reader has one row group of them in memory, or one record."""
_BLOOM_COLUMN, _FALSE_POSITIVE_RATE = "user_id", 0.05
# Sorted or nearly sorted integers shrink to a bit or two each; ids of many users gain nothing from a dictionary.
_DELTA_ENCODED = {
    "offset": "DELTA_BINARY_PACKED",
    "event_time": "DELTA_BINARY_PACKED",
    "bus_time": "DELTA_BINARY_PACKED",
}
_PLAIN = {"event_id", "value", _BLOOM_COLUMN}
# What a producer wrote may be a hundred megabytes, and statistics repeat minimum and maximum several times.
_NO_STATISTICS = {"key", "value", "headers"}
_METADATA_KEYS = "metadata.key_value.key"
_CHECKSUM = re.compile(r"\.([0-9a-f]{8})\.parquet$")
"""The end of a file's name: files of other engines, and of earlier releases, have no checksum there."""
_DAMAGE = re.compile(
    "Couldn't deserialize thrift|Invalid page header|Unknown encoding type|Corrupt ZSTD|ZSTD decompression failed"
)
"""How pyarrow says of a file without a checksum that its bytes are not what was written, in an error that is like one
of the disk or of a store."""
_PLAIN_TYPES = {
    pa.string_view(): pa.string(),
    pa.large_string(): pa.string(),
    pa.binary_view(): pa.binary(),
    pa.large_binary(): pa.binary(),
}


def write_ranges(folder: str, events: pa.Table, name: str, *, data_change: bool = True) -> list[AddAction]:
    """Write `events` (EVENTS without event_day) as durable files of one or more UTC days; return the actions to commit.

    A day of FULL_ROWS has its own file; other days share files of at most RANGE_ROWS rows, in order. Files are named by
    their first day, DAY-`name`.CHECKSUM.parquet, and hold event_day; the actions have its minimum and maximum. Rows
    keep their order within a file. `data_change` is false where the rows were in the table before. A crash leaves files
    that no commit names; an error leaves none.
    """
    days = _days(events)
    dated = events.append_column(DAY_COLUMN, pa.array(days.astype(np.int32), pa.date32()))
    parts = [(f"{day}-{name}", rows, {}) for day, rows in _split(dated, _first_days(days))]
    return _write_all(folder, parts, data_change=data_change)


def write_days(folder: str, events: pa.Table, name: str, *, data_change: bool = True) -> list[AddAction]:
    """Write `events` like `write_ranges`, but as one file for each UTC day, in its folder, without event_day."""
    split = _split(events, _days(events))
    parts = [(f"{DAY_COLUMN}={day}/{name}", rows, {DAY_COLUMN: day}) for day, rows in split]
    return _write_all(folder, parts, data_change=data_change)


def write_file(folder: str, rows: pa.Table, name: str, *, data_change: bool = True) -> list[AddAction]:
    """Write `rows` as one durable file, as `write_ranges` does; return the action to commit."""
    return _write_all(folder, [(name, rows, {})], data_change=data_change)


def remove_files(folder: str, files: Iterable[AddAction]) -> None:
    """Remove files of a table that no commit names; a missing one is skipped."""
    delete_files(f"{folder}/{file.path}" for file in files)


def name_of(location: str) -> str:
    """Return the name that a file was written by, with its folder: its path without checksum and suffix."""
    return _CHECKSUM.sub("", location).removesuffix(".parquet")


def read_file(location: str, columns: list[str] | None = None) -> pa.Table:
    """Read one file of a table, or some of its columns.

    Other engines that rewrite files (for a delete, say) use other types of text and bytes: all are read as `string` and
    `binary`. Raises TransientError when an object store does not answer, CorruptionError when the file is damaged.
    """
    store, path = resolve_store(location)
    with translate_store_errors(location), _explained_damage(location):
        with store.open_input_file(path) as file:
            content = file.read_buffer(file.size())  # without a size, it would be in memory twice
        _require_checksum(location, zlib.crc32(content))
        return with_plain_types(pq.ParquetFile(pa.BufferReader(content)).read(columns))


def require_intact(location: str) -> None:
    """Read one file of a table, a part at a time. Raises like `read_file`."""
    if _CHECKSUM.search(location):
        _compare_checksum(location)
        return
    with open_file(location) as file:
        for number in range(file.num_row_groups):
            for _ in file.iter_batches(row_groups=[number]):  # of all, a batch would span row groups
                pass


def compare_checksums(locations: Iterable[str]) -> None:
    """Read local files that have a checksum, for a reader that compares none. Raises CorruptionError for a damaged one.

    An object store compares its own checksums whenever it returns an object.
    """
    for path in local_paths(locations):
        _compare_checksum(str(path))


def with_plain_types(rows: pa.Table) -> pa.Table:
    """Return rows with text and bytes as `string` and `binary`."""
    plain = pa.schema([field.with_type(_PLAIN_TYPES.get(field.type, field.type)) for field in rows.schema])
    return rows if plain == rows.schema else rows.cast(plain)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with the columns of a schema: missing ones, and missing nested fields, are null; others stay."""
    for field in schema:
        at = rows.schema.get_field_index(field.name)
        if at < 0:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
        elif rows.schema.field(at).type != field.type:
            rows = rows.set_column(at, field, rows.column(at).cast(field.type))
    return rows.select([*schema.names, *(name for name in rows.schema.names if name not in schema.names)])


def read_footer(location: str) -> pq.FileMetaData:
    """Return the footer of one file of a table: its row groups, with their sizes in bytes. Raises like `read_file`.

    The checksum of the file is not compared.
    """
    store, path = resolve_store(location)
    with translate_store_errors(location), _explained_damage(location):
        return pq.read_metadata(path, filesystem=store)


@contextmanager
def open_file(location: str) -> "Generator[pq.ParquetFile]":
    """Yield one file of a table, to be read in parts: only one part at a time is in memory. Raises like `read_file`.

    The checksum of a local file is compared when a process opens it for the first time.
    """
    _compare_checksum_once(location)
    store, path = resolve_store(location)
    options: dict[str, Any] = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES}
    with (
        translate_store_errors(location),
        _explained_damage(location),
        pq.ParquetFile(path, filesystem=store, **options) as file,
    ):
        yield file


@lru_cache(maxsize=10_000)
def _compare_checksum_once(location: str) -> None:
    compare_checksums([location])


def _compare_checksum(location: str) -> None:
    if not _CHECKSUM.search(location):
        return
    with _explained_damage(location):
        _require_checksum(location, checksum_of(location))


def _require_checksum(location: str, checksum: int) -> None:
    """Raise ArrowInvalid, as of other damage, if bytes of a file do not have the checksum in its name."""
    if (named := _CHECKSUM.search(location)) and int(named[1], 16) != checksum:
        raise pa.ArrowInvalid(f"its bytes have the checksum {checksum:08x}")


@contextmanager
def _explained_damage(location: str) -> Generator[None]:
    """Turn the error of a file that does not have what was written into CorruptionError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        is_outage = isinstance(error, OSError) and (error.errno is not None or is_remote(location))
        if is_outage and not _DAMAGE.search(str(error)):
            raise
        require_object_store(location)
        raise CorruptionError(
            f"{location} is damaged ({one_line(error)}): restore this file from a copy of the lake"
        ) from error


def make_durable(locations: Sequence[str | Path]) -> None:
    """Flush local files and the folders that name them to disk: they survive a power cut from then on."""
    paths = local_paths(locations)
    folders = {path.parent for path in paths} | {path.parent.parent for path in paths}
    for group in (paths, folders):
        list(_flushers().map(_fsync, group))


def _days(events: pa.Table) -> np.ndarray:
    """Return the UTC day of each event, in days since 1970: int64, shape (events,)."""
    return np.floor_divide(events["event_time"].cast(pa.int64()).to_numpy(), _DAY_US)


def _first_days(days: np.ndarray) -> np.ndarray:
    """Return for each event, by its day, the first day of its file: int64, shape (events,)."""
    if not len(days):
        return days
    earliest = days.min()
    rows = np.bincount(days - earliest)
    first_days = np.arange(len(rows))
    first, filled = 0, RANGE_ROWS
    for day in np.flatnonzero(rows):
        if rows[day] < FULL_ROWS:
            filled += rows[day]
            first, filled = (day, rows[day]) if filled > RANGE_ROWS else (first, filled)
            first_days[day] = first
    return earliest + first_days[days - earliest]


def _split(events: pa.Table, days: np.ndarray) -> Iterator[tuple[str, pa.Table]]:
    """Yield the events of each value of `days`, in order."""
    if not len(days):
        return
    if (days[1:] < days[:-1]).any():
        order = np.argsort(days, kind="stable")
        events, days = events.take(pa.array(order)), days[order]
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))
    for start, end in zip(starts, np.append(starts[1:], len(days)), strict=True):
        yield str(np.datetime64(int(days[start]), "D")), events.slice(start, end - start)


def _write_all(folder: str, parts: list[tuple[str, pa.Table, dict[str, str]]], *, data_change: bool) -> list[AddAction]:
    """Write one durable file for each (name, rows, partition values); an error leaves none of them."""
    actions: list[AddAction] = []
    try:
        for name, rows, values in parts:
            content = _encode(rows)
            path = f"{name}.{zlib.crc32(content):08x}.parquet"
            stats = json.dumps({"numRecords": len(rows)} | _day_bounds(rows))
            actions.append(AddAction(path, content.size, dict(values), int(time.time() * 1000), data_change, stats))
            _write(f"{folder}/{path}", content)
        make_durable([f"{folder}/{action.path}" for action in actions])
    except BaseException:
        for action in actions:
            with suppress(OSError, TransientError):
                delete_files([f"{folder}/{action.path}"])
        raise
    return actions


def _write(location: str, content: pa.Buffer) -> None:
    ensure_parent_folder(location)
    store, path = resolve_store(location)
    with translate_store_errors(location), store.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def _encode(rows: pa.Table) -> pa.Buffer:
    """Return rows as the bytes of a Parquet file."""
    columns = rows.schema.names
    repetitive = [name for name in columns if name not in _PLAIN and name not in _DELTA_ENCODED]
    layout: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [*repetitive, _METADATA_KEYS],
        "column_encoding": {name: encoding for name, encoding in _DELTA_ENCODED.items() if name in columns},
        "max_rows_per_page": _PAGE_ROWS,
        "write_statistics": [name for name in columns if name not in _NO_STATISTICS] if "value" in columns else True,
    }
    if _BLOOM_COLUMN in columns:
        expected = {"ndv": max(1, min(len(rows), _ROW_GROUP_ROWS)), "fpp": _FALSE_POSITIVE_RATE}
        layout["bloom_filter_options"] = {_BLOOM_COLUMN: expected}
    content = pa.BufferOutputStream()
    with pq.ParquetWriter(content, rows.schema, **layout) as writer:
        for part in _small_parts(rows) if "value" in columns else (rows,):
            writer.write_table(part, row_group_size=_ROW_GROUP_ROWS)
    return content.getvalue()


def _day_bounds(rows: pa.Table) -> dict[str, dict[str, Any]]:
    """Return Delta's statistics of event_day. There are none of other columns: the log outlives an erasure."""
    if DAY_COLUMN not in rows.schema.names:
        return {}
    bounds = pc.min_max(rows[DAY_COLUMN]).as_py()
    values = {f"{bound}Values": {DAY_COLUMN: str(day)} for bound, day in bounds.items()}
    return values | {"nullCount": {DAY_COLUMN: 0}}


def _small_parts(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows in parts of at most 16 MiB, or of one row."""
    if len(rows) <= 1 or rows.nbytes <= _ROW_GROUP_BYTES:
        yield rows
        return
    half = len(rows) // 2
    yield from _small_parts(rows.slice(0, half))
    yield from _small_parts(rows.slice(half))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
