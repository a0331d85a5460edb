"""The limit on dead letters: a schema that is wrong stops a topic partition, a record that is wrong does not.

What anybody can write into one topic partition stops that one at most: the others go on (`not-blocked`).
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.contract.rejection import Reason
from pipelines.errors import RejectedError
from pipelines.ingest.ranges import Batch, OffsetRange
from pipelines.settings import IngestSettings


@dataclass(frozen=True, slots=True)
class Halted:
    """A topic partition that is not read on: at `next_offset` something begins that passed a limit."""

    topic_id: str
    topic: str
    topic_partition: int
    next_offset: int
    found: str
    """What passed which limit, and the first of it."""
    limits: str
    """Both limits, by the names of their settings."""

    @property
    def place(self) -> str:
        """TOPIC-PARTITION, as commands take it."""
        return f"{self.topic}-{self.topic_partition}"

    def __str__(self) -> str:
        return (
            f"{self.place} is halted at offset {self.next_offset}, the other topic partitions go on: {self.found} That "
            "many mean a wrong schema rather than wrong records, so nothing of it was committed from there on. Either "
            "fix the producer or the [contract] settings and drain again; or make them dead letters, in a run of its "
            f"own: `karmalake drain --accept-rejections {self.place}`. The limits are {self.limits}"
        )

    def error(self) -> RejectedError:
        """Return what ends the ingest of a source that has no other topic partition."""
        return RejectedError(
            f"{self.found} That many mean a wrong schema rather than wrong records, so ingest has stopped and nothing "
            "of this batch was committed. Fix where they come from, the mapping or the [contract] settings; or raise "
            f"both limits to make them dead letters: {self.limits}"
        )


@dataclass(slots=True)
class RejectionGuard:
    """Watches each topic partition: the share of rejected records in a batch, and their run across batches."""

    limits: IngestSettings
    accepted: frozenset[int] = frozenset()
    """Topic partitions whose rejections are dead letters however many they are."""
    runs: dict[tuple[str, int], dict[int, int]] = field(default_factory=dict)
    """By topic partition: how many rejected records stood in a row before an offset."""

    def judge(self, batch: Batch) -> list[Halted]:
        """Return the topic partitions of a batch that pass a limit: nothing of them may be committed."""
        return [halted for offsets in batch.ranges if (halted := self._judge(offsets, batch)) is not None]

    def _judge(self, place: OffsetRange, batch: Batch) -> Halted | None:
        mine = batch.decoded.rejected.filter(_of(batch.decoded.rejected, place.topic_partition))
        offsets = np.sort(batch.records["offset"].to_numpy()[_of(batch.records, place.topic_partition)])
        rejected = mine["offset"].to_numpy()[mine["reason"].to_numpy(zero_copy_only=False) != Reason.SKIPPED]
        longest = self._watch(place, offsets, rejected)
        passed = self._passed(len(offsets), len(rejected), longest)
        if not passed or place.topic_partition in self.accepted:
            return None
        self.runs.pop((place.topic_id, place.topic_partition))  # what stands behind it is counted once it is passed
        place_and_start = (place.topic_id, place.topic, place.topic_partition, place.start_offset)
        return Halted(*place_and_start, f"{' and '.join(passed)}, {_first(mine)}", self._limits())

    def _watch(self, place: OffsetRange, offsets: np.ndarray, rejected: np.ndarray) -> int:
        """Return the longest run; what is read again is counted from what stood before it."""
        known = self.runs.setdefault((place.topic_id, place.topic_partition), {})
        before = known.get(place.start_offset, 0)
        valid = np.flatnonzero(~np.isin(offsets, rejected))
        after = len(offsets) - 1 - int(valid[-1]) if len(valid) else before + len(offsets)
        self.runs[place.topic_id, place.topic_partition] = {place.start_offset: before, place.next_offset: after}
        if not len(valid):
            return after
        inner = int(np.diff(valid).max(initial=1)) - 1
        return max(before + int(valid[0]) if valid[0] else 0, inner, after)

    def _passed(self, count: int, rejected: int, longest: int) -> list[str]:
        share = rejected / max(1, count)
        passed: list[str] = []
        if count >= self.limits.min_records_for_share and share > self.limits.max_dead_letter_share:
            passed.append(f"{share:.0%} of {count} records were rejected")
        if longest > self.limits.max_dead_letter_run:
            passed.append(f"{longest} records in a row were rejected")
        return passed

    def _limits(self) -> str:
        limits = self.limits
        return (
            f"KARMALAKE_INGEST_MAX_DEAD_LETTER_SHARE={limits.max_dead_letter_share:g} (of at least "
            f"{limits.min_records_for_share} records) and KARMALAKE_INGEST_MAX_DEAD_LETTER_RUN="
            f"{limits.max_dead_letter_run}"
        )


def _of(rows: pa.Table, partition: int) -> np.ndarray:
    return rows["topic_partition"].to_numpy() == partition


def _first(rejected: pa.Table) -> str:
    row = rejected.slice(int(np.argmin(rejected["offset"].to_numpy())), 1).to_pylist()[0]
    return f"the first at {row['topic']}-{row['topic_partition']}@{row['offset']}: {row['reason']}: {row['detail']}"
