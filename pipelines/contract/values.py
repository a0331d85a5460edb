"""Values of records to Arrow columns, whatever they are written in: bare, or by the schema that their record names."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.avro import parse_avro
from pipelines.contract.json import parse_json
from pipelines.contract.parsed import Parsed, Problem, put_together
from pipelines.contract.protobuf import parse_protobuf
from pipelines.contract.registry import WriterSchema
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT
from pipelines.contract.schema_ids import PREFIX_BYTES, Naming, SchemaId, namings_of
from pipelines.contract.schemas import Found, Schemas, schemas_of
from pipelines.settings import ContractSettings

_LONGEST = 2**31 - 1
_PARSERS = {"protobuf": parse_protobuf, "avro": parse_avro, "json": parse_json}
_FIRST_MESSAGE = (b"\x00", b"\x02\x00")
"""How Protobuf values name the message of the schema that they are: the first one, in short and in full."""
_ANOTHER_MESSAGE = Problem(Reason.UNDECODABLE, "The value is another message than the first of its schema.")
_GLUE = (b"\x03\x00", b"\x03\x05")
"""How values begin that name a schema of AWS Glue: its version, and whether they are compressed."""


def parse_values(values: pa.Array, contract: ContractSettings, headers: pa.Array | None = None) -> Parsed:
    """Decode an Arrow array of values, nulls counting as blank, whose records have these headers (HEADERS).

    Raises what `Schemas.get_all` raises.
    """
    places, namings = namings_of(values, headers)
    if not namings:
        return _parse_bare(values, contract)
    found = find_schemas(namings, np.bincount(places[places >= 0], minlength=len(namings)).tolist(), contract)
    return put_together(list(_by_schema(values, places, list(zip(namings, found, strict=True)), contract)))


def find_schemas(namings: Sequence[Naming], records: Sequence[int], contract: ContractSettings) -> list[Found | None]:
    """Return the schema that each naming names, or why it cannot be used; None where the value is to be read as bare.

    `records` says how many values have each naming. A header that cannot be looked up is passed over where values
    name their fields themselves, in Protobuf and JSON; by an Avro schema that is not its own nothing is ever read.
    """
    schemas = schemas_of(contract)
    followed = [_is_followed(naming, schemas, contract) for naming in namings]
    wanted: Counter[SchemaId] = Counter()
    for naming, count, follow in zip(namings, records, followed, strict=True):
        if follow and count and isinstance(naming.schema, SchemaId):
            wanted[naming.schema] += count
    found = schemas.get_all(wanted)
    return [_found(naming, found) if follow else None for naming, follow in zip(namings, followed, strict=True)]


def _is_followed(naming: Naming, schemas: Schemas, contract: ContractSettings) -> bool:
    if naming.header is None or contract.format == "avro":
        return True
    return isinstance(naming.schema, SchemaId) and schemas.can_have(naming.schema)


def _found(naming: Naming, found: dict[SchemaId, Found]) -> Found | None:
    if not isinstance(naming.schema, SchemaId):
        return Problem(Reason.UNKNOWN_SCHEMA, f"The record's header {naming.header} {naming.schema.why}.")
    schema = found.get(naming.schema)
    if isinstance(schema, Problem) and naming.header is not None:
        return Problem(schema.reason, f"{schema.sentence} Its header {naming.header} names it.")
    return schema


def _by_schema(
    values: pa.Array, places: np.ndarray, schemas: list[tuple[Naming, Found | None]], contract: ContractSettings
) -> Iterator[tuple[np.ndarray, Parsed]]:
    problems = {place: found for place, (_, found) in enumerate(schemas) if isinstance(found, Problem)}
    refused = np.flatnonzero(np.isin(places, list(problems)))
    yield refused, _refused([problems[place] for place in places[refused].tolist()])
    for place in set(np.unique(places).tolist()) - problems.keys():
        rows = np.flatnonzero(places == place)
        mine = values.take(pa.array(rows))
        naming, schema = schemas[place] if place >= 0 else (None, None)
        yield rows, _parse(mine, naming, schema, contract)


def _parse(values: pa.Array, naming: Naming | None, schema: Found | None, contract: ContractSettings) -> Parsed:
    if naming is None:
        return _parse_bare(values, contract)
    form = schema.format if isinstance(schema, WriterSchema) else contract.format
    if naming.header is None:
        values = _behind(values, PREFIX_BYTES)
    elif naming.indexes not in {b"", *_FIRST_MESSAGE}:
        return _refused([_ANOTHER_MESSAGE] * len(values))
    match schema, form:
        case WriterSchema(), "avro":
            return parse_avro(values, schema.text)
        case WriterSchema(), "protobuf" if naming.header is None:
            return _parse_message(values)
        case _:
            return _PARSERS[form](values)


def _parse_bare(values: pa.Array, contract: ContractSettings) -> Parsed:
    parsed = _PARSERS[contract.format](values)
    return parsed if not parsed.errors else Parsed(parsed.events, parsed.errors | _of_glue(values, list(parsed.errors)))


def _of_glue(values: pa.Array, rows: list[int]) -> dict[int, Problem]:
    """Return what is said of those among undecodable values that name a schema of AWS Glue."""
    begins = pc.binary_slice(values.take(pa.array(rows)), 0, 2)
    found = pc.indices_nonzero(pc.is_in(begins, value_set=pa.array(_GLUE))).to_pylist()
    sentence = "The value names a schema of AWS Glue, which cannot be looked up."
    return {rows[place]: Problem(Reason.UNKNOWN_SCHEMA, sentence) for place in found}


def _parse_message(values: pa.Array) -> Parsed:
    """Decode Protobuf values that name their message, which has to be the first of the schema, before their fields."""
    short, full = (pc.starts_with(values, prefix) for prefix in _FIRST_MESSAGE)
    first = pc.or_(short, full)
    fields = _behind(values, 1)
    parsed = parse_protobuf(pc.if_else(first, pc.if_else(short, fields, _behind(values, 2)), b""))
    others = np.flatnonzero(~first.to_numpy(zero_copy_only=False))
    return Parsed(parsed.events, parsed.errors | dict.fromkeys(others.tolist(), _ANOTHER_MESSAGE))


def _behind(values: pa.Array, count: int) -> pa.Array:
    """Return values without their first bytes."""
    return pc.binary_slice(values, count, _LONGEST)  # without an end pyarrow 26 refuses


def _refused(problems: list[Problem]) -> Parsed:
    return Parsed(EVENT.empty_table().take(pa.nulls(len(problems), pa.int64())), dict(enumerate(problems)))
