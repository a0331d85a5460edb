"""Values of a foreign schema as Arrow columns. Runs only in the worker process: any value may end or stall it."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import base64
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipelines.contract.parsing import is_propagated
from pipelines.mapping.avro_values import Columns, avro_columns
from pipelines.mapping.json_values import exact_json
from pipelines.mapping.proto_files import message_type


@dataclass(frozen=True, slots=True)
class ValueSchema:
    """How values are decoded: the writer's schema, with all schemas that it refers to."""

    format: str
    text: str = ""
    message: str = ""
    """Of Protobuf: the full name of the message, or its indexes in the file, such as "1,0"."""
    references: tuple[tuple[str, str], ...] = field(default=())
    """Of Protobuf: the names and texts of the files that it imports."""

    @classmethod
    def of_rows(cls, columns: pa.Schema) -> "ValueSchema":
        """Return the schema of rows of files: they are columns already."""
        return cls("rows", base64.b64encode(columns.remove_metadata().serialize()).decode())

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ValueSchema":
        """Return what `to_json` wrote."""
        found = json.loads(text)
        return cls(**found | {"references": tuple((name, content) for name, content in found["references"])})


ANY = ValueSchema("any")
"""A schema that is not known yet."""


def decode_values(values: pa.Array, schema: ValueSchema) -> tuple[pa.Array, dict[int, str]]:
    """Decode a binary array; return an array with null where a value is null or cannot be decoded, and why by row.

    Raises ValueError for a schema that cannot be read.
    """
    if schema.format == "rows":
        return values, {}
    present = values.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(present)
    given = values if present.all() else values.take(pa.array(rows))
    if schema.format == "json":
        found, errors = exact_json(given)
    else:
        found, errors = _by_halves(given, _decoder(schema))
    if len(rows) == len(values):
        return found, errors
    places = pa.array(np.cumsum(present) - 1, mask=~present)
    return found.take(places), {int(rows[row]): error for row, error in errors.items()}


def arrow_type(schema: ValueSchema) -> pa.DataType:
    """Return the type of the decoded values. Raises ValueError for a schema that cannot be read."""
    if schema.format == "rows":
        return pa.struct(list(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema.text)))))
    return pa.string() if schema.format == "json" else _decoder(schema)(pa.array([], pa.binary())).type


def _by_halves(values: pa.Array, decode: Columns) -> tuple[pa.Array, dict[int, str]]:
    """Decode values together; halve those with which that fails until the value that fails alone is found."""
    try:
        return decode(values), {}
    except BaseException as error:  # a Rust panic is not an Exception, and any value may cause one
        if is_propagated(error):
            raise
        if len(values) == 1:
            kind = decode(values.slice(0, 0)).type
            return pa.nulls(1, kind), {0: str(error) or type(error).__name__}
    half = len(values) // 2
    first, first_errors = _by_halves(values.slice(0, half), decode)
    second, second_errors = _by_halves(values.slice(half), decode)
    joined = pa.concat_arrays([first, second])
    return joined, first_errors | {half + row: error for row, error in second_errors.items()}


@lru_cache(maxsize=256)
def _decoder(schema: ValueSchema) -> Columns:
    try:
        return avro_columns(schema.text) if schema.format == "avro" else _protobuf(schema)
    except BaseException as error:
        if is_propagated(error):
            raise
        raise ValueError(f"its schema cannot be read: {str(error) or type(error).__name__}") from None


def _protobuf(schema: ValueSchema) -> Columns:
    from ptars import HandlerPool, PtarsConfig  # noqa: PLC0415

    descriptor = message_type(schema.text, schema.message, schema.references)
    config = PtarsConfig(timestamp_unit="us", time_unit="us", duration_unit="us", enum_repr="string")
    handler = HandlerPool([descriptor.file], config).get_for_message(descriptor)

    def decode(values: pa.Array) -> pa.Array:
        return _validated(pa.Table.from_batches([handler.array_to_record_batch(values)]).to_struct_array())

    return decode


def _validated(columns: pa.Array | pa.ChunkedArray) -> pa.Array:
    found = columns.combine_chunks() if isinstance(columns, pa.ChunkedArray) else columns
    found.validate(full=True)  # the decoders do not check that strings are UTF-8
    return found
