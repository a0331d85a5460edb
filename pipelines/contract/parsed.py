"""What values were decoded to, and the wall around everything that a value's bytes reach (`not-blocked`).

Whatever decoding raises, a Rust panic (a BaseException) too, is found by halves: the value that fails alone is the bad
one, and costs its neighbours a little time and nothing else. Only what stops the process, and karmalake's own errors,
which are about a service or a setting and not about a value, go through.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT
from pipelines.errors import KarmalakeError

GOES_THROUGH = (KeyboardInterrupt, SystemExit, GeneratorExit, KarmalakeError)
"""What the wall does not catch."""
_LONGEST_SENTENCE = 500
_INT32 = 2**31 - 1
_FEW = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a value could not be decoded: a reason code, and a sentence for the person who has to fix it."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """`events` (EVENT columns) has a row for each value; `errors` says by row why one could not be decoded.

    Absent strings are empty, as Protobuf has it; an absent timestamp is null. A row with an error holds anything.
    """

    events: pa.Table
    errors: dict[int, Problem]


def parse_by_halves(values: pa.Array, parse: Callable[[pa.Array], Parsed], what: str) -> Parsed:
    """Decode by `parse`, halving what it raises for; `what` names what a value should be.

    Raises what GOES_THROUGH names, and nothing else.
    """
    parts = list(_halves(values, 0, parse, what))
    if len(parts) == 1 and isinstance(parts[0][1], Parsed):
        return parts[0][1]
    errors = {start: outcome for start, outcome in parts if isinstance(outcome, Problem)}
    pieces = [outcome for _, outcome in parts if isinstance(outcome, Parsed)]
    return parse_others(values, errors, partial(_once_more, parse=parse, pieces=pieces))


def parse_others(values: pa.Array, errors: dict[int, Problem], parse: Callable[[pa.Array], Parsed]) -> Parsed:
    """Decode by `parse` all values but those that have an error already."""
    good = np.ones(len(values), bool)
    good[list(errors)] = False
    parsed = parse(values.filter(pa.array(good)))
    rows = np.flatnonzero(good)
    found = {int(rows[row]): problem for row, problem in parsed.errors.items()}
    return Parsed(_with_gaps(parsed.events, good), errors | found)


def refused(count: int, problem: Problem) -> Parsed:
    """Return as many values that all have the same problem."""
    return Parsed(_blank(count), dict.fromkeys(range(count), problem))


def parse_in_parts(
    values: pa.Array, parse: Callable[[pa.Array], Parsed], most_bytes: int, most_rows: int = _INT32
) -> Parsed:
    """Decode by `parse` in parts of about `most_bytes` and at most `most_rows`, which bounds what a decoder takes."""
    ends = np.cumsum(pc.fill_null(pc.binary_length(values), 0).to_numpy(), dtype=np.int64)
    rows = np.arange(len(values))
    cuts = np.flatnonzero((np.diff(ends // most_bytes) > 0) | (rows[1:] % most_rows == 0)) + 1
    if not len(cuts):
        return parse(values)
    parts = np.split(rows, cuts)
    return put_together([(part, parse(values.slice(int(part[0]), len(part)))) for part in parts])


def put_together(parts: list[tuple[np.ndarray, Parsed]]) -> Parsed:
    """Return what values were decoded to that were decoded in parts, each given with the rows that it stood in."""
    rows = np.concatenate([rows for rows, _ in parts])
    events = pa.concat_tables([parsed.events for _, parsed in parts]).combine_chunks()
    errors = {int(rows[row]): error for rows, parsed in parts for row, error in parsed.errors.items()}
    return Parsed(events.take(pa.array(np.argsort(rows))), errors)


def plain_sentence(text: str) -> str:
    """Return a sentence in one line of bounded length, with control and direction characters escaped."""
    shown = " ".join(text[: _LONGEST_SENTENCE + 1].split())
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in shown)
    return shown if len(shown) <= _LONGEST_SENTENCE else f"{shown[:_LONGEST_SENTENCE]}..."


def undecodable(what: str, why: object) -> Problem:
    """Return the problem of a value that is not `what`."""
    said = str(why) or type(why).__name__
    return Problem(Reason.UNDECODABLE, plain_sentence(f"The value is not {what}: {said.rstrip('.')}."))


def _halves(
    values: pa.Array, start: int, parse: Callable[[pa.Array], Parsed], what: str
) -> Iterator[tuple[int, Parsed | Problem]]:
    """Yield what values were parsed to, in as few parts as raise nothing, and what is wrong with a value that does.

    Each with the row that it starts at.
    """
    try:
        parsed = parse(values)
    except GOES_THROUGH:
        raise
    except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception, and any value may cause one
        if len(values) == 1:
            yield start, undecodable(what, error)
        if len(values) <= 1:
            return
    else:
        yield start, parsed
        return
    half = len(values) // 2
    yield from _halves(values.slice(0, half), start, parse, what)
    yield from _halves(values.slice(half), start + half, parse, what)


def _once_more(good: pa.Array, parse: Callable[[pa.Array], Parsed], pieces: list[Parsed]) -> Parsed:
    """Parse the good values together, which costs less than to join thousands of pieces; else join them after all."""
    if len(pieces) > _FEW:
        try:
            return parse(good)
        except GOES_THROUGH:
            raise
        except BaseException:  # noqa: BLE001, S110 - together they may be too much for a decoder; the pieces are there
            pass
    starts = np.cumsum([0, *(len(piece.events) for piece in pieces)]).tolist()
    placed = zip(starts, pieces, strict=False)
    errors = {start + row: problem for start, piece in placed for row, problem in piece.errors.items()}
    return Parsed(pa.concat_tables([_blank(0), *(piece.events for piece in pieces)]).combine_chunks(), errors)


def _blank(count: int) -> pa.Table:
    return EVENT.empty_table().take(pa.nulls(count, pa.int64()))


def _with_gaps(events: pa.Table, good: np.ndarray) -> pa.Table:
    """Return a row of nulls for each value that is not good, between the others."""
    return events.take(pa.array(np.cumsum(good) - 1, mask=~good))
