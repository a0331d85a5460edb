"""References of records to the schemas of their values: in a prefix of the value, or in a header.

The prefix is a zero byte and the id in four bytes, the format of Confluent, Karapace, Apicurio and Redpanda. Protobuf
and JSON values never start with a zero byte; in bare Avro it would be an empty event_id, which is invalid. A header
takes precedence: the value then has no prefix.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.schema import HEADERS

PREFIX_BYTES = 5
_ID_BYTES, _GUID_BYTES, _LONG_BYTES = 5, 17, 8


class SchemaId(NamedTuple):
    """The id of a schema and its namespace: Apicurio's global ids differ from its content ids."""

    name: str
    """A number or a GUID; also the file name in `contract.schemas_dir`, without the extension."""
    space: Literal["ids", "guids", "globalIds"] = "ids"


class UnresolvableReference(NamedTuple):
    """A header with a schema reference that cannot be resolved, and why."""

    problem: str


@dataclass(frozen=True, slots=True)
class SchemaReference:
    """The reference of a value to its schema, in the header `header`, or in the prefix of the value if that is None."""

    schema: SchemaId | UnresolvableReference
    header: str | None = None
    indexes: bytes = b""
    """The message indexes of a Protobuf schema, if the header contains them."""


_CONTRADICTION = SchemaReference(
    UnresolvableReference("contradicts another header, which names a different schema"), "of the schema"
)


def schema_references(values: pa.Array, headers: pa.Array | None) -> tuple[np.ndarray, list[SchemaReference]]:
    """Return (codes, references): the distinct references, and for each value its index in them, -1 for none.

    `headers` (HEADERS) are those of the records. `codes` is an int64 array with an element for each value.
    """
    codes, references = _from_prefixes(values)
    rows, header_codes, header_references = _from_headers(headers)
    if len(rows):
        codes[rows] = header_codes + len(references)
    return codes, [*references, *header_references]


def schema_reference(value: bytes, headers: Iterable[tuple[str, bytes | None]]) -> SchemaReference | None:
    """Return the schema reference of one record, None if there is none; see `schema_references`."""
    found = {
        reference
        for name, content in headers
        if name in _HEADER_PARSERS and (reference := _parse_header(name, content))
    }
    if found:
        return found.pop() if len(found) == 1 else _CONTRADICTION
    framed = value[:1] == b"\0" and len(value) >= PREFIX_BYTES
    return SchemaReference(SchemaId(str(int.from_bytes(value[1:PREFIX_BYTES], "big")))) if framed else None


def _from_prefixes(values: pa.Array) -> tuple[np.ndarray, list[SchemaReference]]:
    codes = np.full(len(values), -1, np.int64)
    starts = pc.binary_slice(values, 0, 1)
    framed = pc.and_(pc.equal(starts, b"\x00"), pc.greater(pc.binary_length(values), PREFIX_BYTES - 1))
    rows = np.flatnonzero(pc.fill_null(framed, fill_value=False).to_numpy(zero_copy_only=False))
    prefixes = pc.binary_slice(values.take(pa.array(rows)), 1, PREFIX_BYTES).to_pylist()
    ids, codes[rows] = np.unique(np.frombuffer(b"".join(prefixes), ">u4"), return_inverse=True)
    return codes, [SchemaReference(SchemaId(str(number))) for number in ids.tolist()]


def _from_headers(headers: pa.Array | None) -> tuple[np.ndarray, np.ndarray, list[SchemaReference]]:
    """Return (rows, codes, references): the rows with a reference in a header, their indexes in the list, the list."""
    rows, entries = _known_headers(headers)
    if not len(rows):
        return rows, rows, []
    positions, distinct = _parse_distinct(entries)
    found = [reference for reference in dict.fromkeys(distinct) if reference is not None]
    indexes = {reference: index for index, reference in enumerate(found)}
    codes = np.array([-1 if reference is None else indexes[reference] for reference in distinct])[positions]
    rows, codes = rows[codes >= 0], codes[codes >= 0]
    distinct_rows, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    contradictory = np.unique(inverse[codes != codes[first][inverse]])
    codes = codes[first]
    codes[contradictory] = len(found)
    return distinct_rows, codes, [*found, _CONTRADICTION]


