"""Bulk decoding of JSON objects to Arrow columns, by compiled loops.

A value is an object with the fields of the contract: four strings, one of them `timestamp` in the format of RFC 3339,
and `metadata`, an object of strings. Unknown fields are ignored. Types are not coerced: a number is not a string.
`json_grammar.py` defines the syntax, `json_events.py` locates the parts of events, `json_text.py` copies strings.

No library does this in bulk: `pyarrow.json` has no maps, reads NaN and two values as one line, and refuses a block for
one invalid value; DuckDB's functions take six times as long; orjson and the bindings of simdjson create objects.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.buffers import bounds_and_bytes
from pipelines.contract.json_events import (
    FIELD_TWICE,
    FIELDS,
    ITEMS,
    KEY_TWICE,
    KEYS,
    NO_PROBLEM,
    PROBLEMS,
    UNKNOWN,
    locate_events,
)
from pipelines.contract.json_grammar import describe_fault
from pipelines.contract.json_text import read_strings
from pipelines.contract.metadata import has_repeated_key
from pipelines.contract.parsing import Parsed, parse_by_bisection, undecodable
from pipelines.contract.schema import EVENT
from pipelines.contract.times import read_times

_EXPECTED = "an event in JSON"


def parse_json(values: pa.Array) -> Parsed:
    """Decode a binary array of JSON values in UTF-8; nulls count as empty."""
    return parse_by_bisection(pc.fill_null(values.cast(pa.binary()), b""), _parse, _EXPECTED)


def _parse(values: pa.Array) -> Parsed:
    bounds, data = bounds_and_bytes(values)
    spans = locate_events(data, bounds)
    texts = [read_strings(data, *spans.fields[:, number]) for number in range(len(FIELDS))]
    keys, items, unknown = (read_strings(data, *spans.strings(part)) for part in (KEYS, ITEMS, UNKNOWN))
    entries, names = spans.bounds
    present = spans.fields[1, -1] > 0
    times = texts.pop() if present.all() else pc.if_else(pa.array(present), texts.pop(), None)
    event_times, invalid_times = read_times(times, "iso")
    columns = [*texts, event_times, pa.MapArray.from_arrays(pa.array(entries), keys, items)]
    problems = spans.problems
    problems[(problems == NO_PROBLEM) & has_repeated_key(entries, keys)] = KEY_TWICE
    problems[has_repeated_key(names, unknown)] = FIELD_TWICE
    errors = {row: f"timestamp: {error}" for row, error in invalid_times.items()}
    errors |= {row: PROBLEMS[problems[row]] for row in np.flatnonzero(problems != NO_PROBLEM).tolist()}
    errors |= {row: describe_fault(int(spans.faults[row])) for row in np.flatnonzero(spans.faults).tolist()}
    return Parsed(
        pa.table(columns, schema=EVENT), {row: undecodable(_EXPECTED, error) for row, error in errors.items()}
    )
