"""Values of records to Arrow columns, whatever they are written in: bare, or with a schema id before them.

A value with a schema id starts with a zero byte and the id in four bytes, as the registries of Confluent, Karapace,
Apicurio and Redpanda have it. No value of Protobuf or JSON starts with a zero byte; in bare Avro it means an empty
event_id, which is none.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.avro import parse_avro
from pipelines.contract.json import parse_json
from pipelines.contract.parsed import Parsed, Problem, put_together
from pipelines.contract.protobuf import parse_protobuf
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT
from pipelines.contract.schemas import WriterSchema, schemas_of
from pipelines.settings import ContractSettings

_PREFIX_BYTES = 5
_BARE = -1
_LONGEST = 2**31 - 1
_PARSERS = {"protobuf": parse_protobuf, "avro": parse_avro, "json": parse_json}
_FIRST_MESSAGE = (b"\x00", b"\x02\x00")
"""How Protobuf values name the message of the schema that they are: the first one, in short and in full."""


def parse_values(values: pa.Array, contract: ContractSettings) -> Parsed:
    """Decode an Arrow array of values, nulls counting as blank. Raises what `Schemas.get` raises."""
    ids = _schema_ids(values)
    if not (ids != _BARE).any():
        return _PARSERS[contract.format](values)
    return put_together(list(_by_schema(values, ids, contract)))


def _schema_ids(values: pa.Array) -> np.ndarray:
    """Return the schema id of each value, or _BARE."""
    ids = np.full(len(values), _BARE, np.int64)
    starts = pc.binary_slice(values, 0, 1)
    framed = pc.and_(pc.equal(starts, b"\x00"), pc.greater(pc.binary_length(values), _PREFIX_BYTES - 1))
    rows = np.flatnonzero(pc.fill_null(framed, fill_value=False).to_numpy(zero_copy_only=False))
    if len(rows):
        prefixes = pc.binary_slice(values.take(pa.array(rows)), 1, _PREFIX_BYTES).to_pylist()
        ids[rows] = np.frombuffer(b"".join(prefixes), ">u4")
    return ids


def _by_schema(values: pa.Array, ids: np.ndarray, contract: ContractSettings) -> Iterator[tuple[np.ndarray, Parsed]]:
    for schema_id in np.unique(ids):
        rows = np.flatnonzero(ids == schema_id)
        mine = values.take(pa.array(rows))
        if schema_id == _BARE:
            yield rows, _PARSERS[contract.format](mine)
        else:
            yield rows, _parse(_behind(mine, _PREFIX_BYTES), int(schema_id), contract)


def _parse(values: pa.Array, schema_id: int, contract: ContractSettings) -> Parsed:
    schema = schemas_of(contract).get(schema_id)
    if schema is None:
        where = "in contract.schemas_dir or at contract.schema_registry_url"
        sentence = f"The value was written by schema {schema_id}, which is not {where}."
        return _refused(len(values), Problem(Reason.UNKNOWN_SCHEMA, sentence))
    return _parse_by(schema, values)


def _parse_by(schema: WriterSchema, values: pa.Array) -> Parsed:
    match schema.format:
        case "avro":
            return parse_avro(values, schema.text)
        case "json":
            return parse_json(values)
        case "protobuf":
            return _parse_message(values)


def _parse_message(values: pa.Array) -> Parsed:
    """Decode Protobuf values that name their message, which has to be the first of the schema, before their fields."""
    short, full = (pc.starts_with(values, prefix) for prefix in _FIRST_MESSAGE)
    first = pc.or_(short, full)
    fields = _behind(values, 1)
    parsed = parse_protobuf(pc.if_else(first, pc.if_else(short, fields, _behind(values, 2)), b""))
    sentence = "The value is another message than the first of its schema."
    others = np.flatnonzero(~first.to_numpy(zero_copy_only=False))
    return Parsed(parsed.events, parsed.errors | dict.fromkeys(others.tolist(), Problem(Reason.UNDECODABLE, sentence)))


def _behind(values: pa.Array, count: int) -> pa.Array:
    """Return values without their first bytes."""
    return pc.binary_slice(values, count, _LONGEST)  # without an end pyarrow 26 refuses


def _refused(count: int, problem: Problem) -> Parsed:
    return Parsed(EVENT.empty_table().take(pa.nulls(count, pa.int64())), dict.fromkeys(range(count), problem))
