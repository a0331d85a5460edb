"""Decoding of record values in every format: bare values, and values with a reference to their writer's schema."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.avro import parse_avro
from pipelines.contract.json import parse_json
from pipelines.contract.parsing import Parsed, Problem, merge_parts
from pipelines.contract.protobuf import parse_protobuf
from pipelines.contract.registry import WriterSchema
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT
from pipelines.contract.schema_ids import PREFIX_BYTES, SchemaId, SchemaReference, schema_references
from pipelines.contract.schemas import LookupResult, SchemaStore, open_schema_store
from pipelines.settings import ContractSettings, Format

_MAX_INT32 = 2**31 - 1
_PARSERS = {"protobuf": parse_protobuf, "avro": parse_avro, "json": parse_json}
_FIRST_MESSAGE = (b"\x00", b"\x02\x00")
"""The message indexes that refer to the first message of a Protobuf schema: the short and the full form."""
_NOT_FIRST_MESSAGE = Problem(Reason.UNDECODABLE, "The value is not the first message of its schema.")
_GLUE = (b"\x03\x00", b"\x03\x05")
"""The first bytes of values with a schema id of AWS Glue: header version and compression."""


def parse_values(values: pa.Array, contract: ContractSettings, headers: pa.Array | None = None) -> Parsed:
    """Decode a binary array of record values; nulls count as empty. `headers` (HEADERS) are those of the records.

    Raises ConfigurationError and TransientError as `SchemaStore.get_all` does.
    """
    codes, references = schema_references(values, headers)
    if not references:
        return _parse_bare(values, contract)
    counts = np.bincount(codes[codes >= 0], minlength=len(references)).tolist()
    found = find_schemas(references, counts, contract)
    return merge_parts(list(_by_schema(values, codes, list(zip(references, found, strict=True)), contract)))


def find_schemas(
    references: Sequence[SchemaReference], counts: Sequence[int], contract: ContractSettings
) -> list[LookupResult | None]:
    """Return the schema of each reference, or the problem; None where the value is decoded without a schema.

    `counts` is the number of values with each reference. A header that cannot be resolved is ignored for Protobuf and
    JSON, whose values identify their fields; an Avro value is decoded only with its writer's schema.
    """
    schemas = open_schema_store(contract)
    resolved = [_must_resolve(reference, schemas, contract) for reference in references]
    wanted: Counter[SchemaId] = Counter()
    for reference, count, resolve in zip(references, counts, resolved, strict=True):
        if resolve and count and isinstance(reference.schema, SchemaId):
            wanted[reference.schema] += count
    found = schemas.get_all(wanted)
    pairs = zip(references, resolved, strict=True)
    return [_result(reference, found) if resolve else None for reference, resolve in pairs]


def _must_resolve(reference: SchemaReference, schemas: SchemaStore, contract: ContractSettings) -> bool:
    """Return whether the schema of a reference is looked up; a header is ignored if its values can do without."""
    if reference.header is None or contract.format == "avro":
        return True
    return isinstance(reference.schema, SchemaId) and schemas.can_look_up(reference.schema)


def _result(reference: SchemaReference, found: dict[SchemaId, LookupResult]) -> LookupResult | None:
    if not isinstance(reference.schema, SchemaId):
        return Problem(Reason.UNKNOWN_SCHEMA, f"The record's header {reference.header} {reference.schema.problem}.")
    schema = found.get(reference.schema)
    if isinstance(schema, Problem) and reference.header is not None:
        return Problem(schema.reason, f"{schema.detail} Its header {reference.header} names it.")
    return schema


def _by_schema(
    values: pa.Array,
    codes: np.ndarray,
    schemas: list[tuple[SchemaReference, LookupResult | None]],
    contract: ContractSettings,
) -> Iterator[tuple[np.ndarray, Parsed]]:
    """Yield (rows, result) for the values of each schema; `codes` (int64, one a value) index `schemas`, -1 is none."""
    problems = {code: found for code, (_, found) in enumerate(schemas) if isinstance(found, Problem)}
    rejected = np.flatnonzero(np.isin(codes, list(problems)))
    yield rejected, _reject([problems[code] for code in codes[rejected].tolist()])
    for code in set(np.unique(codes).tolist()) - problems.keys():
        rows = np.flatnonzero(codes == code)
        reference, schema = schemas[code] if code >= 0 else (None, None)
        yield rows, _parse(values.take(pa.array(rows)), reference, schema, contract)


def _parse(
    values: pa.Array, reference: SchemaReference | None, schema: LookupResult | None, contract: ContractSettings
) -> Parsed:
    if reference is None:
        return _parse_bare(values, contract)
    form = schema.format if isinstance(schema, WriterSchema) else contract.format
    if reference.header is None:
        values = _without_prefix(values, PREFIX_BYTES)
    elif reference.indexes not in {b"", *_FIRST_MESSAGE}:
        return _reject([_NOT_FIRST_MESSAGE] * len(values))
    match schema, form:
        case WriterSchema(), "avro":
            return parse_avro(values, schema.text)
        case WriterSchema(), "protobuf" if reference.header is None:
            return _parse_message(values)
        case _:
            return _PARSERS[form](values)


def _parse_bare(values: pa.Array, contract: ContractSettings) -> Parsed:
    parsed = _PARSERS[contract.format](values)
    if not (rows := list(parsed.errors)):
        return parsed
    recognized = _glue_problems(values, rows) | _json_problems(values, rows, contract.format)
    return Parsed(parsed.events, parsed.errors | recognized)


def _glue_problems(values: pa.Array, rows: list[int]) -> dict[int, Problem]:
    """Return by row the problem of those undecodable values that have a schema id of AWS Glue."""
    prefixes = pc.binary_slice(values.take(pa.array(rows)), 0, 2)
    found = pc.indices_nonzero(pc.is_in(prefixes, value_set=pa.array(_GLUE))).to_pylist()
    detail = "The value names a schema of AWS Glue, which cannot be looked up."
    return {rows[index]: Problem(Reason.UNKNOWN_SCHEMA, detail) for index in found}


def _json_problems(values: pa.Array, rows: list[int], form: Format) -> dict[int, Problem]:
    """Return by row the problem of those undecodable values that may be JSON, if that is not the format."""
    if form == "json":
        return {}
    problem = Problem(Reason.UNDECODABLE, f"The value begins like JSON, but contract.format is {form}.")
    found = pc.indices_nonzero(pc.starts_with(values.take(pa.array(rows)), b"{")).to_pylist()
    return {rows[index]: problem for index in found}


def _parse_message(values: pa.Array) -> Parsed:
    """Decode Protobuf values with message indexes before the fields; only the first message of a schema is accepted."""
    short, full = (pc.starts_with(values, prefix) for prefix in _FIRST_MESSAGE)
    first = pc.or_(short, full)
    fields = _without_prefix(values, 1)
    parsed = parse_protobuf(pc.if_else(first, pc.if_else(short, fields, _without_prefix(values, 2)), b""))
    others = np.flatnonzero(~first.to_numpy(zero_copy_only=False))
    return Parsed(parsed.events, parsed.errors | dict.fromkeys(others.tolist(), _NOT_FIRST_MESSAGE))


def _without_prefix(values: pa.Array, count: int) -> pa.Array:
    """Return values without their first `count` bytes."""
    return pc.binary_slice(values, count, _MAX_INT32)  # pyarrow 26 requires a stop


def _reject(problems: list[Problem]) -> Parsed:
    return Parsed(EVENT.empty_table().take(pa.nulls(len(problems), pa.int64())), dict(enumerate(problems)))
