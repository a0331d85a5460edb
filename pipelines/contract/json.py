"""JSON objects to Arrow columns, in bulk, by DuckDB.

A value is an object with the contract's names: four strings, `timestamp` as RFC 3339 has it, and `metadata`, an object
of strings. Fields of a newer writer are passed over. Nothing is guessed: a number is not taken for a string. What JSON
is at all is decided by `json_grammar.py`, since DuckDB takes more.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from functools import partial
from importlib.resources import files

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.json_grammar import find_json_faults
from pipelines.contract.parsed import Parsed, parse_by_halves, parse_in_parts, parse_others, undecodable
from pipelines.contract.schema import EVENT, METADATA
from pipelines.contract.times import read_times

_FIELDS = files("pipelines.contract").joinpath("json.sql").read_text(encoding="utf-8")
_WHAT = "an event in JSON"
_SLICE_BYTES = 8 * 1024 * 1024
"""Of the values that are read together, about: DuckDB takes up to a hundred bytes for one of theirs."""
_LIMITS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "2GB",
    "temp_directory": "",
}
"""A value that takes more memory is no event: over about 10 MB of brackets and numbers, or 80 MB of text."""


def parse_json(values: pa.Array) -> Parsed:
    """Decode an Arrow array of JSON texts in UTF-8."""
    values = pc.fill_null(values.cast(pa.binary()), b"")
    faults = {row: undecodable(_WHAT, why) for row, why in find_json_faults(values).items()}
    return parse_others(values, faults, _parse_others) if faults else _parse_others(values)


def _parse_others(values: pa.Array) -> Parsed:
    return parse_in_parts(values, partial(parse_by_halves, parse=_parse, what=_WHAT), _SLICE_BYTES)


def _parse(values: pa.Array) -> Parsed:
    given = pa.table({"row": np.arange(len(values)), "value": values})
    with duckdb.connect(config=_LIMITS) as connection:
        connection.register("given", given)
        fields = connection.sql(_FIELDS).to_arrow_table().combine_chunks()
    event_times, unreadable = read_times(fields["timestamp"].combine_chunks(), "iso")
    columns = {
        "event_id": fields["event_id"].fill_null(""),
        "user_id": fields["user_id"].fill_null(""),
        "action_type": fields["action_type"].fill_null(""),
        "event_time": event_times,
        "metadata": pc.fill_null(fields["metadata"].combine_chunks(), pa.scalar([], METADATA)),
    }
    problems = {row: f"timestamp: {why}" for row, why in unreadable.items()}
    problems |= {row: why for row, why in enumerate(fields["problem"].to_pylist()) if why}
    errors = {row: undecodable(_WHAT, why) for row, why in problems.items()}
    return Parsed(pa.table([columns[name] for name in EVENT.names], schema=EVENT), errors)
