"""Some records of a topic as a source of one batch, to see what would come of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.contract.decode import Decoder
from pipelines.ingest.at_hand import RecordsAtHand
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.mapping.source_files import SourceFile


@dataclass(slots=True)
class RecordSample(RecordsAtHand):
    """Records (RECORD columns) of one topic, by a source file and its open decoder."""

    source: SourceFile
    records: pa.Table
    decode: Decoder
    polled: bool = False

    @property
    def path(self) -> Path:
        """The source file."""
        return self.source.path

    @property
    def topic_id(self) -> str:
        """The id of the topic; empty without records."""
        return self.records["topic_id"][0].as_py() if len(self.records) else ""

    def poll(self, checkpoint: Checkpoint) -> Batch | None:  # noqa: ARG002 - the name is that of the protocol
        """Return all records once, then None."""
        if self.polled or not len(self.records):
            return None
        self.polled = True
        return Batch("sample", self.records, self.decode(self.records, None), tuple(self._ranges()))

    def _ranges(self) -> Iterator[OffsetRange]:
        partitions, offsets = self.records["topic_partition"].to_numpy(), self.records["offset"].to_numpy()
        topic, name, digest = self.records["topic"][0].as_py(), self.source.name, self.source.digest
        for partition in np.unique(partitions).tolist():
            of_it = offsets[partitions == partition]
            bounds = int(of_it.min()), int(of_it.max()) + 1
            found = OffsetRange(self.topic_id, topic, partition, *bounds, source=name, source_digest=digest)
            yield found.with_records(len(of_it))

    def next_checkpoint(self) -> Checkpoint:
        """Return no checkpoints: nothing follows."""
        return lambda _topic_id, _partition: None
