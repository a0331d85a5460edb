"""A file of history as a source of batches: each row is a record.

A file is a topic of one partition. Its topic id is a digest of its path, size, modification time, column mapping or
source, and the settings of the contract: after a change of one of them it is read from its start, and dedup drops the
events that the lake has already.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.contract.decode import Decoded, validate
from pipelines.contract.parsing import Parsed, Problem
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import HEADERS, RECORD, TIMESTAMP
from pipelines.errors import UsageError
from pipelines.ingest.at_hand import RecordsAtHand
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.mapping.row_select import RowSelect, join_rows, open_row_select
from pipelines.mapping.source_files import SourceFile
from pipelines.settings import ContractSettings, Settings
from pipelines.sources.files import (
    ColumnMapping,
    RowNumbering,
    check_unchanged,
    file_state,
    read_mapped,
    to_events,
)
from pipelines.sources.options import ReadOptions
from pipelines.sources.rows import Rows, describe


@dataclass(slots=True)
class FileSource(RecordsAtHand):
    """The rows of one file from a checkpoint on; `open_file` makes it."""

    path: Path
    mapping: ColumnMapping | RowSelect
    settings: Settings
    topic_id: str
    name: str
    """Its address: a path, an URI, `-` for standard input, or the name of a frame."""
    state: list[int]
    """Its size and modification time when it was opened."""
    source: SourceFile | None = None
    """The source file that says what the rows are; None if the caller does."""
    position: int = 0
    """The next row, counted from 0."""
    chunks: Iterator[Rows] = field(default_factory=lambda: iter(()))
    numbering: RowNumbering = field(default_factory=RowNumbering)
    hashes: list[pl.Series] = field(default_factory=list[pl.Series])
    """Of the ids of the events that were read, of 64 bits."""
    first: int = 0
    """The first row that was read."""

    def describe(self) -> str:
        """Describe what was found about the form of the file and is not the usual. Raises UsageError."""
        return describe(self.path, self.mapping.reading, self.mapping.required_columns(), self.name)

    def equal_rows(self) -> int | None:
        """Return how many events have the event_id of an earlier one; None unless all rows were read now."""
        if self.first or not self.hashes:
            return None
        hashes = pl.concat(self.hashes)
        return len(hashes) - hashes.n_unique()

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the rows from the checkpoint on, in whole chunks up to the limits of a batch; None at the end.

        An invalid row is rejected, with the row as JSON in the value. Raises UsageError for a missing column, an
        unreadable file, and one that changed since it was opened; nothing of this batch is committed then.
        """
        start = checkpoint(self.topic_id, 0) or 0
        if start == 0 or start != self.position:
            self._begin(start)
        chunks = list(self._chunks_of_a_batch())
        check_unchanged(self.path, self.state)
        if not chunks:
            return None
        mapping = self.mapping
        is_select = isinstance(mapping, RowSelect)
        records, decoded = self._select(mapping, chunks, start) if is_select else self._decode(mapping, chunks, start)
        if not len(records):
            return None
        self.position += len(records)
        bounds = (start, self.position, len(records))
        name = self.source and self.source.name
        offsets = OffsetRange(self.topic_id, self.topic, 0, *bounds, source=name, source_digest=self.digest)
        return Batch(self.topic, records, _with_values(decoded, chunks, start), (offsets,))

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoint after the last poll."""
        position = self.position
        return lambda _topic_id, _partition: position

    def close(self) -> None:
        """End the process that maps rows, if there is one."""
        if isinstance(self.mapping, RowSelect):
            self.mapping.close()

    @property
    def topic(self) -> str:
        """Return the name of the file as a topic."""
        return f"file:{self.name}"

    @property
    def digest(self) -> str:
        """Return the digest of what says what the rows are: the source file, or the column mapping."""
        if self.source is not None:
            return self.source.digest
        assert isinstance(self.mapping, ColumnMapping)  # noqa: S101 - tells the type checker
        return _digest(_mapping_identity(self.mapping))

    def _begin(self, start: int) -> None:
        """Prepare to read from a row on; the rows before it are read too where their ids count."""
        self.position, self.first, self.numbering, self.hashes = start, start, RowNumbering(), []
        rows = read_mapped(self.path, self.mapping, self.name)
        self.chunks = _from_row(start, self._numbered(rows, start) if self.mapping.number_rows else rows)

    def _numbered(self, chunks: Iterator[Rows], start: int) -> Iterator[Rows]:
        """Yield the rows, and number those before the first `start`, which are skipped."""
        row = 0
        for rows in chunks:
            if row < start:
                skipped = replace(rows, columns=rows.columns.slice(0, start - row))
                self._number(skipped)
            row += len(rows.columns)
            yield rows

    def _chunks_of_a_batch(self) -> Iterator[Rows]:
        limits, count, size = self.settings.ingest, 0, 0
        while count < limits.max_batch_records and size < limits.max_batch_bytes:
            chunk = next(self.chunks, None)
            if chunk is None:
                return
            yield chunk
            count, size = count + len(chunk.columns), size + chunk.columns.nbytes

    def _decode(self, mapping: ColumnMapping, chunks: list[Rows], start: int) -> tuple[pa.Table, Decoded]:
        """Return the records and events of rows by plain fields."""
        events: list[pa.Table] = []
        errors: dict[int, Problem] = {}
        for rows in chunks:
            before = sum(map(len, events))
            mapped, problems = to_events(self.path, rows, mapping)
            for row, problem in problems.items():
                errors[before + row] = Problem(Reason.UNDECODABLE, f"{rows.place(row)}, {problem}.")
            events.append(mapped)
        all_events = self.numbering.apply(pa.concat_tables(events), mapping).combine_chunks()
        self.hashes.append(pl.Series(all_events["event_id"]).hash())
        records = self._records(all_events["user_id"].cast(pa.binary()), start)
        return records, validate(records, Parsed(all_events, errors), self.settings.contract, datetime.now(UTC))

    def _select(self, mapping: RowSelect, chunks: list[Rows], start: int) -> tuple[pa.Table, Decoded]:
        """Return the records and events of rows by the SELECT of a source."""
        rows = join_rows(chunks)
        records = self._records(pa.nulls(len(rows.columns), pa.binary()), start)
        digests = mapping.digests(rows, self.numbering)
        decoded = mapping.decode(records, rows, digests, self.settings.contract, self.name)
        self.hashes.append(pl.Series(decoded.events["event_id"].combine_chunks()).hash())
        return records, decoded

    def _number(self, skipped: Rows) -> None:
        """Count rows that are not read again."""
        if isinstance(self.mapping, RowSelect):
            self.mapping.digests(skipped, self.numbering)
        else:
            self.numbering.apply(to_events(self.path, skipped, self.mapping)[0], self.mapping)

    def _records(self, keys: pa.Array | pa.ChunkedArray, start: int) -> pa.Table:
        """Return RECORD columns with empty values: `_with_values` fills those of the few rejected rows."""
        count = len(keys)
        columns = [
            pa.repeat(pa.scalar(self.topic_id), count),
            pa.repeat(pa.scalar(self.topic), count),
            pa.repeat(pa.scalar(0, pa.int32()), count),
            pa.array(np.arange(start, start + count)),
            pa.repeat(pa.scalar(datetime.now(UTC), TIMESTAMP), count),
            keys,
            pa.repeat(pa.scalar(b""), count),
            pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], HEADERS.value_type), type=HEADERS),
        ]
        return pa.table(columns, schema=RECORD)


def open_file(
    path: Path, rows: ColumnMapping | SourceFile, settings: Settings, name: str = "", content: str = ""
) -> FileSource:
    """Return a source of the rows of a file, which are what a column mapping or a source file says.

    `name` and `content` are the address and a digest of the content of a file that was copied here; otherwise its path,
    size and modification time identify it. Raises UsageError if the file does not exist.
    """
    try:
        path = path.resolve(strict=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    state = file_state(path)
    place = [name, content] if content else [str(path), *state]
    identity = [*place, _identity(rows), *_changed(settings.contract)]
    source = rows if isinstance(rows, SourceFile) else None
    return FileSource(path, _mapping(rows), settings, f"file-{_digest(identity)}", name or str(path), state, source)


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _mapping(rows: ColumnMapping | SourceFile) -> ColumnMapping | RowSelect:
    if isinstance(rows, ColumnMapping):
        return rows
    return rows.fields or open_row_select(rows)


def _identity(rows: ColumnMapping | SourceFile) -> dict[str, Any]:
    """Return what says what rows are: of a source file its digest, so another text is another load."""
    if isinstance(rows, ColumnMapping):
        return _mapping_identity(rows)
    return {"source": rows.name, "digest": rows.digest}


_FIRST_FIELDS = ("user_id", "time", "time_unit", "action_type", "action_type_column", "metadata", "event_id")


_BOUNDS = {
    "max_event_id_bytes",
    "max_user_id_bytes",
    "max_action_type_bytes",
    "max_metadata_bytes",
    "earliest",
    "max_ahead_seconds",
}


def _mapping_identity(mapping: ColumnMapping) -> dict[str, Any]:
    """Return what a mapping says. What is not given is left out, so that new options leave loaded files loaded."""
    values = asdict(mapping)
    reading = {name: value for name, value in values["reading"].items() if value != getattr(ReadOptions(), name)}
    first = {name: values[name] for name in _FIRST_FIELDS} | {"delimiter": reading.pop("delimiter", None)}
    others = {
        each.name: values[each.name]
        for each in fields(mapping)
        if each.name not in {*_FIRST_FIELDS, "reading"} and values[each.name] != each.default
    }
    return first | others | reading


def _changed(contract: ContractSettings) -> list[dict[str, Any]]:
    """Return the settings of the contract that are not the default, which decide what a valid row is."""
    changed = contract.model_dump(mode="json", include=_BOUNDS, exclude_defaults=True)
    return [changed] if changed else []


def _from_row(start: int, chunks: Iterator[Rows]) -> Iterator[Rows]:
    """Yield the rows after the first `start`."""
    for rows in chunks:
        skipped = min(start, len(rows.columns))
        start -= skipped
        if skipped < len(rows.columns) or not rows.columns.num_rows:
            yield rows.slice(skipped)


def _with_values(decoded: Decoded, chunks: list[Rows], start: int) -> Decoded:
    """Return `decoded` with each rejected row as JSON in its value, with the text of the file."""
    if not len(decoded.rejected):
        return decoded
    places = pa.array(decoded.rejected["offset"].to_numpy() - start)
    columns = pa.concat_tables([rows.columns for rows in chunks]).take(places)
    rejected_rows = replace(chunks[0], columns=columns)
    names = columns.column_names
    texts = [rejected_rows.text(name) for name in names]
    rows = (dict(zip(names, (text[row].as_py() for text in texts), strict=True)) for row in range(len(columns)))
    values = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    index = decoded.rejected.schema.get_field_index("value")
    rejected = decoded.rejected.set_column(index, "value", pa.array(values, pa.binary()))
    return replace(decoded, rejected=rejected)
