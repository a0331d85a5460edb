"""Bulk decoding of JSON objects to Arrow columns, with DuckDB.

A value is an object with the fields of the contract: four strings, one of them `timestamp` in the format of RFC 3339,
and `metadata`, an object of strings. Unknown fields are ignored. Types are not coerced: a number is not a string.
`json_grammar.py` validates the syntax, since DuckDB accepts more than JSON.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from functools import partial
from importlib.resources import files

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.json_grammar import find_json_faults
from pipelines.contract.parsing import Parsed, parse_by_bisection, parse_in_chunks, parse_remaining, undecodable
from pipelines.contract.schema import EVENT, METADATA
from pipelines.contract.times import read_times

_SELECT_FIELDS = files("pipelines.contract").joinpath("json.sql").read_text(encoding="utf-8")
_EXPECTED = "an event in JSON"
_CHUNK_BYTES = 8 * 1024 * 1024
"""The approximate size of the values parsed together: DuckDB needs up to 100 bytes of memory per byte."""
_DUCKDB_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "2GB",
    "temp_directory": "",
}
"""A value that needs more memory is undecodable: about 10 MB of brackets and numbers, or 80 MB of text."""


def parse_json(values: pa.Array) -> Parsed:
    """Decode a binary array of JSON values in UTF-8; nulls count as empty."""
    values = pc.fill_null(values.cast(pa.binary()), b"")
    faults = {row: undecodable(_EXPECTED, fault) for row, fault in find_json_faults(values).items()}
    return parse_remaining(values, faults, _parse_valid) if faults else _parse_valid(values)


def _parse_valid(values: pa.Array) -> Parsed:
    return parse_in_chunks(values, partial(parse_by_bisection, parse=_parse, expected=_EXPECTED), _CHUNK_BYTES)


def _parse(values: pa.Array) -> Parsed:
    input_rows = pa.table({"row": np.arange(len(values)), "value": values})
    with duckdb.connect(config=_DUCKDB_CONFIG) as connection:
        connection.register("input_rows", input_rows)
        fields = connection.sql(_SELECT_FIELDS).to_arrow_table().combine_chunks()
    event_times, invalid_times = read_times(fields["timestamp"].combine_chunks(), "iso")
    columns = {
        "event_id": fields["event_id"].fill_null(""),
        "user_id": fields["user_id"].fill_null(""),
        "action_type": fields["action_type"].fill_null(""),
        "event_time": event_times,
        "metadata": pc.fill_null(fields["metadata"].combine_chunks(), pa.scalar([], METADATA)),
    }
    problems = {row: f"timestamp: {error}" for row, error in invalid_times.items()}
    problems |= {row: problem for row, problem in enumerate(fields["problem"].to_pylist()) if problem}
    errors = {row: undecodable(_EXPECTED, problem) for row, problem in problems.items()}
    return Parsed(pa.table([columns[name] for name in EVENT.names], schema=EVENT), errors)
