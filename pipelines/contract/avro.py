"""Avro values to Arrow columns, each array by the schema of the writer, whose fields are found by name.

Fields that the contract does not know are passed over, those that are absent are empty: older and newer writers are
understood alike. Schemas on the list of `writers.py` are read in bulk by `pyruhvro`; values of all others, and very
large ones, are decoded in a process of their own (`apart.py`), since a value may end or stall a decoder there.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

import json
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.resources import files
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.apart import REFUSED, Row, check_apart, decode_apart
from pipelines.contract.parsed import (
    GOES_THROUGH,
    Parsed,
    Problem,
    parse_by_halves,
    parse_in_parts,
    parse_others,
    plain_sentence,
    put_together,
    refused,
    undecodable,
)
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, METADATA, TIMESTAMP
from pipelines.contract.writers import bare, cells_in_bulk, choices, kind, read_schema
from pipelines.errors import ConfigurationError

OWN_SCHEMA = files("pipelines.contract").joinpath("event.avsc").read_text(encoding="utf-8")
_TEXT = {"string", "enum", "null"}
_FIELDS = {
    "event_id": _TEXT,
    "user_id": _TEXT,
    "action_type": _TEXT,
    "timestamp": {"timestamp-millis", "timestamp-micros", "timestamp-nanos", "null"},
    "metadata": {"map of string", "null"},
}
_WHAT = "an event by its writer's Avro schema"
BULK_BYTES, _BULK_CELLS = 4 * 1024 * 1024, 8_000_000
"""Of the values that are decoded together: bounds the memory of a decoder that fills every cell of every row."""
_INT64 = 2**63
_Parse = Callable[[pa.Array], Parsed]


def parse_avro(values: pa.Array, schema: str = OWN_SCHEMA) -> Parsed:
    """Decode an Arrow array of Avro values, without header or schema, that were written by `schema` (JSON).

    Raises ConfigurationError without the packages for Avro, TransientError when no process can be started.
    """
    parse = _parser(schema)
    return refused(len(values), parse) if isinstance(parse, Problem) else parse(pc.fill_null(values, b""))


@lru_cache(maxsize=256)
def _parser(schema: str) -> _Parse | Problem:
    """Return what decodes values written by `schema`, or why none of them is an event."""
    if not (find_spec("fastavro") and find_spec("pyruhvro")):
        raise ConfigurationError(
            "the topic holds Avro, which needs a package more: pip install 'karmalake[avro]'"
        ) from None
    try:
        return _parser_of(*event_fields(schema))
    except ValueError as error:
        return Problem(Reason.UNDECODABLE, plain_sentence(f"The writer's Avro schema is no event: {error}."))


def event_fields(text: str) -> tuple[dict[str, Any], list[str], set[str]]:
    """Return a writer's schema as `bare` leaves it, the event's fields in it, and the kinds of its timestamp.

    Raises ValueError for a schema whose values are no events.
    """
    definition, fields = read_schema(text)
    if "event_id" not in fields:  # of another topic; a writer may name each of thousands, and a parser takes time
        raise ValueError("it has no field event_id")
    for name, kinds in _FIELDS.items():
        if not all(kind(of) in kinds for of in choices(fields.get(name, "null"))):
            raise ValueError(f"its {name} is {json.dumps(fields[name])}, not {' or '.join(sorted(kinds - {'null'}))}")
    plain: dict[str, Any] = bare(definition)
    return plain, [name for name in _FIELDS if name in fields], set(map(kind, choices(fields.get("timestamp", "null"))))


def _parser_of(plain: dict[str, Any], names: list[str], time_kinds: set[str]) -> _Parse:
    apart = partial(parse_by_halves, parse=_apart(json.dumps(plain), names, time_kinds), what=_WHAT)
    cells = cells_in_bulk(plain)
    rows = _rows_in_bulk(json.dumps(plain), names, cells) if cells else None
    if cells is None or rows is None:
        check_apart(json.dumps(plain))
        return apart
    suspected = _suspected(plain, names, time_kinds)
    return partial(_by_size, in_bulk=_in_bulk(rows, time_kinds, _BULK_CELLS // cells, suspected), apart=apart)


def _by_size(values: pa.Array, *, in_bulk: _Parse, apart: _Parse) -> Parsed:
    """Decode values in bulk but for those that are larger than all that are decoded together."""
    large = pc.greater(pc.binary_length(values), BULK_BYTES)
    if not pc.any(large, min_count=0).as_py():
        return in_bulk(values)
    chosen = large.to_numpy(zero_copy_only=False)
    parts = [(~chosen, in_bulk), (chosen, apart)]
    return put_together([(np.flatnonzero(mask), parse(values.filter(pa.array(mask)))) for mask, parse in parts])


def _in_bulk(
    rows: Callable[[pa.Array], pa.Table], time_kinds: set[str], most_rows: int, suspected: Callable[[bytes], bool]
) -> _Parse:
    """Return what decodes values together, and where that fails without those that are refused alone.

    Only values that another reader refuses are tried alone: each attempt of `rows` costs as much as dozens in bulk.
    """

    def some(values: pa.Array) -> Parsed:
        return Parsed(_columns(rows(values), time_kinds), {})

    def by_halves(values: pa.Array) -> Parsed:
        return parse_by_halves(values, some, _WHAT)

    def refusal(value: pa.Array) -> Problem | None:
        try:
            some(value)
        except GOES_THROUGH:
            raise
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
            return undecodable(_WHAT, error)
        return None

    def parse(values: pa.Array) -> Parsed:
        try:
            return some(values)
        except GOES_THROUGH:
            raise
        except BaseException:  # noqa: BLE001 - a Rust panic is no Exception
            suspects = [row for row, value in enumerate(values.to_pylist()) if suspected(value)]
            alone = {row: refusal(values.slice(row, 1)) for row in suspects}
            return parse_others(values, {row: why for row, why in alone.items() if why}, by_halves)

    return partial(parse_in_parts, parse=parse, most_bytes=BULK_BYTES, most_rows=most_rows)


def _suspected(schema: dict[str, Any], names: list[str], time_kinds: set[str]) -> Callable[[bytes], bool]:
    """Return what says of a value, by a schema of the list, whether it may be no event; it decides nothing."""
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra

    parsed = parse_schema(schema)

    def is_suspected(value: bytes) -> bool:
        try:
            found: Any = schemaless_reader(BytesIO(value), parsed, None)
            return isinstance(_event(names, [found[name] for name in names], time_kinds), str)
        except Exception:  # noqa: BLE001 - the package raises whatever it meets in a value that is none
            return True

    return is_suspected


def _rows_in_bulk(text: str, names: list[str], cells: int) -> Callable[[pa.Array], pa.Table] | None:
    """Return what decodes an array to columns; None where the package does not take the schema after all.

    It is tried once: on nothing, and on zeros, which are a value of every schema.
    """
    from pyruhvro import deserialize_array  # noqa: PLC0415 - an extra

    def rows(values: pa.Array) -> pa.Table:
        found = pa.Table.from_batches([deserialize_array(values.to_pylist(), text)]).select(names)
        found.validate(full=True)  # the package does not look whether a text is UTF-8
        return found

    try:
        for tried in ([], [bytes(16 * cells)]):
            _columns(rows(pa.array(tried, pa.binary())), set())
    except GOES_THROUGH:
        raise
    except BaseException:  # noqa: BLE001 - a Rust panic is no Exception
        return None
    return rows


def _apart(text: str, names: list[str], time_kinds: set[str]) -> _Parse:
    """Return what decodes values one by one in a process of their own."""

    def parse(values: pa.Array) -> Parsed:
        outcomes = decode_apart(text, names, values.to_pylist())
        outcomes = [_event(names, outcome, time_kinds) for outcome in outcomes]
        errors = {row: _blame(outcome) for row, outcome in enumerate(outcomes) if isinstance(outcome, str)}
        rows = [None if isinstance(outcome, str) else outcome for outcome in outcomes]
        columns = [pa.array([row and row[name] for row in rows], EVENT.field(name).type) for name in EVENT.names]
        return Parsed(pa.table(columns, schema=EVENT), errors)

    return parse


def _blame(predicate: str) -> Problem:
    return Problem(Reason.UNDECODABLE, plain_sentence(f"The value {predicate.rstrip('.')}."))


def _event(names: list[str], outcome: Row | str, time_kinds: set[str]) -> dict[str, Any] | str:
    """Return the fields of an event by name, or what is wrong with them."""
    if isinstance(outcome, str):
        return outcome
    found = dict(zip(names, outcome, strict=True))
    time = _microseconds(found.get("timestamp"), time_kinds)
    if time is not None and not -_INT64 <= time < _INT64:
        return f"{REFUSED} its timestamp is out of range"
    texts = {name: found.get(name) or "" for name in ("event_id", "user_id", "action_type")}
    return texts | {"event_time": time, "metadata": list((found.get("metadata") or {}).items())}


def _microseconds(time: int | None, kinds: set[str]) -> int | None:
    if time is None:
        return None
    return time * 1_000 if "timestamp-millis" in kinds else time // 1_000 if "timestamp-nanos" in kinds else time


def _columns(rows: pa.Table, time_kinds: set[str]) -> pa.Table:
    """Return EVENT columns of rows that may lack some; raises ValueError for a time that no calendar holds."""

    def column(name: str, of: pa.DataType, blank: Any) -> pa.Array:
        if name not in rows.column_names:
            return pa.repeat(pa.scalar(blank, of), len(rows))
        return pc.fill_null(rows[name].combine_chunks().cast(of), pa.scalar(blank, of))

    texts = [column(name, pa.string(), "") for name in ("event_id", "user_id", "action_type")]
    times = column("timestamp", pa.int64(), None)
    return pa.table(
        [*texts, _event_times(times, time_kinds), column("metadata", METADATA, [])],
        schema=EVENT,
    )


def _event_times(times: pa.Array, kinds: set[str]) -> pa.Array:
    """Return counts since 1970 as TIMESTAMP, cut to whole microseconds."""
    if "timestamp-millis" in kinds:
        times = pc.multiply_checked(times, 1_000)
    if "timestamp-nanos" in kinds:
        whole = pc.fill_null(times, 0).to_numpy() // 1_000
        times = pa.array(whole, mask=pc.is_null(times).to_numpy(zero_copy_only=False))
    return times.cast(TIMESTAMP)
