"""Bulk decoding of JSON objects to Arrow columns, by compiled loops.

A value is an object with the fields of the contract: four strings, one of them `timestamp` in the format of RFC 3339,
and `metadata`, an object of strings. Unknown fields are ignored. Types are not coerced: a number is not a string.
`json_grammar.py` defines the syntax, `json_scan.py` locates the members of objects, `json_text.py` copies strings.

No library does this in bulk: `pyarrow.json` has no maps, reads NaN and two values as one line, and refuses a block for
one invalid value; DuckDB's functions take six times as long; orjson and the bindings of simdjson create objects.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.buffers import bounds_and_bytes
from pipelines.contract.json_grammar import OPENING_BRACE, QUOTE, SMALL_N, describe_fault
from pipelines.contract.json_scan import (
    FIELDS,
    NAME_END,
    NAME_START,
    VALUE_END,
    VALUE_START,
    Fields,
    Members,
    assign_fields,
    locate_members,
)
from pipelines.contract.json_text import read_strings
from pipelines.contract.metadata import has_repeated_key
from pipelines.contract.parsing import Parsed, parse_by_bisection, undecodable
from pipelines.contract.schema import EVENT
from pipelines.contract.times import read_times

_EXPECTED = "an event in JSON"
_TIMESTAMP, _METADATA = FIELDS.index("timestamp"), FIELDS.index("metadata")
"""Those before `timestamp` are strings, too."""


def parse_json(values: pa.Array) -> Parsed:
    """Decode a binary array of JSON values in UTF-8; nulls count as empty."""
    return parse_by_bisection(pc.fill_null(values.cast(pa.binary()), b""), _parse, _EXPECTED)


def _parse(values: pa.Array) -> Parsed:
    bounds, data = bounds_and_bytes(values)
    starts, ends = bounds[:-1].copy(), bounds[1:].copy()  # writable, like those of metadata: one compiled scan
    members = locate_members(data, starts, ends, 0)
    fields = assign_fields(data, members)
    entries = _locate_entries(data, fields)
    event_times, invalid_times = read_times(_timestamps(data, fields), "iso")
    columns = {FIELDS[number]: _texts(data, fields, number) for number in range(_TIMESTAMP)}
    columns |= {"event_time": event_times, "metadata": _metadata(data, entries)}
    problems = [*_problems(data, members, fields, entries, columns["metadata"].keys)]
    errors = {row: f"timestamp: {error}" for row, error in invalid_times.items()}
    for problem, mask in reversed(problems):
        errors |= dict.fromkeys(np.flatnonzero(mask).tolist(), problem)
    errors |= {row: describe_fault(int(members.faults[row])) for row in np.flatnonzero(members.faults).tolist()}
    return Parsed(
        pa.table([columns[name] for name in EVENT.names], schema=EVENT),
        {row: undecodable(_EXPECTED, error) for row, error in errors.items()},
    )


def _locate_entries(data: np.ndarray, fields: Fields) -> Members:
    """Locate the entries of metadata: none where it is absent or not an object."""
    present = fields.kinds[_METADATA] == OPENING_BRACE
    starts, ends = np.where(present, fields.spans[:, _METADATA], 0)
    return locate_members(data, starts, ends, 1)


def _texts(data: np.ndarray, fields: Fields, number: int) -> pa.StringArray:
    """Return the strings of a field; an absent or another value is empty."""
    starts, ends = fields.spans[:, number]
    return _unquoted(data, starts, ends, fields.kinds[number] == QUOTE)


def _timestamps(data: np.ndarray, fields: Fields) -> pa.StringArray:
    """Return the timestamps as text; an absent or another value is null."""
    texts, present = _texts(data, fields, _TIMESTAMP), fields.kinds[_TIMESTAMP] == QUOTE
    return texts if present.all() else pc.if_else(pa.array(present), texts, None)


def _metadata(data: np.ndarray, entries: Members) -> pa.MapArray:
    keys = read_strings(data, entries.column(NAME_START), entries.column(NAME_END))
    starts = entries.column(VALUE_START)
    items = _unquoted(data, starts, entries.column(VALUE_END), data[starts] == QUOTE)
    return pa.MapArray.from_arrays(pa.array(entries.bounds), keys, items)


def _unquoted(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, are_strings: np.ndarray) -> pa.StringArray:
    """Return the contents of values that are strings; another value is empty."""
    return read_strings(data, np.where(are_strings, starts + 1, 0), np.where(are_strings, ends - 1, 0))


def _problems(
    data: np.ndarray, members: Members, fields: Fields, entries: Members, keys: pa.StringArray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each problem of a value in valid JSON, in order of precedence, with the mask (bool) of its events."""
    starts, ends = (members.column(place)[fields.unknown] for place in (NAME_START, NAME_END))
    unknown = _totals(fields.unknown, members.bounds)
    yield "it has a field twice", fields.repeated | has_repeated_key(unknown, read_strings(data, starts, ends))
    for number in range(_METADATA):
        yield f"{FIELDS[number]} is not a string", _is_other(fields.kinds[number], QUOTE)
    others = _totals(data[entries.column(VALUE_START)] != QUOTE, entries.bounds)
    not_object = _is_other(fields.kinds[_METADATA], OPENING_BRACE)
    yield "metadata is not an object of strings", not_object | (np.diff(others) > 0)
    yield "metadata has a key twice", has_repeated_key(entries.bounds, keys)


def _is_other(kinds: np.ndarray, expected: int) -> np.ndarray:
    """Return whether values (by their first byte) are neither of the expected kind nor absent."""
    return (kinds != expected) & (kinds != SMALL_N)


def _totals(mask: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return how many members before each object (int64) are in a mask (bool)."""
    return np.concatenate([[0], np.cumsum(mask)])[bounds]
