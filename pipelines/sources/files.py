"""Rows of a file as events, with a column mapping given by the caller. `rows.py` reads the rows."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.boundary.text import amount
from pipelines.contract.schema import EVENT
from pipelines.errors import UsageError
from pipelines.sources.bounds import CHUNK_BYTES
from pipelines.sources.canonical import canonicalize
from pipelines.sources.ids import problems_of_ids
from pipelines.sources.options import ReadOptions
from pipelines.sources.rows import Rows, read_rows
from pipelines.sources.times import FileTimeUnit, check_time_options, read_file_times, zoned_times

pc: Any = compute  # its functions are generated at import, invisible to pyright
_DIGEST_BYTES = 16
_NUMBER_OR_DATE = re.compile(r"-?[0-9]+([.,][0-9]+)?|[0-9]{4}-[0-9]{2}-[0-9]{2}.*")
_INDEX = re.compile(r"|__index_level_[0-9]+__|Unnamed: [0-9]+")
"""A column without a name, as pandas writes the index of a frame: where a row stood, not what it says."""
_MAX_SHOWN_COLUMNS = 20
_MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """The columns of a file that hold the fields of an event, and how the file is read."""

    user_id: str | None
    """None: `user` is the user of all rows."""
    time: str
    time_unit: FileTimeUnit = "iso"
    """Of numbers and text; a column of timestamps has its own unit."""
    action_type: str | None = None
    """The action_type of all rows; set either this or `action_type_column`."""
    action_type_column: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    """(name in the event, column); an empty value is omitted."""
    event_id: str | None = None
    """None: the event_id is a digest of the row, see `read_events`."""
    reading: ReadOptions = field(default_factory=ReadOptions)
    user: str | None = None
    """The user of all rows; set either this or `user_id`."""
    time_format: str | None = None
    """The format of the time column in the names of strptime, such as %d.%m.%Y %H:%M, instead of `time_unit`."""
    time_zone: str | None = None
    """The zone of times that name none, such as Europe/Berlin; None: UTC."""
    identity: tuple[str, ...] = ()
    """The columns that make a row an event of its own, for a generated event_id; empty: all of them."""
    number_rows: bool = False
    """Whether rows with equal identity are separate events, numbered in the order of the file."""

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid mapping."""
        if (self.action_type is None) == (self.action_type_column is None):
            raise UsageError("give either one action_type for all rows or the column that holds it, not both")
        if (self.user_id is None) == (self.user is None):
            raise UsageError("give either the column of the user_id or one user for all rows, not both")
        if self.event_id and (self.identity or self.number_rows):
            raise UsageError("give either the column of the event_id, or the identity of rows without one, not both")
        names = [name for name, _ in self.metadata]
        if len(set(names)) < len(names):
            raise UsageError(f"a metadata name is given twice: {', '.join(names)}")
        check_time_options(self.time_format, self.time_zone)

    @property
    def makes_ids(self) -> bool:
        """Whether the event_id of a row is a digest of it."""
        return self.event_id is None

    @property
    def id_columns(self) -> list[str]:
        """Return the columns that hold ids."""
        return [*filter(None, [self.user_id, self.event_id])]

    def required_columns(self) -> list[str]:
        """Return the columns that the file must have."""
        fields = [self.user_id, self.time, self.action_type_column, self.event_id]
        return [*filter(None, fields), *(column for _, column in self.metadata), *self.identity]


