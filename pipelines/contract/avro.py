"""Decoding of Avro values to Arrow columns, by the schema of their writer; fields are matched by name.

Fields that are not in the contract are ignored, absent ones are empty, so older and newer writers are both supported.
Schemas on the allowlist of `avro_schema.py` are decoded in bulk by `pyruhvro`; values of all others, and very large
values, are decoded in a sandbox process (`avro_sandbox.py`), since they may crash or stall a decoder.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import json
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.boundary.extras import require_extra
from pipelines.contract.avro_sandbox import DECODE_ERROR_PREFIX, Row, check_schema_sandboxed, decode_sandboxed
from pipelines.contract.avro_schema import branches, bulk_cells_per_row, read_schema, strip_annotations, type_name
from pipelines.contract.parsing import (
    Parsed,
    Problem,
    is_propagated,
    merge_parts,
    parse_by_bisection,
    parse_in_chunks,
    parse_remaining,
    reject_all,
    sanitize_message,
    undecodable,
)
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, METADATA, TIMESTAMP

OWN_SCHEMA = files("pipelines.contract").joinpath("event.avsc").read_text(encoding="utf-8")
_STRING_TYPES = {"string", "enum", "null"}
_FIELD_TYPES = {
    "event_id": _STRING_TYPES,
    "user_id": _STRING_TYPES,
    "action_type": _STRING_TYPES,
    "timestamp": {"timestamp-millis", "timestamp-micros", "timestamp-nanos", "null"},
    "metadata": {"map of string", "null"},
}
_EXPECTED = "an event by its writer's Avro schema"
BULK_BYTES, _BULK_CELLS = 4 * 1024 * 1024, 8_000_000
"""The limits of values that are decoded together: they bound the memory of a decoder that allocates every cell."""
_INT64 = 2**63
_Parse = Callable[[pa.Array], Parsed]


def parse_avro(values: pa.Array, schema: str = OWN_SCHEMA) -> Parsed:
    """Decode a binary array of Avro values without header, which were written with `schema` (JSON).

    Raises ConfigurationError if the Avro packages are missing, TransientError if no sandbox process can be started.
    """
    parse = _parser(schema)
    return reject_all(len(values), parse) if isinstance(parse, Problem) else parse(pc.fill_null(values, b""))


@lru_cache(maxsize=256)
def _parser(schema: str) -> _Parse | Problem:
    """Return the parser of values written with `schema`, or why none of them is an event."""
    require_extra("avro", "a topic that contains Avro")
    try:
        return _parser_of(*event_fields(schema))
    except ValueError as error:
        return Problem(
            Reason.UNDECODABLE, sanitize_message(f"The writer's Avro schema does not describe an event: {error}.")
        )


def event_fields(text: str) -> tuple[dict[str, Any], list[str], set[str]]:
    """Return a schema without annotations, the names of the event's fields in it, and the types of its timestamp.

    Raises ValueError for a schema whose values are not events.
    """
    definition, fields = read_schema(text)
    # Schemas of other topics are refused before a parser is built: a writer may send thousands of schema ids.
    if "event_id" not in fields:
        raise ValueError("it has no field event_id")
    for name, kinds in _FIELD_TYPES.items():
        if not all(type_name(branch) in kinds for branch in branches(fields.get(name, "null"))):
            raise ValueError(f"its {name} is {json.dumps(fields[name])}, not {' or '.join(sorted(kinds - {'null'}))}")
    plain: dict[str, Any] = strip_annotations(definition)
    return (
        plain,
        [name for name in _FIELD_TYPES if name in fields],
        set(map(type_name, branches(fields.get("timestamp", "null")))),
    )


def _parser_of(plain: dict[str, Any], names: list[str], time_types: set[str]) -> _Parse:
    sandboxed = partial(parse_by_bisection, parse=_sandboxed(json.dumps(plain), names, time_types), expected=_EXPECTED)
    cells = bulk_cells_per_row(plain)
    rows = _rows_in_bulk(json.dumps(plain), names, cells) if cells else None
    if cells is None or rows is None:
        check_schema_sandboxed(json.dumps(plain))
        return sandboxed
    is_suspect = _suspect_filter(plain, names, time_types)
    return partial(_by_size, in_bulk=_in_bulk(rows, time_types, _BULK_CELLS // cells, is_suspect), sandboxed=sandboxed)


def _by_size(values: pa.Array, *, in_bulk: _Parse, sandboxed: _Parse) -> Parsed:
    """Decode values in bulk, except values that exceed BULK_BYTES on their own."""
    oversized = pc.greater(pc.binary_length(values), BULK_BYTES)
    if not pc.any(oversized, min_count=0).as_py():
        return in_bulk(values)
    large = oversized.to_numpy(zero_copy_only=False)
    parts = [(~large, in_bulk), (large, sandboxed)]
    return merge_parts([(np.flatnonzero(mask), parse(values.filter(pa.array(mask)))) for mask, parse in parts])


def _in_bulk(
    rows: Callable[[pa.Array], pa.Table], time_types: set[str], max_rows: int, is_suspect: Callable[[bytes], bool]
) -> _Parse:
    """Return a parser that decodes values together; if that fails, it leaves out the values that fail on their own.

    Only values that a second reader suspects are decoded on their own, which costs as much as dozens in bulk.
    """

    def parse_all(values: pa.Array) -> Parsed:
        return Parsed(_columns(rows(values), time_types), {})

    def by_bisection(values: pa.Array) -> Parsed:
        return parse_by_bisection(values, parse_all, _EXPECTED)

    def problem_of(value: pa.Array) -> Problem | None:
        try:
            parse_all(value)
        except BaseException as error:  # a Rust panic is not an Exception
            if is_propagated(error):
                raise
            return undecodable(_EXPECTED, error)
        return None

    def parse(values: pa.Array) -> Parsed:
        try:
            return parse_all(values)
        except BaseException as error:  # a Rust panic is not an Exception
            if is_propagated(error):
                raise
            suspects = [row for row, value in enumerate(values.to_pylist()) if is_suspect(value)]
            problems = {row: problem_of(values.slice(row, 1)) for row in suspects}
            return parse_remaining(values, {row: found for row, found in problems.items() if found}, by_bisection)

    return partial(parse_in_chunks, parse=parse, max_bytes=BULK_BYTES, max_rows=max_rows)


def _suspect_filter(schema: dict[str, Any], names: list[str], time_types: set[str]) -> Callable[[bytes], bool]:
    """Return a filter for values that may not be events; it only selects which values are decoded on their own."""
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra, which `_parser` requires

    parsed = parse_schema(schema)

    def is_suspect(value: bytes) -> bool:
        try:
            found: Any = schemaless_reader(BytesIO(value), parsed, None)
            return isinstance(_event(names, [found[name] for name in names], time_types), str)
        except Exception:  # noqa: BLE001 - an invalid value may make the package raise anything
            return True

    return is_suspect


def _rows_in_bulk(text: str, names: list[str], cells: int) -> Callable[[pa.Array], pa.Table] | None:
    """Return a function that decodes an array to columns; None if the package does not support the schema.

    The schema is tested with no values, and with zeros, which are a value of every schema.
    """
    from pyruhvro import deserialize_array  # noqa: PLC0415 - an extra, which `_parser` requires

    def rows(values: pa.Array) -> pa.Table:
        found = pa.Table.from_batches([deserialize_array(values.to_pylist(), text)]).select(names)
        found.validate(full=True)  # the package does not check that strings are UTF-8
        return found

    try:
        for sample in ([], [bytes(16 * cells)]):
            _columns(rows(pa.array(sample, pa.binary())), set())
    except BaseException as error:  # a Rust panic is not an Exception
        if is_propagated(error):
            raise
        return None
    return rows


def _sandboxed(text: str, names: list[str], time_types: set[str]) -> _Parse:
    """Return a parser that decodes values one by one in the sandbox process."""

    def parse(values: pa.Array) -> Parsed:
        outcomes = decode_sandboxed(text, names, values.to_pylist())
        outcomes = [_event(names, outcome, time_types) for outcome in outcomes]
        errors = {row: _problem(outcome) for row, outcome in enumerate(outcomes) if isinstance(outcome, str)}
        rows = [None if isinstance(outcome, str) else outcome for outcome in outcomes]
        columns = [pa.array([row and row[name] for row in rows], EVENT.field(name).type) for name in EVENT.names]
        return Parsed(pa.table(columns, schema=EVENT), errors)

    return parse


def _problem(predicate: str) -> Problem:
    return Problem(Reason.UNDECODABLE, sanitize_message(f"The value {predicate.rstrip('.')}."))


def _event(names: list[str], outcome: Row | str, time_types: set[str]) -> dict[str, Any] | str:
    """Return the fields of an event by name, or the error as the predicate of a sentence."""
    if isinstance(outcome, str):
        return outcome
    found = dict(zip(names, outcome, strict=True))
    time = _microseconds(found.get("timestamp"), time_types)
    if time is not None and not -_INT64 <= time < _INT64:
        return f"{DECODE_ERROR_PREFIX} its timestamp is out of range"
    texts = {name: found.get(name) or "" for name in ("event_id", "user_id", "action_type")}
    return texts | {"event_time": time, "metadata": list((found.get("metadata") or {}).items())}


def _microseconds(time: int | None, types: set[str]) -> int | None:
    if time is None:
        return None
    return time * 1_000 if "timestamp-millis" in types else time // 1_000 if "timestamp-nanos" in types else time


def _columns(rows: pa.Table, time_types: set[str]) -> pa.Table:
    """Return the EVENT columns of rows that may lack some. Raises ValueError for a timestamp out of range."""

    def column(name: str, data_type: pa.DataType, default: Any) -> pa.Array:
        if name not in rows.column_names:
            return pa.array([default], data_type).take(pa.array(np.zeros(len(rows), np.int64)))
        return pc.fill_null(rows[name].combine_chunks().cast(data_type), pa.scalar(default, data_type))

    texts = [column(name, pa.string(), "") for name in ("event_id", "user_id", "action_type")]
    times = column("timestamp", pa.int64(), None)
    return pa.table(
        [*texts, _event_times(times, time_types), column("metadata", METADATA, [])],
        schema=EVENT,
    )


def _event_times(times: pa.Array, types: set[str]) -> pa.Array:
    """Return counts since 1970 (int64) as TIMESTAMP, truncated to whole microseconds."""
    if "timestamp-millis" in types:
        times = pc.multiply_checked(times, 1_000)
    if "timestamp-nanos" in types:
        whole = pc.fill_null(times, 0).to_numpy() // 1_000
        times = pa.array(whole, mask=pc.is_null(times).to_numpy(zero_copy_only=False))
    return times.cast(TIMESTAMP)
