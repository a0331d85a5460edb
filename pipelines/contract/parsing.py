"""The result of decoding values, and the isolation of values whose decoding fails (`not-blocked`).

Any exception of a decoder, including a Rust panic (a BaseException), is traced to the value that causes it by
bisection: the value that fails on its own is undecodable, and all others are decoded. Two kinds of exceptions
propagate: those that end the process, and karmalake's own errors, which concern a service or a setting.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT
from pipelines.errors import KarmalakeError, is_termination

_MAX_DETAIL_CHARS = 500
_MAX_INT32 = 2**31 - 1
_MAX_PIECES_TO_JOIN = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a value could not be decoded: a reason code, and one sentence for the person who fixes it."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """The result of decoding. `events` (EVENT columns) has a row for each value; `errors` is the problem by row.

    Absent strings are empty, as in Protobuf; an absent timestamp is null. Rows with an error have arbitrary contents.
    """

    events: pa.Table
    errors: dict[int, Problem]


def is_propagated(error: BaseException) -> bool:
    """Return whether an exception is not attributed to a value: it ends the process, or is an error of karmalake."""
    return isinstance(error, KarmalakeError) or is_termination(error)


def parse_by_bisection(values: pa.Array, parse: Callable[[pa.Array], Parsed], expected: str) -> Parsed:
    """Decode values with `parse`, and bisect those for which it raises; `expected` describes a valid value.

    Raises only exceptions that are not attributed to a value (`is_propagated`).
    """
    parts = list(_bisect(values, 0, parse, expected))
    if len(parts) == 1 and isinstance(parts[0][1], Parsed):
        return parts[0][1]
    errors = {start: outcome for start, outcome in parts if isinstance(outcome, Problem)}
    pieces = [outcome for _, outcome in parts if isinstance(outcome, Parsed)]
    return parse_remaining(values, errors, partial(_parse_again_or_join, parse=parse, pieces=pieces))


def parse_remaining(values: pa.Array, errors: dict[int, Problem], parse: Callable[[pa.Array], Parsed]) -> Parsed:
    """Decode with `parse` all values that have no error yet; `errors` is by row."""
    good = np.ones(len(values), bool)
    good[list(errors)] = False
    parsed = parse(values.filter(pa.array(good)))
    rows = np.flatnonzero(good)
    found = {int(rows[row]): problem for row, problem in parsed.errors.items()}
    return Parsed(_with_gaps(parsed.events, good), errors | found)


def reject_all(count: int, problem: Problem) -> Parsed:
    """Return the result for `count` values that all have the same problem."""
    return Parsed(_null_rows(count), dict.fromkeys(range(count), problem))


def parse_in_chunks(
    values: pa.Array, parse: Callable[[pa.Array], Parsed], max_bytes: int, max_rows: int = _MAX_INT32
) -> Parsed:
    """Decode with `parse` in chunks of about `max_bytes` and at most `max_rows`, to bound the memory of a decoder."""
    ends = np.cumsum(pc.fill_null(pc.binary_length(values), 0).to_numpy(), dtype=np.int64)
    rows = np.arange(len(values))
    cuts = np.flatnonzero((np.diff(ends // max_bytes) > 0) | (rows[1:] % max_rows == 0)) + 1
    if not len(cuts):
        return parse(values)
    chunks = np.split(rows, cuts)
    return merge_parts([(chunk, parse(values.slice(int(chunk[0]), len(chunk)))) for chunk in chunks])


def merge_parts(parts: list[tuple[np.ndarray, Parsed]]) -> Parsed:
    """Merge the results of parts that were decoded separately, each with its row numbers (int64), in row order."""
    rows = np.concatenate([rows for rows, _ in parts])
    events = pa.concat_tables([parsed.events for _, parsed in parts]).combine_chunks()
    errors = {int(rows[row]): error for rows, parsed in parts for row, error in parsed.errors.items()}
    return Parsed(events.take(pa.array(np.argsort(rows))), errors)


def sanitize_message(text: str) -> str:
    """Return a text as one line of at most 500 characters, with non-printable characters escaped."""
    line = " ".join(text[: _MAX_DETAIL_CHARS + 1].split())
    if not line.isprintable():
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    return line if len(line) <= _MAX_DETAIL_CHARS else f"{line[:_MAX_DETAIL_CHARS]}..."


def undecodable(expected: str, cause: object) -> Problem:
    """Return the problem of a value that is not `expected`, with an exception or a text as its cause."""
    message = str(cause) or type(cause).__name__
    return Problem(Reason.UNDECODABLE, sanitize_message(f"The value is not {expected}: {message.rstrip('.')}."))


def _bisect(
    values: pa.Array, start: int, parse: Callable[[pa.Array], Parsed], expected: str
) -> Iterator[tuple[int, Parsed | Problem]]:
    """Yield (first row, result) for the largest slices that `parse` accepts, (row, problem) for each other value."""
    try:
        parsed = parse(values)
    except BaseException as error:  # a Rust panic is not an Exception, and any value may cause one
        if is_propagated(error):
            raise
        if len(values) == 1:
            yield start, undecodable(expected, error)
        if len(values) <= 1:
            return
    else:
        yield start, parsed
        return
    half = len(values) // 2
    yield from _bisect(values.slice(0, half), start, parse, expected)
    yield from _bisect(values.slice(half), start + half, parse, expected)


def _parse_again_or_join(good: pa.Array, parse: Callable[[pa.Array], Parsed], pieces: list[Parsed]) -> Parsed:
    """Return the result for the good values: join a few pieces, or decode once more rather than join thousands."""
    if len(pieces) > _MAX_PIECES_TO_JOIN:
        try:
            return parse(good)
        except BaseException as error:  # together they may exceed a limit of the decoder: join the pieces
            if is_propagated(error):
                raise
    starts = np.cumsum([0, *(len(piece.events) for piece in pieces)]).tolist()
    starts_and_pieces = zip(starts, pieces, strict=False)
    errors = {start + row: problem for start, piece in starts_and_pieces for row, problem in piece.errors.items()}
    return Parsed(pa.concat_tables([_null_rows(0), *(piece.events for piece in pieces)]).combine_chunks(), errors)


def _null_rows(count: int) -> pa.Table:
    """Return `count` rows of nulls in EVENT columns."""
    return EVENT.empty_table().take(pa.nulls(count, pa.int64()))


def _with_gaps(events: pa.Table, good: np.ndarray) -> pa.Table:
    """Return `events` with a row of nulls inserted wherever `good` (bool, one a value) is False."""
    return events.take(pa.array(np.cumsum(good) - 1, mask=~good))
