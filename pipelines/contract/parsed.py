"""What values were decoded to, and the way that decoders in bulk share: what they refuse is halved.

A decoder in bulk refuses a whole array for one bad value. Bad values are found by halving what was refused: they cost
their neighbours a little time and nothing else (`not-blocked`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.contract.rejection import Reason

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a value could not be decoded: a reason code, and a sentence for the person who has to mend it."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """`events` (EVENT columns) has a row for each value; `errors` says by row why one could not be decoded.

    Absent strings are empty, as Protobuf has it; an absent timestamp is null. A row with an error holds anything.
    """

    events: pa.Table
    errors: dict[int, Problem]


def parse_in_bulk(values: pa.Array, columns: Callable[[pa.Array], pa.Table], what: str) -> Parsed:
    """Decode by `columns`, which returns EVENT columns or raises ValueError; `what` names what a value should be."""
    try:
        return Parsed(columns(values), {})
    except ValueError:
        errors: dict[int, Problem] = {}
        for start in range(0, len(values), _CHUNK):
            errors |= _find_errors(values.slice(start, _CHUNK), start, columns, what)
        good = np.ones(len(values), bool)
        good[list(errors)] = False
        return Parsed(_with_gaps(columns(values.filter(pa.array(good))), good), errors)


def put_together(parts: list[tuple[np.ndarray, Parsed]]) -> Parsed:
    """Return what values were decoded to that were decoded in parts, each given with the rows that it stood in."""
    rows = np.concatenate([rows for rows, _ in parts])
    events = pa.concat_tables([parsed.events for _, parsed in parts]).combine_chunks()
    errors = {int(rows[row]): error for rows, parsed in parts for row, error in parsed.errors.items()}
    return Parsed(events.take(pa.array(np.argsort(rows))), errors)


def _find_errors(
    values: pa.Array, first_row: int, columns: Callable[[pa.Array], pa.Table], what: str
) -> dict[int, Problem]:
    try:
        columns(values)
    except ValueError as error:
        if len(values) == 1:
            return {first_row: Problem(Reason.UNDECODABLE, f"The value is not {what}: {error}.")}
        half = len(values) // 2
        return _find_errors(values.slice(0, half), first_row, columns, what) | _find_errors(
            values.slice(half), first_row + half, columns, what
        )
    return {}


def _with_gaps(events: pa.Table, good: np.ndarray) -> pa.Table:
    """Return a row of nulls for each value that is not good, between the others."""
    return events.take(pa.array(np.cumsum(good) - 1, mask=~good))
