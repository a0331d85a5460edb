"""A source as a Decoder: schema ids are looked up here, values are decoded and mapped in the worker process."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.decode import Decoded, validate_mapped
from pipelines.contract.parsing import Parsed, Problem, sanitize_message
from pipelines.contract.registry import MissingReferenceError, WriterSchema
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT
from pipelines.contract.schema_ids import PREFIX_BYTES, SchemaReference, schema_references
from pipelines.contract.schemas import SchemaStore, open_schema_store
from pipelines.contract.values import find_schemas
from pipelines.mapping.sandbox import Sandbox
from pipelines.mapping.source_files import SourceFile, require_packages
from pipelines.mapping.values import ANY, ValueSchema
from pipelines.settings import ContractSettings, Settings

_WITHOUT_ID = Problem(Reason.UNKNOWN_SCHEMA, "The value has no schema id, neither before it nor in a header.")
_MAX_INT32 = 2**31 - 1
_Group = tuple[np.ndarray, pa.Table, ValueSchema]
"""Rows in the batch of the records of a schema, and the records as they are sent to the worker."""
_OPTIONAL = ("key", "headers")
"""Columns that are sent to the worker only if the SELECT uses them."""


@dataclass(slots=True)
class Mapping:
    """A source as a Decoder."""

    source: SourceFile
    contract: ContractSettings
    sandbox: Sandbox
    schemas: dict[tuple[WriterSchema, str], ValueSchema] = field(
        default_factory=dict[tuple[WriterSchema, str], ValueSchema]
    )

    def fields(self) -> list[str]:
        """Return the fields of the values of its schema; none of JSON, and of a registry before the first record."""
        return self.sandbox.fields

    def __call__(self, records: pa.Table, now: datetime | None = None) -> Decoded:
        """Decode the records (RECORD columns) of a batch."""
        records = records.combine_chunks()
        problems: dict[int, Problem] = {}
        groups: list[_Group] = []
        for rows, chosen, schema in self._groups(records):
            if isinstance(schema, Problem):
                problems |= dict.fromkeys(rows.tolist(), schema)
            else:
                groups.append((rows, self._sent(chosen), schema))
        events = _EMPTY
        for (rows, *_), found in zip(groups, self.sandbox.map([group[1:] for group in groups]), strict=True):
            numbers = pa.array(rows[found.events["row"].to_numpy()], pa.int64())
            events = pa.concat_tables([events, found.events.set_column(0, "row", numbers)])
            problems |= {int(rows[row]): describe_problem(*error) for row, error in found.errors.items()}
        events = events.combine_chunks()
        origins, parsed = join_problems(events, self._softened(problems))
        return validate_mapped(records, origins, parsed, self.contract, now or datetime.now(UTC))

    def _softened(self, problems: dict[int, Problem]) -> dict[int, Problem]:
        """Return problems: beside records of a schema that the SELECT fits, those of another one are the odd ones."""
        if not self.sandbox.fits:
            return problems
        return {
            row: Problem(Reason.UNMAPPABLE, problem.detail) if problem.reason is Reason.REFUSED_SELECT else problem
            for row, problem in problems.items()
        }

    def _groups(self, records: pa.Table) -> Iterator[tuple[np.ndarray, pa.Table, ValueSchema | Problem]]:
        """Yield the records of each schema, or with one problem, and their rows in the batch."""
        if not self.source.registry:
            schema = self.source.schema or Problem(Reason.UNKNOWN_SCHEMA, "The source has no schema.")
            yield np.arange(len(records)), records, schema
            return
        values, headers = records["value"].combine_chunks(), records["headers"].combine_chunks()
        codes, references = schema_references(values, headers)
        counts = np.bincount(codes[codes >= 0], minlength=len(references)).tolist()
        found = find_schemas(references, counts, self.contract)
        # No schema says what a record without a value is: it is filtered.
        without_id = (codes < 0) & values.is_valid().to_numpy(zero_copy_only=False)
        yield np.flatnonzero(without_id), records, _WITHOUT_ID
        for code, (reference, schema) in enumerate(zip(references, found, strict=True)):
            yield from self._by_reference(records, np.flatnonzero(codes == code), reference, schema)

    def _by_reference(
        self, records: pa.Table, rows: np.ndarray, reference: SchemaReference, schema: WriterSchema | Problem | None
    ) -> Iterator[tuple[np.ndarray, pa.Table, ValueSchema | Problem]]:
        if not isinstance(schema, WriterSchema):
            yield rows, records, schema or Problem(Reason.UNKNOWN_SCHEMA, "The value's schema is unknown.")
            return
        place = records.schema.get_field_index("value")
        values = records["value"].combine_chunks().take(pa.array(rows))
        if reference.header is None:
            values = pc.binary_slice(values, PREFIX_BYTES, _MAX_INT32)
        indexes = pc.binary_slice(values, 0, 0)
        if schema.format == "protobuf" and reference.header is None:
            indexes, values = _split_indexes(values)
        elif schema.format == "protobuf":
            indexes = pa.array([reference.indexes] * len(values), pa.binary())
        messages = indexes.dictionary_encode()
        for code, message in enumerate(messages.dictionary.to_pylist()):
            mask = pc.equal(messages.indices, code)
            part_rows = rows[mask.to_numpy(zero_copy_only=False)]
            whole = records.take(pa.array(part_rows)).set_column(place, "value", values.filter(mask))
            yield part_rows, whole, self._value_schema(schema, message)

    def _value_schema(self, schema: WriterSchema, indexes: bytes) -> ValueSchema | Problem:
        message = "" if schema.format != "protobuf" else _message(indexes)
        found = self.schemas.get((schema, message)) or self._with_references(schema, message)
        if isinstance(found, ValueSchema):  # what the registry lacks may be added
            self.schemas[schema, message] = found
        return found

    def _with_references(self, schema: WriterSchema, message: str) -> ValueSchema | Problem:
        if schema.format != "protobuf" or not schema.references:
            return ValueSchema(schema.format, "" if schema.format == "json" else schema.text, message)
        store: SchemaStore = open_schema_store(self.contract)
        if store.registry is None:
            return Problem(Reason.UNKNOWN_SCHEMA, "The value's schema refers to others, and there is no registry.")
        try:
            files = store.registry.follow(schema.references)
        except MissingReferenceError as error:
            return Problem(Reason.UNKNOWN_SCHEMA, sanitize_message(f"The value's schema is incomplete: {error}."))
        return ValueSchema("protobuf", schema.text, message, tuple(files.items()))

    def _sent(self, records: pa.Table) -> pa.Table:
        """Return what the worker needs of records: headers as maps, and null where the SELECT does not use a column."""
        for name in _OPTIONAL:
            place = records.schema.get_field_index(name)
            used = name in self.sandbox.names or "*" in self.sandbox.names
            kind = pa.map_(pa.string(), pa.binary()) if name == "headers" else pa.binary()
            column = records[name] if used else pa.nulls(len(records), kind)
            if used and name == "headers":
                column = _header_maps(records[name].combine_chunks())
            records = records.set_column(place, name, column)
        return records


@contextmanager
def open_mapping(source: SourceFile, settings: Settings) -> Generator[Mapping]:
    """Yield a source as a Decoder; its worker process ends with the block. Not thread-safe.

    Raises ConfigurationError for a SELECT that is refused. The decoder raises ConfigurationError and TransientError
    as `contract.decode.decode` does; it never raises because of a record.
    """
    require_packages(source)
    sandbox = Sandbox(source.config, str(source.path))
    contract = settings.contract.model_copy(update={"format": source.format})
    mapping = Mapping(source, contract, sandbox)
    try:
        sandbox.prepare(source.schema or ANY)
        yield mapping
    finally:
        sandbox.close()


_EMPTY = pa.schema([("row", pa.int64()), *EVENT]).empty_table()


def join_problems(events: pa.Table, problems: dict[int, Problem]) -> tuple[np.ndarray, Parsed]:
    """Return the row of the record of each event and problem, rising, and both together as a parser returns them."""
    rows = events["row"].to_numpy()
    if not problems and (np.diff(rows) >= 0).all():
        return rows, Parsed(events.drop_columns(["row"]), {})
    bad = np.array(sorted(problems), np.int64)
    rows = np.concatenate([rows, bad])
    order = np.argsort(rows, kind="stable")
    gaps = EVENT.empty_table().take(pa.nulls(len(bad), pa.int64()))
    both = pa.concat_tables([events.drop_columns(["row"]), gaps]).combine_chunks().take(pa.array(order))
    first = len(events)
    errors = {at: problems[int(rows[order[at]])] for at in np.flatnonzero(order >= first).tolist()}
    return rows[order], Parsed(both.combine_chunks(), errors)


def describe_problem(reason: Reason, text: str) -> Problem:
    """Return the problem of a record that the worker process could not map."""
    sentence = text if text.endswith("?") else f"{text.rstrip('.')}."
    if reason is Reason.REFUSED_SELECT:
        return Problem(reason, sanitize_message(f"The source's SELECT is refused for the record's schema: {sentence}"))
    if reason is Reason.UNMAPPABLE:
        return Problem(reason, sanitize_message(f"The source's SELECT fails on the record: {sentence}"))
    return Problem(reason, sanitize_message(f"The value cannot be decoded: {sentence}"))


def _header_maps(headers: pa.Array) -> pa.Array:
    """Return headers (HEADERS) as maps; of several with one name, the last one counts."""
    rows = [
        None if row is None else list({each["key"]: each["value"] for each in row}.items())
        for row in headers.to_pylist()
    ]
    return pa.array(rows, pa.map_(pa.string(), pa.binary()))


def _split_indexes(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the message indexes before Protobuf values as bytes, and the values after them."""
    pairs = [(b"", b"") if value is None else _split(value) for value in values.to_pylist()]
    return pa.array([indexes for indexes, _ in pairs], pa.binary()), pa.array([rest for _, rest in pairs], pa.binary())


def _split(value: bytes) -> tuple[bytes, bytes]:
    count, at = _varint(value, 0)
    for _ in range(min(count, _MAX_INDEXES)):
        _, at = _varint(value, at)
    return value[:at], value[at:]


def _message(indexes: bytes) -> str:
    """Return message indexes as "1,0": their number, 0 for the first message, then each, as zig-zag varints."""
    count, at = _varint(indexes, 0)
    found: list[int] = []
    for _ in range(min(count, _MAX_INDEXES)):
        index, at = _varint(indexes, at)
        found.append(max(0, index))
    return ",".join(map(str, found)) or "0"


_MAX_INDEXES = 16


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a zig-zag varint and the position after it; 0 if there is none."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            return 0, at
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
    return 0, at
