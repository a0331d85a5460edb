"""Dead letters as a source of batches: their original records are decoded and ingested again.

A requeue is a topic of its own, so its commit accounts for every record it read, like any other (`nothing-lost`).
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.guard import HaltedPartition
from pipelines.settings import ContractSettings

TOPIC = "dead-letters"


@dataclass(slots=True)
class DeadLetterSource:
    """The records of dead letters (RECORD columns), read once under the topic id of the requeue."""

    records: pa.Table
    topic_id: str
    contract: ContractSettings
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Set the place of every record: its offset in the requeue."""
        self.size = len(self.records)
        places = {
            "topic_id": pa.repeat(pa.scalar(self.topic_id), self.size),
            "topic": pa.repeat(pa.scalar(TOPIC), self.size),
            "topic_partition": pa.repeat(pa.scalar(0, pa.int32()), self.size),
            "offset": pa.array(np.arange(self.size)),
        }
        columns = [places.get(name, self.records[name]) for name in RECORD.names]
        self.records = pa.table(columns, schema=RECORD)

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return all records as one indivisible batch; None once they are committed."""
        if not self.size or checkpoint(self.topic_id, 0) is not None:
            return None
        offsets = OffsetRange(self.topic_id, TOPIC, 0, 0, self.size, read=self.size)
        return Batch(TOPIC, self.records, decode(self.records, self.contract), (offsets,), divisible=False)

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoint after all records."""
        return lambda _topic_id, _partition: self.size

    def remaining_records(self) -> int:
        """Return 0: all records are in one batch."""
        return 0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Do nothing: the lake's checkpoint is the only one."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: records in the lake are not lost."""
        return ()

    def halt(self, halted: HaltedPartition) -> None:
        """Raise RejectedError: there is no other topic partition."""
        raise halted.error()
