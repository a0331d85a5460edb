"""Rows of a file as events, columns mapped by the caller."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipelines.contract.schema import EVENT, TIMESTAMP
from pipelines.contract.times import TimeUnit, read_times
from pipelines.errors import UsageError
from pipelines.sources.bounds import CHUNK_BYTES
from pipelines.sources.canonical import canonical
from pipelines.sources.csv_rows import SEPARATORS
from pipelines.sources.rows import Rows, read_rows

pc: Any = compute  # its functions are made at import, where pyright does not see them
_DIGEST_BYTES = 16
_SINGLE = "\t !#$%&'()*+,-./:;<=>?@[]^_`{|}~"
_SHOWN_COLUMNS = 20
_SHOWN_CHARS = 80
_ROUNDED = r"^-?[0-9](?:\.[0-9]+[eE]\+?|[eE]\+)[0-9]{1,3}$"
"""How a spreadsheet and a float write a large number."""


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
    delimiter: str | None = None
    """What separates the values of a row; None: a comma in .csv, a tab in .tsv."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if (self.action_type is None) == (self.action_type_column is None):
            raise UsageError("give either one action_type for all rows or the column that holds it")
        names = [name for name, _ in self.metadata]
        if len(set(names)) < len(names):
            raise UsageError(f"a metadata name is given twice: {', '.join(names)}")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter not in _SINGLE):
            raise UsageError(f"{self.delimiter!r} does not separate values: give one character of ASCII, or 'tab'")

    @property
    def ids(self) -> list[str]:
        """Return the columns that hold ids."""
        return [self.user_id, *filter(None, [self.event_id])]

    def columns(self) -> list[str]:
        """Return the columns that must be there."""
        fields = [self.user_id, self.time, self.action_type_column, self.event_id]
        return [*filter(None, fields), *(column for _, column in self.metadata)]


def read_events(path: Path, mapping: Mapping) -> Iterator[pa.Table]:
    """Yield the rows of a CSV, Parquet or NDJSON file as tables of EVENT columns, in the order of the file.

    Without an event_id column, the id is a digest of the action_type, the user_id, the time and every other value of
    the row that is not empty, by column name: the same row gets the same id in every run, at any place, in any of the
    formats however they write its numbers and times (`canonical.py`), and a later column that is empty in it changes
    nothing. Two identical rows of a file are one event, sent twice.

    Raises UsageError for the first row that is no event, naming file, row and column. A chunk is checked
    before it is yielded; the error says how many rows were yielded before.
    """
    passed_on = 0
    try:
        for rows in read_rows(path, mapping.delimiter, mapping.ids):
            yield _checked(path, rows, mapping)
            passed_on += len(rows.columns)
    except UsageError as error:
        if not passed_on:
            raise
        raise UsageError(
            f"{error} ({passed_on:,} rows before it were passed on; sending the corrected file again is harmless, "
            "because each event_id counts once)"
        ) from None


def to_events(path: Path, rows: Rows, mapping: Mapping) -> tuple[pa.Table, dict[int, str]]:
    """Return rows of the file `path` as EVENT columns, and by row which column is wrong and how.

    A time that is wrong is null. Nothing but times and ids is judged, and an empty value stays empty. Raises UsageError
    for a column that is not there, or that has no text.
    """
    file_columns = rows.columns.column_names
    rows = rows.with_paths(mapping.columns())
    _check_columns(path, rows, mapping)
    user_ids, actions = rows.text(mapping.user_id), _actions(rows, mapping)
    times, errors = _times(rows.columns[mapping.time].combine_chunks(), mapping.time_unit)
    errors = {row: f"column {mapping.time!r}: {error}" for row, error in errors.items()}
    digested = None if mapping.event_id else _digests(rows, file_columns, actions, user_ids, times, mapping.time)
    columns = {
        "event_id": rows.text(mapping.event_id) if mapping.event_id else digested,
        "user_id": user_ids,
        "action_type": actions,
        "event_time": times,
        "metadata": _metadata(rows, mapping),
    }
    return pa.table([columns[name] for name in EVENT.names], schema=EVENT), errors | _no_ids(rows, mapping)


