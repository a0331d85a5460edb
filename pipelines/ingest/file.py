"""A file of history as a source of batches: each row is a record.

A file is a topic of one partition. Its topic id is a digest of its path, size, modification time and column mapping: a
file that changed is read from its start, and dedup drops the events that the lake has already.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import Decoded, validate
from pipelines.contract.parsing import Parsed, Problem
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import HEADERS, RECORD, TIMESTAMP
from pipelines.errors import UsageError
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.guard import HaltedPartition
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping, to_events
from pipelines.sources.rows import Rows, read_rows


@dataclass(slots=True)
class FileSource:
    """The rows of one file from a checkpoint on; `open_file` makes it."""

    path: Path
    mapping: ColumnMapping
    settings: Settings
    topic_id: str
    position: int = 0
    """The next row, counted from 0."""
    chunks: Iterator[Rows] = field(default_factory=lambda: iter(()))

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the rows from the checkpoint on, in whole chunks up to the limits of a batch; None at the end.

        An invalid row is rejected, with the row as JSON in the value. Raises UsageError for a missing column or an
        unreadable file; nothing of this batch is committed then.
        """
        start = checkpoint(self.topic_id, 0) or 0
        if start == 0 or start != self.position:
            self.position, self.chunks = start, _from_row(start, self._read())
        chunks = list(self._chunks_of_a_batch())
        if not chunks:
            return None
        records, decoded = self._decode(chunks, start)
        self.position += len(records)
        offsets = OffsetRange(self.topic_id, self._topic, 0, start, self.position, read=len(records))
        return Batch(self._topic, records, _with_values(decoded, chunks, start), (offsets,))

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoint after the last poll."""
        position = self.position
        return lambda _topic_id, _partition: position

    def remaining_records(self) -> int:
        """Return 0: if a poll returns nothing, the file is at its end."""
        return 0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Do nothing: the lake's checkpoint is the only one."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: a file that changed is another topic."""
        return ()

    def halt(self, halted: HaltedPartition) -> None:
        """Raise RejectedError: there is no other topic partition."""
        raise halted.error()

    @property
    def _topic(self) -> str:
        return f"file:{self.path}"

    def _read(self) -> Iterator[Rows]:
        return read_rows(self.path, self.mapping.delimiter, self.mapping.id_columns)

    def _chunks_of_a_batch(self) -> Iterator[Rows]:
        limits, count, size = self.settings.ingest, 0, 0
        while count < limits.max_batch_records and size < limits.max_batch_bytes:
            chunk = next(self.chunks, None)
            if chunk is None:
                return
            yield chunk
            count, size = count + len(chunk.columns), size + chunk.columns.nbytes

    def _decode(self, chunks: list[Rows], start: int) -> tuple[pa.Table, Decoded]:
        events: list[pa.Table] = []
        errors: dict[int, Problem] = {}
        for rows in chunks:
            before = sum(map(len, events))
            mapped, problems = to_events(self.path, rows, self.mapping)
            for row, problem in problems.items():
                errors[before + row] = Problem(Reason.UNDECODABLE, f"{rows.place(row)}, {problem}.")
            events.append(mapped)
        all_events = pa.concat_tables(events).combine_chunks()
        records = self._records(all_events, start)
        return records, validate(records, Parsed(all_events, errors), self.settings.contract, datetime.now(UTC))

    def _records(self, events: pa.Table, start: int) -> pa.Table:
        """Return RECORD columns with empty values: `_with_values` fills those of the few rejected rows."""
        count = len(events)
        columns = [
            pa.repeat(pa.scalar(self.topic_id), count),
            pa.repeat(pa.scalar(self._topic), count),
            pa.repeat(pa.scalar(0, pa.int32()), count),
            pa.array(np.arange(start, start + count)),
            pa.repeat(pa.scalar(datetime.now(UTC), TIMESTAMP), count),
            events["user_id"].cast(pa.binary()),
            pa.repeat(pa.scalar(b""), count),
            pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], HEADERS.value_type), type=HEADERS),
        ]
        return pa.table(columns, schema=RECORD)


def open_file(path: Path, mapping: ColumnMapping, settings: Settings) -> FileSource:
    """Return a source of the rows of a CSV, Parquet or NDJSON file.

    Raises UsageError if the file does not exist.
    """
    try:
        path = path.resolve(strict=True)
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    identity = [str(path), status.st_size, status.st_mtime_ns, asdict(mapping)]
    digest = blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()
    return FileSource(path, mapping, settings, f"file-{digest}")


def _from_row(start: int, chunks: Iterator[Rows]) -> Iterator[Rows]:
    """Yield the rows after the first `start`."""
    for rows in chunks:
        skipped = min(start, len(rows.columns))
        start -= skipped
        if skipped < len(rows.columns):
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
