"""Rows of a file as events, columns mapped by the caller."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import EVENT
from pipelines.contract.times import TimeUnit, read_times
from pipelines.emit.rows import Rows, read_rows
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
            yield _checked(path, rows, mapping)
            passed_on += len(rows.columns)
    except UsageError as error:
        if not passed_on:
            raise
        raise UsageError(
            f"{error} ({passed_on:,} rows before it were passed on; sending the mended file again is harmless, "
            "because each event_id counts once)"
        ) from None


def to_events(path: Path, rows: Rows, mapping: Mapping) -> tuple[pa.Table, dict[int, str]]:
    """Return rows of the file `path` as EVENT columns, and by row what is wrong with its time, which is null then.

    Nothing else is judged: an empty value stays empty. Raises UsageError for a column that is not there.
    """
    there = rows.columns.column_names
    for column in mapping.columns():
        if column not in there:
            raise UsageError(f"{path}: there is no column {column!r}; the columns are {', '.join(there)}")
    user_ids, actions = rows.text(mapping.user_id), _actions(rows, mapping)
    times, errors = _times(rows.columns[mapping.time].combine_chunks(), mapping.time_unit)
    columns = {
        "event_id": rows.text(mapping.event_id) if mapping.event_id else _digests(rows, actions, user_ids),
        "user_id": user_ids,
        "action_type": actions,
        "event_time": times,
        "metadata": _metadata(rows, mapping),
    }
    return pa.table([columns[name] for name in EVENT.names], schema=EVENT), errors


def _checked(path: Path, rows: Rows, mapping: Mapping) -> pa.Table:
    """Return rows as events, or refuse the first that is none."""
    events, errors = to_events(path, rows, mapping)
    sources = {"event_id": mapping.event_id, "user_id": mapping.user_id, "action_type": mapping.action_type_column}
    wrong = [(row, mapping.time, error) for row, error in errors.items()]
    for name, column in sources.items():
        empty = pc.indices_nonzero(pc.equal(events[name], "")) if column else []
        wrong += [(row.as_py(), column, "it is empty") for row in empty[:1]]
    if wrong:
        row, column, problem = min(wrong)
        raise UsageError(f"{path}: {rows.row_word} {rows.first_row + row}, column {column!r}: {problem}")
    return events


def _times(values: pa.Array, unit: TimeUnit) -> tuple[pa.Array, dict[int, str]]:
    if not pa.types.is_timestamp(values.type):
        return read_times(values, unit)
    return values, dict.fromkeys(pc.indices_nonzero(pc.is_null(values)).to_pylist(), "it is empty")


def _actions(rows: Rows, mapping: Mapping) -> pa.Array:
    if mapping.action_type_column:
        return rows.text(mapping.action_type_column)
    return pa.repeat(pa.scalar(mapping.action_type, pa.string()), len(rows.columns))


def _metadata(rows: Rows, mapping: Mapping) -> pa.Array:
    """Return a map a row, in the order of the mapping, without its empty values."""
    count, width = len(rows.columns), len(mapping.metadata)
    if not width:
        return pa.MapArray.from_arrays(
            np.zeros(count + 1, np.int32), pa.array([], pa.string()), pa.array([], pa.string())
        )
    values = pa.concat_arrays([rows.text(column) for _, column in mapping.metadata])  # column behind column
    by_row = np.arange(count * width).reshape(width, count).T
    filled = pc.not_equal(values, "").to_numpy(zero_copy_only=False)[by_row]
    names = pa.array([name for name, _ in mapping.metadata], pa.string())
    bounds = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int32)
    return pa.MapArray.from_arrays(
        bounds, names.take(pa.array(filled.nonzero()[1])), values.take(pa.array(by_row[filled]))
    )


def _digests(rows: Rows, actions: pa.Array, user_ids: pa.Array) -> pa.Array:
    """Return 32 hexadecimal digits a row. Lengths stand before names and values, so that no two rows read alike."""
    parts = [_counted(actions), _counted(user_ids)]
    for name in sorted(rows.columns.column_names):
        values = rows.text(name)
        prefix = f"{len(name.encode())}:{name}"
        parts.append(pc.if_else(pc.equal(values, ""), "", pc.binary_join_element_wise(prefix, _counted(values), "")))
    joined = pc.binary_join_element_wise(*parts, "").cast(pa.binary()).to_pylist()
    return pa.array([blake2b(row, digest_size=_DIGEST_BYTES).hexdigest() for row in joined], pa.string())


def _counted(values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pc.binary_length(values).cast(pa.string()), values, ":")
