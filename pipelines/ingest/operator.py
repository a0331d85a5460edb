"""One event by an operator as a source of batches: a retraction or an adjustment (`operate/operator_events.py`).

It is a topic of its own with one record, so its commit accounts for it like any other (`nothing-lost`), and dedup drops
it if the lake has it already (`once`).
"""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid4

import pyarrow as pa

from pipelines.contract.decode import Decoded, validate
from pipelines.contract.parsing import Parsed
from pipelines.contract.schema import RECORD
from pipelines.errors import UsageError
from pipelines.ingest.at_hand import RecordsAtHand
from pipelines.ingest.batch import Batch, Checkpoint, OffsetRange
from pipelines.ingest.sources import CONTRACT
from pipelines.settings import ContractSettings

TOPIC = "operator"


@dataclass(frozen=True, slots=True)
class OperatorSource(RecordsAtHand):
    """One event (EVENT columns, one row), read once, under a topic id of its own."""

    event: pa.Table
    contract: ContractSettings
    now: datetime
    topic_id: str = field(default_factory=lambda: f"operator-{uuid4().hex}")

    def decode(self) -> Decoded:
        """Return the event with its place. Raises UsageError if the contract rejects it."""
        decoded = validate(self._records(), Parsed(self.event, {}), self.contract, self.now)
        for detail in decoded.rejected["detail"].to_pylist():
            raise UsageError(f"the contract rejects this event: {detail} Nothing was changed")
        return decoded

    def poll(self, checkpoint: Checkpoint) -> Batch | None:
        """Return the event as one batch; None once it is committed. Raises like `decode`."""
        if checkpoint(self.topic_id, 0) is not None:
            return None
        offsets = OffsetRange(self.topic_id, TOPIC, 0, 0, 1, read=1, source=CONTRACT)
        return Batch(TOPIC, self._records(), self.decode(), (offsets,), divisible=False)

    def _records(self) -> pa.Table:
        """Return the record (RECORD columns): its key is the user_id, and its value is empty."""
        place = {"topic_id": self.topic_id, "topic": TOPIC, "topic_partition": 0, "offset": 0, "bus_time": self.now}
        key = self.event["user_id"][0].as_py().encode()
        return pa.Table.from_pylist([place | {"key": key, "value": b"", "headers": []}], RECORD)

    def next_checkpoint(self) -> Checkpoint:
        """Return the checkpoint after the event."""
        return lambda _topic_id, _partition: 1
