"""Dead letters as a source of batches: what they kept is decoded again, and goes the way of records from there on.

A requeue is a topic of its own, so that its commit accounts for what it read like any other (`nothing-lost`).
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import decode
from pipelines.contract.schema import RECORD
from pipelines.ingest.guard import Halted
from pipelines.ingest.ranges import Batch, Checkpoint, OffsetRange
from pipelines.settings import ContractSettings

TOPIC = "dead-letters"


@dataclass(slots=True)
class KeptRecords:
    """Records (RECORD columns) that are read once, under the topic id of the requeue."""

    records: pa.Table
    topic_id: str
    contract: ContractSettings
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Give every record a place in the requeue."""
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
        """Return all records as one batch, which counts whole or not at all; None once they are committed."""
        if not self.size or checkpoint(self.topic_id, 0) is not None:
            return None
        offsets = OffsetRange(self.topic_id, TOPIC, 0, 0, self.size, read=self.size)
        return Batch(TOPIC, self.records, decode(self.records, self.contract), (offsets,), divisible=False)

    def following(self) -> Checkpoint:
        """Return the checkpoint behind all records."""
        return lambda _topic_id, _partition: self.size

    def behind(self) -> int:
        """Return 0: all records are in one batch."""
        return 0

    def acknowledge(self, ranges: tuple[OffsetRange, ...]) -> None:
        """Tell nobody: the lake's checkpoint is the only one."""

    def losses(self, _checkpoint: Checkpoint) -> tuple[OffsetRange, ...]:
        """Return nothing: what the lake keeps is not lost."""
        return ()

    def halt(self, halted: Halted) -> None:
        """Raise RejectedError: there is no other topic partition to go on with."""
        raise halted.error()
