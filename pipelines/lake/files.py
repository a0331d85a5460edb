"""Files: how Parquet is laid out and written, and how any file is made durable. Knows nothing of commits."""

import json
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from pipelines.errors import TransientError
from pipelines.lake.stores import ensure_folder_of, on_this_machine, opened, reached

DAY_COLUMN = "event_day"
"""The UTC day of event_time: a folder of `events`, and no column of its files."""
_DAY_US = 86_400_000_000
_FSYNC_THREADS = 8
_BUFFER_BYTES = 1024 * 1024
"""Of a column that is read a part at a time."""
# One user's events among many are found without reading the others: the Bloom filter of a row group says that a user is
# not in it, and a page without any is passed over. DuckDB does so only where user_ids are not in a dictionary, and
# metadata, being nested, are read by whole row groups.
_ROW_GROUP, _PAGE = 32_768, 4_096
_SOUGHT, _FALSE_POSITIVES = "user_id", 0.05
# Sorted or nearly sorted integers shrink to a bit or two; ids of many users gain nothing from a dictionary.
_DELTA_ENCODED = {
    "offset": "DELTA_BINARY_PACKED",
    "event_time": "DELTA_BINARY_PACKED",
    "bus_time": "DELTA_BINARY_PACKED",
}
_PLAIN = {"event_id", "value", _SOUGHT}
# What a producer wrote may be a hundred megabytes, and statistics keep the least and the greatest several times over.
_UNMEASURED = {"key", "value", "headers"}
_KEYS = "metadata.key_value.key"
_LAYOUTS = {
    pa.string_view(): pa.string(),
    pa.large_string(): pa.string(),
    pa.binary_view(): pa.binary(),
    pa.large_binary(): pa.binary(),
}


def write_days(folder: str, events: pa.Table, name: str, *, data_change: bool = True) -> list[AddAction]:
    """Write `events` (EVENTS without event_day) as one durable file for each UTC day, and return them uncommitted.

    Rows keep their order within a day. A crash leaves files that no commit names; an error leaves none.
    """
    parts = [(f"{DAY_COLUMN}={day}/{name}.parquet", rows, {DAY_COLUMN: day}) for day, rows in _by_day(events)]
    return _write_all(folder, parts, data_change=data_change)


def write_file(folder: str, rows: pa.Table, name: str, *, data_change: bool = True) -> list[AddAction]:
    """Write `rows` as one durable file of an unpartitioned table, and return it uncommitted."""
    return _write_all(folder, [(f"{name}.parquet", rows, {})], data_change=data_change)


def remove_files(folder: str, files: Iterable[AddAction]) -> None:
    """Remove files of a table that no commit names; one that is gone already is passed over."""
    for file in files:
        _remove(f"{folder}/{file.path}")


def read_file(place: str, columns: list[str] | None = None) -> pa.Table:
    """Read one file of a table as it was written: the day in its path is not made a column.

    Other engines that rewrite files (a delete, say) use other layouts of text: all are read as one.
    """
    store, path = opened(place)
    with reached(place):
        rows = pq.ParquetFile(path, filesystem=store).read(columns)
    plain = pa.schema([field.with_type(_LAYOUTS.get(field.type, field.type)) for field in rows.schema])
    return rows if plain == rows.schema else rows.cast(plain)


def read_footer(place: str) -> pq.FileMetaData:
    """Return the footer of one file of a table: its row groups, with their sizes before compression."""
    store, path = opened(place)
    with reached(place):
        return pq.read_metadata(path, filesystem=store)


@contextmanager
def open_file(place: str) -> "Generator[pq.ParquetFile]":
    """Yield one file of a table, to be read a part at a time: no more than that is in memory."""
    store, path = opened(place)
    with reached(place), pq.ParquetFile(path, filesystem=store, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
        yield file


def make_durable(places: Sequence[str | Path]) -> None:
    """Flush files and the folders that name them to the disk: after this, power may fail."""
    paths = on_this_machine(places)
    folders = {path.parent for path in paths} | {path.parent.parent for path in paths}
    with ThreadPoolExecutor(_FSYNC_THREADS) as pool:
        list(pool.map(_fsync, paths))
        list(pool.map(_fsync, folders))


def _by_day(events: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    days = np.floor_divide(events["event_time"].cast(pa.int64()).to_numpy(), _DAY_US)
    if not len(days):
        return
    if (days[1:] < days[:-1]).any():
        order = np.argsort(days, kind="stable")
        events, days = events.take(pa.array(order)), days[order]
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))
    for start, end in zip(starts, np.append(starts[1:], len(days)), strict=True):
        yield str(np.datetime64(int(days[start]), "D")), events.slice(start, end - start)


def _write_all(folder: str, parts: list[tuple[str, pa.Table, dict[str, str]]], *, data_change: bool) -> list[AddAction]:
    """Write one durable file for each (path, rows, partition values); whatever fails, none of them is left."""
    actions: list[AddAction] = []
    try:
        for path, rows, values in parts:
            actions.append(_write(folder, path, rows, values, data_change=data_change))
        make_durable([f"{folder}/{action.path}" for action in actions])
    except BaseException:
        for path, _, _ in parts[: len(actions) + 1]:
            with suppress(OSError, TransientError):
                _remove(f"{folder}/{path}")
        raise
    return actions


def _remove(place: str) -> None:
    store, path = opened(place)
    with suppress(FileNotFoundError), reached(place):
        store.delete_file(path)


def _write(
    folder: str, path: str, rows: pa.Table, partition_values: Mapping[str, str], *, data_change: bool
) -> AddAction:
    store, place = opened(f"{folder}/{path}")
    ensure_folder_of(f"{folder}/{path}")
    columns = rows.schema.names
    repetitive = [name for name in columns if name not in _PLAIN and name not in _DELTA_ENCODED]
    layout: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [*repetitive, _KEYS],
        "column_encoding": {name: encoding for name, encoding in _DELTA_ENCODED.items() if name in columns},
        "row_group_size": _ROW_GROUP,
        "max_rows_per_page": _PAGE,
        "write_statistics": [name for name in columns if name not in _UNMEASURED] if "value" in columns else True,
    }
    if _SOUGHT in columns:
        expected = {"ndv": max(1, min(len(rows), _ROW_GROUP)), "fpp": _FALSE_POSITIVES}
        layout["bloom_filter_options"] = {_SOUGHT: expected}
    with reached(folder):
        pq.write_table(rows, place, filesystem=store, **layout)
    stats = json.dumps({"numRecords": len(rows)})
    size = store.get_file_info(place).size
    return AddAction(path, size, dict(partition_values), int(time.time() * 1000), data_change, stats)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
