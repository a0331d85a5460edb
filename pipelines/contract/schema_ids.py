"""Where records name the schema that their values were written by: before the value, or in a header.

Before a value stand a zero byte and the id in four bytes, as the registries of Confluent, Karapace, Apicurio and
Redpanda have it. No value of Protobuf or JSON starts with a zero byte; in bare Avro it means an empty event_id, which
is none. A header that names a schema comes first: then the value is bare.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

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
    """The name of a schema and the set of names that it is from: Apicurio's global ids are others than its ids."""

    name: str
    """A number, or a GUID: as a file in `contract.schemas_dir` is named by it."""
    space: Literal["ids", "guids", "globalIds"] = "ids"


class Unreadable(NamedTuple):
    """Why a header that names a schema says nothing that can be looked up."""

    why: str


@dataclass(frozen=True, slots=True)
class Naming:
    """How a value names its schema: in which header, or else by its first bytes."""

    schema: SchemaId | Unreadable
    header: str | None = None
    indexes: bytes = b""
    """Which message of a Protobuf schema the value is, where the header says that instead of the value."""


def namings_of(values: pa.Array, headers: pa.Array | None) -> tuple[np.ndarray, list[Naming]]:
    """Return for each value the place of its naming in a list of them; -1 for a value that names no schema.

    `headers` (HEADERS) are those of the values' records. Equal namings have the same place.
    """
    places, namings = _by_prefix(values)
    rows, kinds, found = _by_header(headers)
    if len(rows):
        places[rows] = kinds + len(namings)
    return places, [*namings, *found]


def naming_of(value: bytes, headers: Iterable[tuple[str, bytes | None]]) -> Naming | None:
    """Return how one record names its schema, as `namings_of` does for many."""
    found = {naming for name, content in headers if name in _READERS and (naming := _read_header(name, content))}
    if found:
        return found.pop() if len(found) == 1 else _CONTRADICTION
    framed = value[:1] == b"\0" and len(value) >= PREFIX_BYTES
    return Naming(SchemaId(str(int.from_bytes(value[1:PREFIX_BYTES], "big")))) if framed else None


def _by_prefix(values: pa.Array) -> tuple[np.ndarray, list[Naming]]:
    places = np.full(len(values), -1, np.int64)
    starts = pc.binary_slice(values, 0, 1)
    framed = pc.and_(pc.equal(starts, b"\x00"), pc.greater(pc.binary_length(values), PREFIX_BYTES - 1))
    rows = np.flatnonzero(pc.fill_null(framed, fill_value=False).to_numpy(zero_copy_only=False))
    prefixes = pc.binary_slice(values.take(pa.array(rows)), 1, PREFIX_BYTES).to_pylist()
    ids, places[rows] = np.unique(np.frombuffer(b"".join(prefixes), ">u4"), return_inverse=True)
    return places, [Naming(SchemaId(str(number))) for number in ids.tolist()]


def _by_header(headers: pa.Array | None) -> tuple[np.ndarray, np.ndarray, list[Naming]]:
    """Return the rows whose headers name a schema, which of a list of namings each has, and the list."""
    rows, entries = _known_headers(headers)
    if not len(rows):
        return rows, rows, []
    which, read = _read_each_once(entries)
    found = [naming for naming in dict.fromkeys(read) if naming is not None]
    numbers = {naming: number for number, naming in enumerate(found)}
    kinds = np.array([-1 if naming is None else numbers[naming] for naming in read])[which]
    rows, kinds = rows[kinds >= 0], kinds[kinds >= 0]
    named, first, of = np.unique(rows, return_index=True, return_inverse=True)
    contradicted = np.unique(of[kinds != kinds[first][of]])
    kinds = kinds[first]
    kinds[contradicted] = len(found)
    return named, kinds, [*found, _CONTRADICTION]


def _known_headers(headers: pa.Array | None) -> tuple[np.ndarray, pa.Array]:
    """Return the rows and the entries of headers that may name schemas."""
    entries = pa.array([], HEADERS.value_type) if headers is None else headers.flatten()
    if headers is None or not len(entries):
        return np.empty(0, np.int64), entries
    known = pc.indices_nonzero(pc.is_in(pc.struct_field(entries, "key"), value_set=pa.array(list(_READERS))))
    return pc.list_parent_indices(headers).take(known).to_numpy(), entries.take(known)


def _read_each_once(entries: pa.Array) -> tuple[np.ndarray, list[Naming | None]]:
    """Return what different headers say, and for each header the place of that in the list."""
    names, contents = (pc.dictionary_encode(entries.field(field), "encode") for field in ("key", "value"))
    pairs = names.indices.to_numpy().astype(np.int64) * len(contents.dictionary) + contents.indices.to_numpy()
    _, examples, which = np.unique(pairs, return_index=True, return_inverse=True)
    read = entries.take(pa.array(examples))
    said = zip(read.field("key").to_pylist(), read.field("value").to_pylist(), strict=True)
    return which, [_read_header(name, content) for name, content in said]


def _read_header(name: str, content: bytes | None) -> Naming | None:
    """Return what a header says, if it does name a schema: not every content-type does."""
    schema = _READERS[name](content or b"")
    if isinstance(schema, tuple) and not isinstance(schema, SchemaId | Unreadable):
        return Naming(schema[0], name, schema[1])
    return schema and Naming(schema, name)


def _confluent(content: bytes) -> tuple[SchemaId, bytes] | Unreadable:
    """Read a zero byte and an id, or a one and a GUID; for Protobuf, the message's indexes follow."""
    if content[:1] == b"\x00" and len(content) >= _ID_BYTES:
        return SchemaId(str(int.from_bytes(content[1:_ID_BYTES], "big"))), content[_ID_BYTES:]
    if content[:1] == b"\x01" and len(content) >= _GUID_BYTES:
        return SchemaId(str(UUID(bytes=content[1:_GUID_BYTES])), "guids"), content[_GUID_BYTES:]
    return Unreadable("is neither an id nor a GUID as Confluent's serializers write them")


def _apicurio(space: Literal["ids", "globalIds"]) -> Callable[[bytes], SchemaId | Unreadable]:
    def read(content: bytes) -> SchemaId | Unreadable:
        if len(content) != _LONG_BYTES:
            return Unreadable(f"is not a number of {_LONG_BYTES} bytes")
        return SchemaId(str(int.from_bytes(content, "big")), space)

    return read


def _of_another_registry(pattern: bytes, whose: str) -> Callable[[bytes], Unreadable | None]:
    """Return what recognises the header of a registry that does not answer Confluent's API."""

    def read(content: bytes) -> Unreadable | None:
        return Unreadable(f"is {whose}, which cannot be looked up") if re.match(pattern, content) else None

    return read


_READERS: dict[str, Callable[[bytes], SchemaId | tuple[SchemaId, bytes] | Unreadable | None]] = {
    "__value_schema_id": _confluent,
    "apicurio.value.contentId": _apicurio("ids"),
    "apicurio.value.globalId": _apicurio("globalIds"),
    "value.schema.version.id": _of_another_registry(b"", "an id of Cloudera's registry"),
    "content-type": _of_another_registry(rb"avro/binary\+", "an id of Azure's registry"),
    "contentType": _of_another_registry(rb'"?application/(vnd\.)?.+\.v\d+\+avro', "a version as Spring writes it"),
}
"""What reads the headers that name a schema."""
_CONTRADICTION = Naming(Unreadable("is not the only one: another header names another schema"), "of the schema")
