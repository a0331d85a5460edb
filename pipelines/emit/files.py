"""Rows of a file as events, columns mapped by the caller."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import EVENT, METADATA, TIMESTAMP
from pipelines.emit.rows import Rows, read_rows
from pipelines.emit.times import TimeUnit, reader
from pipelines.errors import UsageError

pc: Any = compute  # its functions are made at import, where pyright does not see them
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Mapping:
    """Which column of a file is which field of the event."""

    user_id: str
    time: str
    time_unit: TimeUnit
    """Of numbers and text; a Parquet column that already holds timestamps says its unit itself."""
    action_type: str | None = None
    """One action_type for all rows; or else `action_type_column`."""
    action_type_column: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    """(name in the event, column); an empty value is left out."""
    event_id: str | None = None
    """None: a digest of the row, see `read_events`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if (self.action_type is None) == (self.action_type_column is None):
            raise UsageError("give either one action_type for all rows or the column that holds it")
        names = [name for name, _ in self.metadata]
        if len(set(names)) < len(names):
            raise UsageError(f"a metadata name is given twice: {', '.join(names)}")

    def columns(self) -> list[str]:
        """Return the columns that must be there."""
        fields = [self.user_id, self.time, self.action_type_column, self.event_id]
        return [*filter(None, fields), *(column for _, column in self.metadata)]


def read_events(path: Path, mapping: Mapping) -> Iterator[pa.Table]:
    """Yield the rows of a CSV, Parquet or NDJSON file as tables of EVENT columns, in the order of the file.

    Without an event_id column, the id is a digest of the action_type, the user_id and every value of the row that is
    not empty, by column name: the same row gets the same id in every run, at any place, in any of the formats, and a
    later column that is empty in it changes nothing. Two identical rows of a file are one event, sent twice.

    Raises UsageError for the first row that is no event, naming file, row and column. A chunk is checked
    before it is yielded; the error says how many rows were yielded before.
    """
    passed_on = 0
    try:
        for rows in read_rows(path):
            yield _events(_Place(path, rows), mapping)
            passed_on += len(rows.columns)
    except UsageError as error:
        if not passed_on:
            raise
        raise UsageError(
            f"{error} ({passed_on:,} rows before it were passed on; sending the mended file again is harmless, "
            "because each event_id counts once)"
        ) from None


def _events(place: "_Place", mapping: Mapping) -> pa.Table:
    place.require(mapping.columns())
    user_ids = place.filled(mapping.user_id)
    actions = _actions(place, mapping)
    unit = "iso" if mapping.time in place.rows.iso_times else mapping.time_unit
    columns = {
        "event_id": place.filled(mapping.event_id) if mapping.event_id else _digests(place.rows, actions, user_ids),
        "user_id": user_ids,
        "action_type": actions,
        "event_time": pa.array(place.read(mapping.time, reader(unit)), pa.int64()).cast(TIMESTAMP),
        "metadata": _metadata(place.rows, mapping),
    }
    return pa.table([columns[name] for name in EVENT.names], schema=EVENT)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in which file we are: reads a column, or says what is wrong with which row."""

    path: Path
    rows: Rows

    def require(self, columns: Iterable[str]) -> None:
        there = self.rows.columns.column_names
        for column in columns:
            if column not in there:
                raise UsageError(f"{self.path}: there is no column {column!r}; the columns are {', '.join(there)}")

    def filled(self, column: str) -> pa.Array:
        values = _column(self.rows, column)
        empty = pc.indices_nonzero(pc.equal(values, ""))
        if len(empty):
            self._refuse(empty[0].as_py(), column, "it is empty")
        return values

    def read(self, column: str, read: Callable[[str], int]) -> list[int]:
        values: list[int] = []
        try:
            for text in _column(self.rows, column).to_pylist():
                values.append(read(text))  # noqa: PERF401 # its length says which row failed
        except ValueError as error:
            self._refuse(len(values), column, str(error))
        return values

    def _refuse(self, row: int, column: str, problem: str) -> NoReturn:
        where = f"{self.path}: {self.rows.row_word} {self.rows.first_row + row}, column {column!r}"
        raise UsageError(f"{where}: {problem}")


def _column(rows: Rows, name: str) -> pa.Array:
    return rows.columns[name].combine_chunks()


def _actions(place: _Place, mapping: Mapping) -> pa.Array:
    if mapping.action_type_column:
        return place.filled(mapping.action_type_column)
    return pa.repeat(pa.scalar(mapping.action_type, pa.string()), len(place.rows.columns))


def _metadata(rows: Rows, mapping: Mapping) -> pa.Array:
    names = [name for name, _ in mapping.metadata]
    columns = [_column(rows, column).to_pylist() for _, column in mapping.metadata]
    if not columns:
        return pa.array([[]] * len(rows.columns), METADATA)
    entries = [[(name, value) for name, value in zip(names, row, strict=True) if value] for row in zip(*columns)]  # noqa: B905 # columns of one table
    return pa.array(entries, METADATA)


def _digests(rows: Rows, actions: pa.Array, user_ids: pa.Array) -> pa.Array:
    """Return 32 hexadecimal digits a row. Lengths stand before names and values, so that no two rows read alike."""
    parts = [_counted(actions), _counted(user_ids)]
    for name in sorted(rows.columns.column_names):
        values = _column(rows, name)
        prefix = f"{len(name.encode())}:{name}"
        parts.append(pc.if_else(pc.equal(values, ""), "", pc.binary_join_element_wise(prefix, _counted(values), "")))
    joined = pc.binary_join_element_wise(*parts, "").cast(pa.binary()).to_pylist()
    return pa.array([blake2b(row, digest_size=_DIGEST_BYTES).hexdigest() for row in joined], pa.string())


def _counted(values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pc.binary_length(values).cast(pa.string()), values, ":")