def _no_ids(rows: Rows, mapping: Mapping) -> dict[int, str]:
    """Return by row which id was a number, and has lost its digits on its way into text."""
    problems = dict(rows.problems)
    for name in mapping.ids:
        texts = rows.text(name)
        for row in pc.indices_nonzero(pc.match_substring_regex(texts, _ROUNDED)).to_pylist():
            problems[row] = f"column {name!r}: {texts[row].as_py()!r} is a rounded number, not an id: write every digit"
    return problems


def _check_columns(path: Path, rows: Rows, mapping: Mapping) -> None:
    for column in mapping.columns():
        if column not in rows.columns.column_names:
            raise UsageError(f"{path}: there is no column {column!r}{_meant(column, rows.columns.column_names)}")
        if kind := rows.unreadable(column):
            raise UsageError(f"{path}: column {column!r} is of type {kind}, which has no text: convert it first")


def _meant(column: str, there: list[str]) -> str:
    """Return what there is instead, and what to type, as the end of a sentence."""
    only = there[0] if len(there) == 1 else ""
    for written, option in SEPARATORS.items():
        if written in only:
            return f"; the header is {only[:_SHOWN_CHARS]!r}: give --delimiter {option}"
    if there and there[0].startswith(("#", "sep=")):
        header = ", ".join(there)[:_SHOWN_CHARS]
        return f"; the header is {header!r}: remove the lines above the one that names the columns"
    for name in there:
        if name != column and name.strip().casefold() == column.strip().casefold():
            return f": do you mean {name!r}? Spaces and case count; sed 's/, */,/g' removes spaces behind commas"
    shown = ", ".join(there[:_SHOWN_COLUMNS]) + (", ..." if len(there) > _SHOWN_COLUMNS else "")
    return f"; the columns are {shown}"


def _checked(path: Path, rows: Rows, mapping: Mapping) -> pa.Table:
    """Return rows as events, or refuse the first that is none."""
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


def _times(values: pa.Array, unit: TimeUnit) -> tuple[pa.Array, dict[int, str]]:
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us")).cast(TIMESTAMP)
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


def _digests(
    rows: Rows, names: list[str], actions: pa.Array, user_ids: pa.Array, times: pa.Array, time: str
) -> pa.Array:
    """Return 32 hexadecimal digits a row, some rows at a time: every name is repeated in each of them."""
    texts = {name: rows.text(name) for name in names if name != time or times.null_count}
    columns = {name: canonical(values) for name, values in texts.items() if pc.any(pc.not_equal(values, "")).as_py()}
    if time in names:
        columns[time] = pc.coalesce(times.cast(pa.int64()).cast(pa.string()), columns.get(time, ""))
    whole = pa.table([actions, canonical(user_ids), *columns.values()], ["", "", *columns])
    most = max(1, CHUNK_BYTES // (sum(map(len, columns)) + whole.nbytes // max(1, len(whole)) + 1))
    digests = [_digests_of(whole.slice(start, most), [*columns]) for start in range(0, len(whole), most)]
    return pa.concat_arrays([pa.array([], pa.string()), *digests])


def _digests_of(whole: pa.Table, names: list[str]) -> pa.Array:
    """Return the digests of an action, a user_id and values by name.

    Lengths stand before names and values, so that no two rows read alike.
    """
    action, user_id, *values = (column.combine_chunks() for column in whole.columns)
    parts = [_counted(action), _counted(user_id)]
    for name, texts in sorted(zip(names, values, strict=True), key=itemgetter(0)):
        prefix = f"{len(name.encode())}:{name}"
        parts.append(pc.if_else(pc.equal(texts, ""), "", pc.binary_join_element_wise(prefix, _counted(texts), "")))
    joined = pc.binary_join_element_wise(*parts, "").cast(pa.binary()).to_pylist()
    return pa.array([blake2b(row, digest_size=_DIGEST_BYTES).hexdigest() for row in joined], pa.string())


def _counted(values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pc.binary_length(values).cast(pa.string()), values, ":")
