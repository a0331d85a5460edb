"""The limit on dead letters: a schema that is wrong stops ingest, a record that is wrong does not (`not-blocked`)."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.errors import RejectedError
from pipelines.settings import IngestSettings


@dataclass(slots=True)
class RejectionGuard:
    """Watches the share of rejected records in a batch, and their run in a topic partition across batches."""

    limits: IngestSettings
    runs: dict[int, int] = field(default_factory=dict)

    def check(self, records: pa.Table, rejected: pa.Table) -> None:
        """Raise RejectedError when `rejected`, of `records`, passes a limit; nothing of the batch is committed."""
        share = len(rejected) / max(1, len(records))
        if len(records) >= self.limits.min_records_for_share and share > self.limits.max_dead_letter_share:
            raise RejectedError(self._sentence(rejected, f"{share:.0%} of {len(records)} records were rejected"))
        for partition in np.unique(records["topic_partition"].to_numpy()).tolist():
            longest = self._watch(partition, _offsets(records, partition), _offsets(rejected, partition))
            if longest > self.limits.max_dead_letter_run:
                raise RejectedError(self._sentence(rejected, f"{longest} records in a row were rejected"))

    def _watch(self, partition: int, offsets: np.ndarray, rejected: np.ndarray) -> int:
        valid = np.flatnonzero(~np.isin(offsets, rejected))
        before = self.runs.get(partition, 0)
        if not len(valid):
            self.runs[partition] = before + len(offsets)
            return self.runs[partition]
        self.runs[partition] = len(offsets) - 1 - int(valid[-1])
        inner = int(np.diff(valid).max(initial=1)) - 1
        return max(before + int(valid[0]), inner, self.runs[partition])

    def _sentence(self, rejected: pa.Table, found: str) -> str:
        first = rejected.slice(0, 1).to_pylist()[0]
        place = f"{first['topic']}-{first['topic_partition']}@{first['offset']}"
        return (
            f"{found}, the first at {place}: {first['reason']}: {first['detail']} That many mean a wrong schema rather "
            "than wrong records, so ingest has stopped and nothing of this batch was committed. Mend the producer or "
            "the contract's bounds; or raise KARMALAKE_INGEST_MAX_DEAD_LETTER_SHARE or _RUN to make them dead letters"
        )


def _offsets(rows: pa.Table, partition: int) -> np.ndarray:
    return rows["offset"].to_numpy()[rows["topic_partition"].to_numpy() == partition]
