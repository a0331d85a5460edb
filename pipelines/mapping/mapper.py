"""A source's SELECT, run over decoded records in a DuckDB that reaches nothing else. Runs only in the worker process.

A record on which the SELECT fails is found by dividing: the others of its batch become events.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import json
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.boundary.database import connect
from pipelines.boundary.locked_sql import identifier, literal, lock_settings
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, METADATA, TIMESTAMP, filter_rows
from pipelines.mapping.json_members import share_members
from pipelines.mapping.row_wise import RELATION, ROW, SelectError, check_select
from pipelines.mapping.values import ANY, ValueSchema, arrow_type, decode_values
from pipelines.sources.ids import problems_of_ids
from pipelines.sources.times import FileTimeUnit, read_file_times, zoned_times

MEMORY_LIMIT = "1GB"
MAX_EVENTS = 10_000
"""Events of one record."""
_USUAL_EVENTS = 16
"""Events of a record, on average over a batch, above which the batch is divided: no run has many more at once."""
_TOO_MANY = f"it makes over {MAX_EVENTS:,} events of one record, the limit"
_PARTS = 16
"""Into how many parts records are divided on which the SELECT fails together: if it fails on each, few runs fail for
nothing."""
ENVELOPE = {
    "key": "BLOB",
    "headers": "MAP(VARCHAR, BLOB)",
    "topic": "VARCHAR",
    "topic_partition": "INTEGER",
    "offset": "BIGINT",
    "bus_time": "TIMESTAMPTZ",
}
"""The columns of `record` beside those of its value. A field of the value with such a name is `value.NAME`."""
ROW_ENVELOPE = {"row": "BIGINT"}
"""Of rows of files: the number of the row in its file, from 1, headers and blank lines not counted."""
_FIELDS = ("event_id", "user_id", "action_type", "timestamp", "metadata")
_IDS = {
    "VARCHAR",
    "UUID",
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
} | {
    "UBIGINT",
    "UHUGEINT",
}
_INTEGERS = _IDS - {"VARCHAR", "UUID"}
_ZONED, _NAIVE = {"TIMESTAMP WITH TIME ZONE"}, {"TIMESTAMP", "DATE", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}
_DIGEST_BYTES = 16
NOT_TRIED = (
    Reason.UNMAPPABLE,
    "It was not tried: the time for finding the records of its batch that cannot be mapped was over. Requeue it.",
)
"""The problem of a record that may be fine."""
RESULT = pa.schema([("row", pa.int64()), *EVENT])
"""The events, with the row of their record, in its order."""


@dataclass(frozen=True, slots=True)
class MapperConfig:
    """What the events of a source are."""

    select: str
    columns: tuple[tuple[str, str, str], ...] = ()
    """Of JSON: name, path and type of the columns beside `value`."""
    time_unit: FileTimeUnit | None = None
    time_zone: str | None = None
    """The zone of times without one; None: texts are in UTC, and a TIMESTAMP is refused."""
    event_id_from: tuple[str, ...] = ()
    time_format: str | None = None
    """The format of a time that is text, in the names of strptime, instead of `time_unit`."""
    of_rows: bool = False
    """Whether `record` has the rows of files, instead of the records of topics."""

    @property
    def envelope(self) -> dict[str, str]:
        """The columns of `record` beside those of its value, with their types."""
        return ROW_ENVELOPE if self.of_rows else ENVELOPE

    @property
    def place(self) -> tuple[str, ...]:
        """The columns that an event_id is made of where the SELECT has none."""
        return ("digest",) if self.of_rows else ("topic_id", "topic_partition", "offset")

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "MapperConfig":
        """Return what `to_json` wrote."""
        found = json.loads(text)
        columns = tuple((name, path, kind) for name, path, kind in found["columns"])
        return cls(**found | {"columns": columns, "event_id_from": tuple(found["event_id_from"])})


class _TooManyEventsError(Exception):
    """Records make more events than are read together; if it is one record, more than it may make."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """`events` has RESULT columns; `errors` is by row of the records: reason, and what happened."""

    events: pa.Table
    errors: dict[int, tuple[Reason, str]]
    divided: bool = False
    """Whether the SELECT failed on several records together."""


class Mapper:
    """A locked DuckDB for one source."""

    def __init__(self, config: MapperConfig, before_each: Callable[[int], None] = lambda _: None) -> None:
        self.config = config
        self.before_each = before_each
        """Called with the number of bytes before each run of the SELECT."""
        self.connection = connect(threads=1, memory_limit=MEMORY_LIMIT)
        self.connection.execute("SET temp_directory = ''")
        lock_settings(self.connection)
        self.prepared: tuple[pa.DataType, str, pa.Table] | None = None
        """A type of values, the query of events for which the view `record` is ready, and its result without rows."""
        self.has_event_id = False
        self.names: frozenset[str] = frozenset()
        self.fields: list[str] = []
        self.seconds = math.inf
        self.give_up_at = math.inf
        """When records are no longer divided, on the monotonic clock."""

    def prepare(self, schema: ValueSchema) -> None:
        """Check the SELECT over records of a schema, or only its form if that is ANY.

        Raises SelectError, and ValueError for a schema that cannot be read.
        """
        if schema == ANY:
            self.names = self.names | check_select(self.connection, self.config.select, None).names
        else:
            self._prepare(arrow_type(schema))

    def map(self, records: pa.Table, schema: ValueSchema, seconds: float = math.inf) -> Mapped:
        """Return the events of records: `value`, the columns of the envelope, and those of the place.

        seconds: how long records are divided, after the SELECT first failed.
        """
        self.seconds, self.give_up_at = seconds, math.inf
        try:
            values, failed = decode_values(records["value"].combine_chunks(), schema)
            query, empty = self._prepare(values.type)
        except (ValueError, SelectError) as error:
            reason = Reason.REFUSED_SELECT if isinstance(error, SelectError) else Reason.UNDECODABLE
            return Mapped(RESULT.empty_table(), dict.fromkeys(range(len(records)), (reason, str(error))))
        errors = {row: (Reason.UNDECODABLE, error) for row, error in failed.items()}
        batch = records.set_column(records.schema.get_field_index("value"), "value", _readable(values))
        batch = batch.append_column(ROW, pa.array(np.arange(len(records))))
        if failed:
            batch = batch.take(pa.array(np.setdiff1d(np.arange(len(records)), list(failed))))
        parts: list[pa.Table] = []
        self._run(batch, query, parts, errors)
        events = pa.concat_tables([empty, *parts]).combine_chunks()
        return self._finish(events, records, errors)

    def _run(self, batch: pa.Table, query: str, parts: list[pa.Table], errors: dict[int, tuple[Reason, str]]) -> None:
        """Run the query over records, all parts of one size before smaller ones: so most good records come first."""
        waiting = deque([batch])
        while waiting and time.monotonic() <= self.give_up_at:
            batch = waiting.popleft()
            if not len(batch):
                continue
            try:
                parts.append(self._execute(batch, query))
            except (duckdb.InternalException, duckdb.FatalException):
                raise  # the database is unusable: the process ends
            except (duckdb.Error, pa.ArrowException, MemoryError, _TooManyEventsError) as error:
                if len(batch) == 1:
                    errors[batch[ROW][0].as_py()] = (Reason.UNMAPPABLE, _first_lines(error))
                    continue
                self.give_up_at = min(self.give_up_at, time.monotonic() + self.seconds)
                size = -(-len(batch) // _PARTS)
                waiting.extend(batch.slice(start, size) for start in range(0, len(batch), size))
        for batch in waiting:
            errors |= dict.fromkeys(batch[ROW].to_pylist(), NOT_TRIED)

    def _execute(self, batch: pa.Table, query: str) -> pa.Table:
        self.before_each(batch.nbytes)
        self.connection.register("batch", batch)
        most = MAX_EVENTS + _USUAL_EVENTS * (len(batch) - 1)
        found = self.connection.sql(f"FROM ({query}) LIMIT {most + 1}").to_arrow_table()
        if len(found) > most or _most_equal(found[ROW]) > MAX_EVENTS:
            raise _TooManyEventsError(_TOO_MANY)
        for name in ("event_id", "user_id", "action_type", "metadata"):
            found[name].validate(full=True)
        return found

    def _empty(self, query: str) -> pa.Table:
        return self.connection.sql(f"FROM ({query}) LIMIT 0").to_arrow_table()

    def _prepare(self, kind: pa.DataType) -> tuple[str, pa.Table]:
        """Create the view `record` for values of a type; return the query of events, and its result without rows."""
        if self.prepared and self.prepared[0] == kind:
            return self.prepared[1:]
        fields = [(ROW, pa.int64()), ("value", kind), *((name, _ARROW[name]) for name in self.config.envelope)]
        self.connection.register("batch", pa.table([_readable(pa.array([], t)) if n == "value" else pa.array([], t) for n, t in fields], names=[n for n, _ in fields]))  # fmt: skip  # noqa: E501
        columns = self._value_columns(kind)
        self.fields = [each.name for each in kind] if pa.types.is_struct(kind) else []
        checked = check_select(self.connection, self.config.select, frozenset({*columns, *self.config.envelope}))
        self.names = self.names | checked.names
        tree: dict[str, Any] = json.loads(checked.tree)
        texts = None if pa.types.is_struct(kind) else share_members(self.connection, tree, RELATION)
        listed = [
            ROW,
            *(f"{sql} AS {identifier(name)}" for name, sql in columns.items()),
            *map(identifier, self.config.envelope),
            *filter(None, [texts]),
        ]
        self.connection.execute(
            f"CREATE OR REPLACE TEMP VIEW record AS SELECT {', '.join(listed)} FROM batch"  # noqa: S608 - quoted names
        )
        query = self._query(json.dumps(tree))
        self.prepared = (kind, query, self._empty(query))
        return self.prepared[1:]

    def _value_columns(self, kind: pa.DataType) -> dict[str, str]:
        """Return the SQL of the columns of the value by name, `value` first."""
        found = {"value": "value"}
        if pa.types.is_struct(kind):
            names = [field.name for field in kind if field.name.lower() not in {"value", ROW, *self.config.envelope}]
            return found | {name: f"value.{identifier(name)}" for name in names}
        for name, path, sql_type in self.config.columns:
            operator = "->>" if sql_type.upper() == "VARCHAR" else "->"
            found[name] = f"CAST(value {operator} {literal(path)} AS {sql_type})"
        return found

    def _query(self, tree: str) -> str:
        try:
            ((inner,),) = self.connection.execute("SELECT json_deserialize_sql(CAST(? AS JSON))", [tree]).fetchall()
            types = {n: t for n, t, *_ in self.connection.execute(f"DESCRIBE {inner}").fetchall()}
        except duckdb.Error as error:
            raise SelectError(_first_lines(error)) from None
        return f"SELECT {', '.join(self._outputs(types))} FROM ({inner})"  # noqa: S608 - a checked query

    def _outputs(self, types: dict[str, str]) -> list[str]:
        required = [name for name in _FIELDS[1:4] if name not in types]
        if required:
            raise SelectError(f"it has no column {required[0]}: name one AS {required[0]}")
        unknown = [name for name in types if name not in {*_FIELDS, *self.config.event_id_from, ROW}]
        if unknown:
            raise SelectError(f"it has a column {unknown[0]!r}; its columns are {', '.join(_FIELDS)}")
        missing = [name for name in self.config.event_id_from if name not in types]
        if missing:
            raise SelectError(f"event_id_from names {missing[0]!r}, which is not a column of it: add one")
        outputs = [ROW, *(self._id(name, types) for name in ("user_id", "action_type")), self._time(types["timestamp"])]
        self.has_event_id = "event_id" in types
        outputs.append(self._id("event_id", types) if self.has_event_id else "NULL::VARCHAR AS event_id")
        outputs.append(_metadata(types.get("metadata")))
        named = (identifier(name) for name in self.config.event_id_from)
        outputs += [f'CAST({name} AS VARCHAR) AS "id {n}"' for n, name in enumerate(named)]
        return outputs

    def _id(self, name: str, types: dict[str, str]) -> str:
        kind = types[name]
        if kind not in _IDS and not kind.startswith("ENUM"):
            remedy = "read it by ->>" if kind == "JSON" else "cast it to VARCHAR exactly"
            raise SelectError(f"{name} is {kind}, and an id is text or an integer: {remedy}")
        return f"CAST({name} AS VARCHAR) AS {name}"

    def _time(self, kind: str) -> str:
        if kind in _ZONED:
            return "timestamp"
        if kind in _NAIVE:
            if self.config.time_zone is None:
                raise SelectError(f'timestamp is {kind}, without a zone: add time_zone, such as "UTC"')
            return "CAST(timestamp AS TIMESTAMP) AS timestamp"
        if not (self.config.time_unit or self.config.time_format) and kind != "VARCHAR":
            raise SelectError(f"timestamp is {kind}: add time_unit, one of s, ms, us, ns and iso, or time_format")
        return "CAST(timestamp AS VARCHAR) AS timestamp"

    def _finish(self, events: pa.Table, records: pa.Table, errors: dict[int, tuple[Reason, str]]) -> Mapped:
        times, invalid = _times(events["timestamp"].combine_chunks(), self.config)
        rows = events[ROW].combine_chunks().to_numpy()
        problems = {at: f"timestamp: {error}" for at, error in invalid.items()} | _invalid_ids(events)
        errors |= {int(rows[at]): (Reason.UNMAPPABLE, problem) for at, problem in problems.items()}
        entries = _without_nulls(events["metadata"].combine_chunks())
        texts = [pc.fill_null(events[name].combine_chunks().cast(pa.string()), "") for name in _FIELDS[1:3]]
        found = pa.table([pa.array(rows), events["event_id"], *texts, times, entries], names=RESULT.names)
        identity = events.select([name for name in events.column_names if name.startswith("id ")])
        if len(rows) and (np.diff(rows) <= 0).any():
            order = _order(found)
            found, identity, rows = found.take(order), identity.take(order), found["row"].take(order).to_numpy()
        if self.config.event_id_from:
            ids = _digests(identity, self.config.event_id_from)
        elif not self.has_event_id:
            ids = _places(rows, records.select(self.config.place))
        else:
            ids = pc.fill_null(found["event_id"].combine_chunks(), "")
        found = found.set_column(1, "event_id", ids).cast(RESULT)
        divided = self.give_up_at < math.inf
        return Mapped(filter_rows(found, pa.array(~np.isin(rows, list(errors)))), errors, divided)


_ARROW = {
    "key": pa.binary(),
    "headers": pa.map_(pa.string(), pa.binary()),
    "topic": pa.string(),
    "topic_partition": pa.int32(),
    "offset": pa.int64(),
    "bus_time": TIMESTAMP,
    "row": pa.int64(),
}


def _readable(values: pa.Array) -> pa.Array:
    """Return texts as JSON, which DuckDB then does not parse again, and structs as they are."""
    return values if pa.types.is_struct(values.type) else pa.ExtensionArray.from_storage(pa.json_(), values)


def _most_equal(rows: pa.ChunkedArray) -> int:
    """Return how often the most frequent row number occurs."""
    numbers = rows.to_numpy()
    return int(np.bincount(numbers - numbers.min()).max()) if len(numbers) > MAX_EVENTS else 0


def _first_lines(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).partition("\n\n")[0].split())[:400]


def _metadata(kind: str | None) -> str:
    if kind is None:
        return "CAST(MAP {} AS MAP(VARCHAR, VARCHAR)) AS metadata"
    if not kind.startswith(("MAP(", "STRUCT(")) and kind not in {"JSON", '"NULL"'}:
        raise SelectError(f"metadata is {kind}: write MAP {{'name': value}}, a struct or a JSON object")
    return "CAST(metadata AS MAP(VARCHAR, VARCHAR)) AS metadata"


def _times(values: pa.Array, config: MapperConfig) -> tuple[pa.Array, dict[int, str]]:
    if not pa.types.is_string(values.type):
        return zoned_times(values, config.time_zone), {}
    return read_file_times(values, config.time_unit or "iso", config.time_format, config.time_zone)


def _invalid_ids(events: pa.Table) -> dict[int, str]:
    """Return by row what its event_id or user_id is instead of an id."""
    problems: dict[int, str] = {}
    for name in ("event_id", "user_id"):
        texts = events[name].combine_chunks().cast(pa.string())
        problems |= {row: f"{name}: {problem}" for row, problem in problems_of_ids(texts).items()}
    return problems


def _without_nulls(metadata: pa.Array) -> pa.Array:
    """Return maps (METADATA) without the entries that have no value; an absent map is empty."""
    keys, items = metadata.keys, metadata.items
    if not items.null_count and not metadata.null_count:
        return metadata.cast(METADATA)
    bounds = metadata.offsets.to_numpy()
    present = items.is_valid().to_numpy(zero_copy_only=False)
    counts = np.concatenate([[0], np.cumsum(present)])
    shifted = bounds - bounds[0]
    mask = pa.array(present)
    found = pa.MapArray.from_arrays(
        pa.array(counts[shifted].astype(np.int32)),
        keys.filter(mask).cast(pa.string()),
        items.filter(mask).cast(pa.string()),
    )
    return found.cast(METADATA)


def _order(found: pa.Table) -> pa.Array:
    """Return the order of the events: by record, then by contents, so that no order of a query's rows matters."""
    keyed = found.drop_columns(["metadata"])
    ids = found.select(["row", "event_id"])
    if found["event_id"].null_count or len(ids.group_by(ids.column_names).aggregate([])) < len(ids):
        texts = [json.dumps(entries) for entries in found["metadata"].to_pylist()]
        keyed = keyed.append_column("metadata", pa.array(texts, pa.string()))
    return pc.sort_indices(keyed, sort_keys=[(name, "ascending") for name in keyed.column_names])


def _places(rows: np.ndarray, places: pa.Table) -> pa.Array:
    """Return event_ids made of the place of the record (one row a record) and the number of the event in it."""
    first = np.searchsorted(rows, rows, "left")
    ordinals = pa.array(np.arange(len(rows)) - first).cast(pa.string())
    parts = [column.combine_chunks().cast(pa.string()) for column in places.take(pa.array(rows)).columns]
    return pc.binary_join_element_wise(*parts, ordinals, "-")


def _digests(identity: pa.Table, names: tuple[str, ...]) -> pa.Array:
    """Return event_ids made of named columns: a digest of names and values; empty where a value is null."""
    ids: list[str] = []
    for values in zip(*(column.to_pylist() for column in identity.columns), strict=True):
        parts = [f"{len(t.encode())}:{t}" for pair in zip(names, values, strict=True) for t in pair if t is not None]
        digest = blake2b("".join(parts).encode(), digest_size=_DIGEST_BYTES).hexdigest()
        ids.append("" if None in values else digest)
    return pa.array(ids, pa.string())