def _known_headers(headers: pa.Array | None) -> tuple[np.ndarray, pa.Array]:
    """Return the rows (int64) and the entries of headers that may contain a schema reference."""
    entries = pa.array([], HEADERS.value_type) if headers is None else headers.flatten()
    if headers is None or not len(entries):
        return np.empty(0, np.int64), entries
    known = pc.indices_nonzero(pc.is_in(pc.struct_field(entries, "key"), value_set=pa.array(list(_HEADER_PARSERS))))
    return pc.list_parent_indices(headers).take(known).to_numpy(), entries.take(known)


def _parse_distinct(entries: pa.Array) -> tuple[np.ndarray, list[SchemaReference | None]]:
    """Parse each distinct header once; return (positions, references), with an int64 position for each entry."""
    names, contents = (pc.dictionary_encode(entries.field(field), "encode") for field in ("key", "value"))
    keys = names.indices.to_numpy().astype(np.int64) * len(contents.dictionary) + contents.indices.to_numpy()
    _, examples, positions = np.unique(keys, return_index=True, return_inverse=True)
    distinct = entries.take(pa.array(examples))
    pairs = zip(distinct.field("key").to_pylist(), distinct.field("value").to_pylist(), strict=True)
    return positions, [_parse_header(name, content) for name, content in pairs]


def _parse_header(name: str, content: bytes | None) -> SchemaReference | None:
    """Return the reference in a header, None if there is none: not every content-type contains one."""
    schema = _HEADER_PARSERS[name](content or b"")
    if isinstance(schema, tuple) and not isinstance(schema, SchemaId | UnresolvableReference):
        return SchemaReference(schema[0], name, schema[1])
    return schema and SchemaReference(schema, name)


def _confluent(content: bytes) -> tuple[SchemaId, bytes] | UnresolvableReference:
    """Parse a zero byte and an id, or a one and a GUID; for Protobuf, the message indexes follow."""
    if content[:1] == b"\x00" and len(content) >= _ID_BYTES:
        return SchemaId(str(int.from_bytes(content[1:_ID_BYTES], "big"))), content[_ID_BYTES:]
    if content[:1] == b"\x01" and len(content) >= _GUID_BYTES:
        return SchemaId(str(UUID(bytes=content[1:_GUID_BYTES])), "guids"), content[_GUID_BYTES:]
    return UnresolvableReference("is neither an id nor a GUID as Confluent's serializers write them")


def _apicurio(space: Literal["ids", "globalIds"]) -> Callable[[bytes], SchemaId | UnresolvableReference]:
    def parse(content: bytes) -> SchemaId | UnresolvableReference:
        if len(content) != _LONG_BYTES:
            return UnresolvableReference(f"is not a number of {_LONG_BYTES} bytes")
        return SchemaId(str(int.from_bytes(content, "big")), space)

    return parse


def _unsupported(pattern: bytes, description: str) -> Callable[[bytes], UnresolvableReference | None]:
    """Return a parser that recognizes the header of a registry without Confluent's API."""

    def parse(content: bytes) -> UnresolvableReference | None:
        return (
            UnresolvableReference(f"is {description}, which cannot be looked up")
            if re.match(pattern, content)
            else None
        )

    return parse


_HEADER_PARSERS: dict[str, Callable[[bytes], SchemaId | tuple[SchemaId, bytes] | UnresolvableReference | None]] = {
    "__value_schema_id": _confluent,
    "apicurio.value.contentId": _apicurio("ids"),
    "apicurio.value.globalId": _apicurio("globalIds"),
    "value.schema.version.id": _unsupported(b"", "an id of Cloudera's registry"),
    "content-type": _unsupported(rb"avro/binary\+", "an id of Azure's registry"),
    "contentType": _unsupported(rb'"?application/(vnd\.)?.+\.v\d+\+avro', "a version as Spring writes it"),
}
"""The parsers of headers with a schema reference, by header name."""
