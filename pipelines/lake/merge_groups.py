"""Which files a compaction merges with each other. Pure: the log's description of the files is all that it looks at.

The files of a group are merged once there are `min_files` of them. A merge writes by `write_ranges`, so that a group
leaves files of FULL_ROWS or more, and at most one small file:

- small files, of any days, are one group: few remain, however many days have events;
- larger files of one day are a group, as all files of a day are in a table that is partitioned by day;
- larger files of several days are a group if their days overlap and their ranges are about as long. A merge shortens
  the ranges, until fewer than `min_files` of each length hold a day, or the day has its own files. So rows in no order
  of time are rewritten about once for each of the five lengths that eleven years have, rows in order of time never.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from itertools import groupby

from pipelines.lake.files import FULL_ROWS
from pipelines.lake.table_files import File

_MAX_SURPLUS_FILES = 1_000
"""With this many files beyond one per group, even two of a group are merged: in a table that is partitioned by day,
history in random order leaves a few on each day."""
_MAX_SIZE_RATIO = 4
"""A file more than this many times as large as all smaller ones of its group together is not merged."""
_ONE_GROUP, _BY_DAY, _BY_LENGTH = range(3)


def find_groups(files: Sequence[File], min_files: int) -> list[list[File]]:
    """Return the groups that have enough files to be merged, each in order of time.

    files: those that may grow, in the order of `list_files`.
    """
    groups = [_select_small(group) for group in _related(files)]
    surplus = sum(len(group) - 1 for group in groups if group)
    return [group for group in groups if len(group) >= (2 if surplus >= _MAX_SURPLUS_FILES else min_files)]


def _related(files: Sequence[File]) -> Iterator[list[File]]:
    for (kind, _), members in groupby(sorted(files, key=_kind), key=_kind):
        group = list(members)
        yield from _overlapping(group) if kind == _BY_LENGTH else [group]


def _kind(file: File) -> tuple[int, int]:
    """Return what the files of a group have in common."""
    if file.first_day is None or file.last_day is None or (file.rows < FULL_ROWS and not file.is_partition):
        return _ONE_GROUP, 0
    if file.first_day == file.last_day:
        return _BY_DAY, file.first_day.toordinal()
    days = (file.last_day - file.first_day).days + 1
    return _BY_LENGTH, days.bit_length() // 3  # to 3, 31, 255, 2047, ... days


def _overlapping(files: Sequence[File]) -> Iterator[list[File]]:
    """Yield files by first day in groups that share days.

    A file that begins on the last day of another does not overlap it: rows in order of time were divided there.
    """
    group, last = list[File](), date.min
    for file in files:
        if group and (file.first_day or date.min) >= last:
            yield group
            group, last = [], date.min
        group.append(file)
        last = max(last, file.last_day or date.min)
    yield group


def _select_small(files: Sequence[File]) -> list[File]:
    """Return the smallest files, without those much larger than all smaller ones together (`_MAX_SIZE_RATIO`).

    An event is then rewritten about once for each time that its group has grown by a constant factor, however often
    compaction runs.
    """
    by_size = sorted(files, key=lambda file: file.size)
    total = sum(file.size for file in files)
    for end in range(len(by_size), 0, -1):
        largest = by_size[end - 1].size
        total -= largest
        if largest <= _MAX_SIZE_RATIO * total:
            small = set(by_size[:end])
            return [file for file in files if file in small]
    return []