def read_events(path: Path, mapping: ColumnMapping) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables of EVENT columns, in file order.

    Without an event_id column, the id is a digest of the action_type, the user_id, the time and every other non-empty
    value of the row, by column name; with `identity`, of the action_type, the user_id and those columns. So a row has
    the same id in every run, at any position and in any format, however that writes numbers and times
    (`canonical.py`); a new column that is empty in it does not change the id, and neither does the index of a frame of
    pandas. Two identical rows of a file are one
    event, sent twice, unless `number_rows` tells them apart.

    Raises UsageError for the first invalid row, naming file, row and column, and for a file that changes meanwhile. A
    chunk is checked before it is yielded; the error says how many rows were yielded before it.
    """
    yielded, numbering, state = 0, RowNumbering(), file_state(path)
    try:
        for rows in read_mapped(path, mapping):
            check_unchanged(path, state)
            yield numbering.apply(_to_valid_events(path, rows, mapping), mapping)
            yielded += len(rows.columns)
        check_unchanged(path, state)
    except UsageError as error:
        if not yielded:
            raise
        before = amount(yielded, "row before it was", "rows before it were")
        raise UsageError(
            f"{error} ({before} passed on; sending the corrected file again is harmless, "
            "because each event_id counts once)"
        ) from None


def file_state(path: Path) -> list[int]:
    """Return the size and modification time of a file. Raises UsageError if there is none."""
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    return [status.st_size, status.st_mtime_ns]


def check_unchanged(path: Path, state: list[int]) -> None:
    """Raise UsageError unless a file has the `file_state` of before: what was read may end within a row."""
    if state != file_state(path):
        raise UsageError(f"{path}: it changed while it was read: give it again when it is complete")


class Readable(Protocol):
    """What a reader of rows asks of a mapping."""

    @property
    def reading(self) -> ReadOptions:
        """How the file is written."""
        ...

    @property
    def id_columns(self) -> list[str]:
        """The columns that hold ids."""
        ...

    def required_columns(self) -> list[str]:
        """Return the columns that the file must have."""
        ...


def read_mapped(path: Path, mapping: Readable, shown: str = "") -> Iterator[Rows]:
    """Yield the rows of a file that has the mapped columns; see `read_rows`."""
    return read_rows(path, mapping.reading, mapping.id_columns, mapping.required_columns(), shown)


@dataclass(slots=True)
class RowNumbering:
    """The number of rows with each generated id so far: some hundred bytes of memory for each."""

    seen: Counter[str] = field(default_factory=Counter[str])

    def apply(self, events: pa.Table, mapping: ColumnMapping) -> pa.Table:
        """Return the events of the next rows of a file; see `number`."""
        if not mapping.number_rows:
            return events
        ids = self.number(events["event_id"].combine_chunks())
        return events.set_column(events.schema.get_field_index("event_id"), EVENT.field("event_id"), ids)

    def number(self, ids: pa.Array) -> pa.Array:
        """Return the generated ids of the next rows of a file; the n-th row with an id gets one of its own.

        The first keeps its id, so that a file may be loaded with and without numbers. The others have a digest of id
        and number: the same ids whenever the file is read from its start.
        """
        return pa.array([self._numbered(event_id) for event_id in ids.to_pylist()], pa.string())

    def _numbered(self, event_id: str) -> str:
        self.seen[event_id] += 1
        count = self.seen[event_id]
        return (
            event_id if count == 1 else blake2b(f"{event_id}:{count}".encode(), digest_size=_DIGEST_BYTES).hexdigest()
        )


def to_events(path: Path, rows: Rows, mapping: ColumnMapping) -> tuple[pa.Table, dict[int, str]]:
    """Return rows of the file `path` as EVENT columns, and the problem of each invalid row by its index.

    Only times and ids are validated; an invalid time is null, an empty value stays empty. Raises UsageError for a
    column that is missing or has no text form.
    """
    file_columns = rows.columns.column_names
    rows = (rows if mapping.time_zone else rows.in_utc()).with_nested_columns(mapping.required_columns())
    _check_columns(path, rows, mapping)
    user_ids, actions = _text_or(mapping.user_id, mapping.user, rows), _actions(rows, mapping)
    times, errors = _times(rows.columns[mapping.time].combine_chunks(), mapping)
    errors = {row: f"column {mapping.time!r}: {error}" for row, error in errors.items()}
    names = [*(mapping.identity or _without_index(file_columns))]
    digested = None if mapping.event_id else _digests(rows, names, actions, user_ids, times, mapping.time)
    columns = {
        "event_id": rows.text(mapping.event_id) if mapping.event_id else digested,
        "user_id": user_ids,
        "action_type": actions,
        "event_time": times,
        "metadata": _metadata(rows, mapping),
    }
    return pa.table([columns[name] for name in EVENT.names], schema=EVENT), errors | _invalid_ids(rows, mapping)


def _invalid_ids(rows: Rows, mapping: ColumnMapping) -> dict[int, str]:
    """Return the problem of each row, by index, whose id is invalid or a value of another kind."""
    problems: dict[int, str] = {}
    for name in mapping.id_columns:
        problems |= {row: f"column {name!r}: {what}" for row, what in problems_of_ids(rows.text(name)).items()}
    return problems | rows.problems


def _check_columns(path: Path, rows: Rows, mapping: ColumnMapping) -> None:
    for column in mapping.required_columns():
        if column not in rows.columns.column_names:
            raise UsageError(f"{path}: there is no column {column!r}{_suggestion(column, rows.columns.column_names)}")
        if kind := rows.unreadable(column):
            raise UsageError(
                f"{path}: column {column!r} has type {kind}, which cannot be read as text: convert it first"
            )


def _suggestion(column: str, columns: list[str]) -> str:
    """Return the end of the message about a missing column: what the file has, and what to type."""
    for name in columns:
        if name != column and name.strip().casefold() == column.strip().casefold():
            return f": do you mean {name!r}? Spaces and case matter"
    shown = ", ".join(repr(name[:_MAX_SHOWN_CHARS]) for name in columns[:_MAX_SHOWN_COLUMNS])
    more = ", ..." if len(columns) > _MAX_SHOWN_COLUMNS else ""
    is_row = any(_NUMBER_OR_DATE.fullmatch(name) for name in columns)
    remedy = " (that is a row: name the columns with --columns, in their order)" if is_row else ""
    return f"; the columns are {shown}{more}{remedy}"


def _to_valid_events(path: Path, rows: Rows, mapping: ColumnMapping) -> pa.Table:
    """Return rows as events. Raises UsageError for the first invalid row."""
    events, errors = to_events(path, rows, mapping)
    sources = {"event_id": mapping.event_id, "user_id": mapping.user_id, "action_type": mapping.action_type_column}
    wrong = list(errors.items())
    for name, column in sources.items():
        empty = pc.indices_nonzero(pc.equal(events[name], "")) if column else []
        wrong += [(row.as_py(), f"column {column!r}: it is empty") for row in empty[:1]]
    if wrong:
        row, problem = min(wrong)
        raise UsageError(f"{path}: {rows.place(row)}, {problem}")
    return events


def _times(values: pa.Array, mapping: ColumnMapping) -> tuple[pa.Array, dict[int, str]]:
    if not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        return read_file_times(values, mapping.time_unit, mapping.time_format, mapping.time_zone)
    empty = pc.indices_nonzero(pc.is_null(values)).to_pylist()
    return zoned_times(values, mapping.time_zone), dict.fromkeys(empty, "it is empty")


def _actions(rows: Rows, mapping: ColumnMapping) -> pa.Array:
    return _text_or(mapping.action_type_column, mapping.action_type, rows)


def _text_or(column: str | None, constant: str | None, rows: Rows) -> pa.Array:
    return rows.text(column) if column else pa.repeat(pa.scalar(constant, pa.string()), len(rows.columns))


def _metadata(rows: Rows, mapping: ColumnMapping) -> pa.Array:
    """Return one map per row, in the order of the mapping, without empty values."""
    count, width = len(rows.columns), len(mapping.metadata)
    if not width:
        return pa.MapArray.from_arrays(
            np.zeros(count + 1, np.int32), pa.array([], pa.string()), pa.array([], pa.string())
        )
    values = pa.concat_arrays([rows.text(column) for _, column in mapping.metadata])  # column-major
    row_major = np.arange(count * width).reshape(width, count).T
    filled = pc.not_equal(values, "").to_numpy(zero_copy_only=False)[row_major]
    names = pa.array([name for name, _ in mapping.metadata], pa.string())
    bounds = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int32)
    return pa.MapArray.from_arrays(
        bounds, names.take(pa.array(filled.nonzero()[1])), values.take(pa.array(row_major[filled]))
    )


def row_digests(rows: Rows) -> pa.Array:
    """Return a digest of each row: of every non-empty value by column name, in any format and at any position."""
    names = [name for name in _without_index(rows.columns.column_names) if rows.unreadable(name) is None]
    nothing = pa.repeat(pa.scalar(""), len(rows.columns))
    return _digest_columns(nothing, nothing, {name: canonicalize(rows.text(name)) for name in names})


def _without_index(names: Iterable[str]) -> list[str]:
    return [name for name in names if not _INDEX.fullmatch(name)]


def _digests(
    rows: Rows, names: list[str], actions: pa.Array, user_ids: pa.Array, times: pa.Array, time: str
) -> pa.Array:
    texts = {name: rows.text(name) for name in names if name != time or times.null_count}
    columns = {name: canonicalize(values) for name, values in texts.items() if pc.any(pc.not_equal(values, "")).as_py()}
    if time in names:
        columns[time] = pc.coalesce(times.cast(pa.int64()).cast(pa.string()), columns.get(time, ""))
    return _digest_columns(actions, canonicalize(user_ids), columns)


def _digest_columns(actions: pa.Array, user_ids: pa.Array, columns: dict[str, pa.Array]) -> pa.Array:
    """Return a digest of 32 hexadecimal digits per row; rows are sliced, since each repeats every column name."""
    whole = pa.table([actions, user_ids, *columns.values()], ["", "", *columns])
    max_rows = max(1, CHUNK_BYTES // (sum(map(len, columns)) + whole.nbytes // max(1, len(whole)) + 1))
    digests = [_digests_of(whole.slice(start, max_rows), [*columns]) for start in range(0, len(whole), max_rows)]
    return pa.concat_arrays([pa.array([], pa.string()), *digests])


def _digests_of(whole: pa.Table, names: list[str]) -> pa.Array:
    """Return the digests of rows of action, user_id and values by column name.

    Names and values are length-prefixed, so that different rows have different input.
    """
    action, user_id, *values = (column.combine_chunks() for column in whole.columns)
    parts = [_length_prefixed(action), _length_prefixed(user_id)]
    for name, texts in sorted(zip(names, values, strict=True), key=itemgetter(0)):
        prefix = f"{len(name.encode())}:{name}"
        parts.append(
            pc.if_else(pc.equal(texts, ""), "", pc.binary_join_element_wise(prefix, _length_prefixed(texts), ""))
        )
    joined = pc.binary_join_element_wise(*parts, "").cast(pa.binary()).to_pylist()
    return pa.array([blake2b(row, digest_size=_DIGEST_BYTES).hexdigest() for row in joined], pa.string())


def _length_prefixed(values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pc.binary_length(values).cast(pa.string()), values, ":")
