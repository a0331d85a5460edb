"""The account of a batch: the fate of every record that it read and of every event that these became (`nothing-lost`).

Each count is taken by itself, none is the rest of others: `verify` holds the sums of `OffsetRange`.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipelines.ingest.batch import Batch, OffsetRange, count_rows, range_numbers
from pipelines.lake.index import CONFLICT, DUPLICATE, NEW
from pipelines.lake.tombstones import Filtered

_KINDS = 3


def count_fates(batch: Batch, remaining: Filtered, kinds: np.ndarray) -> tuple[OffsetRange, ...]:
    """Return the ranges of a batch with their counts.

    `remaining` is the batch without erased users; `kinds` is NEW, DUPLICATE or CONFLICT of each of its events, of shape
    (events,).
    """
    ranges, decoded = batch.ranges, batch.decoded
    dead_letters = count_rows(remaining.decoded.rejected, ranges)
    erased_letters = count_rows(decoded.rejected, ranges) - dead_letters
    by_kind = _count_kinds(remaining.decoded.events, kinds, ranges)
    counts = {
        "accepted": by_kind[:, NEW],
        "duplicates": by_kind[:, DUPLICATE],
        "conflicts": by_kind[:, CONFLICT],
        "dead_letters": dead_letters,
        "erased": count_rows(remaining.dropped, ranges),
        "converted": _count_records(decoded.events, ranges) + erased_letters,
        "filtered": count_rows(decoded.filtered, ranges),
        "made": count_rows(decoded.events, ranges) + erased_letters,
    }
    return tuple(
        replace(place, **{name: int(count[number]) for name, count in counts.items()})
        for number, place in enumerate(ranges)
    )


def _count_kinds(events: pa.Table, kinds: np.ndarray, ranges: tuple[OffsetRange, ...]) -> np.ndarray:
    """Return the number of events of each kind, of shape (ranges, kinds)."""
    cells = range_numbers(events, ranges) * _KINDS + kinds
    return np.bincount(cells, minlength=len(ranges) * _KINDS).reshape(len(ranges), _KINDS)


def _count_records(events: pa.Table, ranges: tuple[OffsetRange, ...]) -> np.ndarray:
    """Return the number of records that became events, of shape (ranges,): the events of a record are neighbours."""
    numbers, offsets = range_numbers(events, ranges), events["offset"].to_numpy()
    first = np.ones(len(offsets), bool)
    first[1:] = (offsets[1:] != offsets[:-1]) | (numbers[1:] != numbers[:-1])
    return np.bincount(numbers[first], minlength=len(ranges))
