"""The application transactions of a table: the numbers that its commits have set, each by a name (its app_id).

Checkpoints of topic partitions and all marks are such numbers. The library finds one at a time, and reads the whole
checkpoint of the log for a name that no later entry has: that takes 25 ms with 200,000 files, at every question, also
for a name that the table never had. Here all of them are read at once, and a handle that has moved on reads the entries
since.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import finalize

from deltalake import DeltaTable

from pipelines.errors import CorruptionError, TransientError
from pipelines.lake.log_files import list_log, log_folder, read_checkpoint, read_entry, table_folder
from pipelines.lake.threads import kept_threads
from pipelines.lake.torn_writes import quarantine_torn_checkpoint

_ATTEMPTS = 3
_readers = kept_threads(8, "log")


@dataclass(frozen=True, slots=True)
class _Seen:
    version: int
    numbers: Mapping[str, int]


_seen: dict[int, _Seen] = {}
"""By the id of a handle, while it exists: handles are not hashable."""


def transactions(table: DeltaTable) -> Mapping[str, int]:
    """Return the numbers at the version of a handle, by name.

    Raises TransientError when the log has been shortened to versions above that of the handle, or an object store does
    not answer; FileNotFoundError when the log is gone; CorruptionError when a file of it cannot be read.
    """
    seen, version = _seen.get(id(table)), table.version()
    if seen is not None and seen.version == version:
        return seen.numbers
    newer = _follow(table, seen, version) or _read(table, version)
    if seen is None:
        finalize(table, _seen.pop, id(table), None)
    _seen[id(table)] = newer
    return newer.numbers


def _follow(table: DeltaTable, seen: _Seen | None, version: int) -> _Seen | None:
    """Return what was seen at an earlier version, moved on; None if the log no longer has the entries since."""
    if seen is None or seen.version > version:
        return None
    try:
        return _Seen(version, {**seen.numbers, **_read_entries(log_folder(table), seen.version, version)})
    except FileNotFoundError:
        return None


def _read(table: DeltaTable, version: int) -> _Seen:
    for _ in range(_ATTEMPTS):  # another process may shorten the log meanwhile
        try:
            start, numbers = _read_checkpoint(table, version)
            return _Seen(version, {**numbers, **_read_entries(log_folder(table), start, version)})
        except FileNotFoundError:
            continue
    folder = log_folder(table)
    if any(file.is_checkpoint and file.version > version for file in list_log(folder)):
        raise TransientError(
            f"the log {folder} no longer has version {version}, since later commits have shortened it: repeat the "
            "command"
        )
    raise CorruptionError(
        f"the log {folder} has not every entry up to version {version} since its last checkpoint (of one file: those "
        "of several, which other engines write, are not read): restore the lake from a copy"
    )


def _read_checkpoint(table: DeltaTable, upto: int) -> tuple[int, dict[str, int]]:
    """Return the version of the newest checkpoint of the log up to a version, and its numbers; (-1, {}) without one.

    One that a power cut tore is quarantined first.
    """
    try:
        found = read_checkpoint(log_folder(table), ["txn.appId", "txn.version"], upto)
    except CorruptionError:
        if quarantine_torn_checkpoint(table_folder(table)):
            return _read_checkpoint(table, upto)
        raise
    if found is None:
        return -1, {}
    version, rows = found
    if "txn" not in rows.column_names:
        return version, {}
    set_by_name = rows.column("txn").combine_chunks().drop_null()
    names, numbers = (set_by_name.field(name).to_pylist() for name in ("appId", "version"))
    return version, dict(zip(names, numbers, strict=True))


def _read_entries(folder: str, after: int, upto: int) -> dict[str, int]:
    """Return the numbers that the entries set with after < version <= upto. Raises FileNotFoundError without one."""
    entries = [f"{folder}/{version:020}.json" for version in range(after + 1, upto + 1)]
    found = _readers().map(_read_numbers, entries) if len(entries) > 1 else map(_read_numbers, entries)
    return {name: number for numbers in found for name, number in numbers}


def _read_numbers(entry: str) -> list[tuple[str, int]]:
    return [(action["txn"]["appId"], action["txn"]["version"]) for action in read_entry(entry) if "txn" in action]
