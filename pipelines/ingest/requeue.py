"""Dead letters as a source of batches: their original records are decoded and ingested again.

A requeue is a topic of its own, so its commit accounts for every record it read, like any other (`nothing-lost`).
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.decode import Decoded
from pipelines.ingest.at_hand import RecordsAtHand
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.sources import IngestedTopic

TOPIC = "dead-letters"
_PLACE = ["topic_id", "topic_partition", "offset"]


@dataclass(slots=True)
class DeadLetterSource(RecordsAtHand):
    """The records of dead letters (RECORD columns) of one source, read once under the topic id of the requeue.

    Each has another place. They are decoded with that place, since an event_id may be derived from it; in the requeue
    their offsets are their numbers.
    """

    records: pa.Table
    topic_id: str
    topic: IngestedTopic

    @property
    def size(self) -> int:
        """The number of records."""
        return len(self.records)

    def decode(self) -> Decoded:
        """Decode the records by their source; rows have the places of the records."""
        return self.topic.decode(self.records, None)

    def valid(self) -> pa.BooleanArray:
        """Return which records are not rejected any more, one a record."""
        rejected = self._numbers(self.decode().rejected)
        return pa.array(~np.isin(np.arange(self.size), rejected))

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return all records as one indivisible batch; None once they are committed."""
        if not self.size or checkpoint(self.topic_id, 0) is not None:
            return None
        decoded = self.decode()
        moved = Decoded(
            events=self._moved(decoded.events),
            rejected=self._moved(decoded.rejected),
            mis_keyed=decoded.mis_keyed,
            filtered=self._moved(decoded.filtered),
        )
        offsets = OffsetRange(
            self.topic_id, TOPIC, 0, 0, self.size, read=self.size,
            source=self.topic.source, source_digest=self.topic.digest,
        )  # fmt: skip
        return Batch(TOPIC, self._moved(self.records), moved, (offsets,), divisible=False)

    def _numbers(self, rows: pa.Table) -> np.ndarray:
        """Return the number of the record that each row comes from."""
        records = pl.DataFrame(pl.from_arrow(self.records.select(_PLACE))).with_row_index("number")
        found = pl.DataFrame(pl.from_arrow(rows.select(_PLACE))).join(
            records, on=_PLACE, how="left", maintain_order="left"
        )
        return found["number"].to_numpy()

    def _moved(self, rows: pa.Table) -> pa.Table:
        """Return rows with their places in the requeue."""
        count = len(rows)
        places = {
            "topic_id": pa.repeat(pa.scalar(self.topic_id), count),
            "topic": pa.repeat(pa.scalar(TOPIC), count),
            "topic_partition": pa.repeat(pa.scalar(0, pa.int32()), count),
            "offset": pc.cast(pa.array(self._numbers(rows)), pa.int64()),
        }
        columns = [places.get(name, rows[name]) for name in rows.column_names]
        return pa.table(columns, schema=rows.schema)

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoint after all records."""
        return lambda _topic_id, _partition: len(self.records)
