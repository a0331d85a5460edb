"""The limits on rejections: a wrong schema halts a topic partition, a single bad record does not.

Bad records in one topic partition halt at most that one; the others continue (`not-blocked`).
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from kafka.structs import TopicPartition

from pipelines.boundary.text import amount
from pipelines.contract.rejection import Reason
from pipelines.errors import RejectedError
from pipelines.ingest.batch import Batch, OffsetRange, Place, range_numbers
from pipelines.settings import IngestSettings


@dataclass(frozen=True, slots=True)
class HaltedPartition:
    """A topic partition that is not read any further: the records from `next_offset` on exceed a rejection limit."""

    topic_id: str
    topic: str
    topic_partition: int
    next_offset: int
    found: str
    """The limits exceeded, and the first rejected record."""
    limits: str
    """Both limits, by the names of their settings; empty if the SELECT of the source is refused."""

    @property
    def place(self) -> str:
        """TOPIC-PARTITION, as commands accept it."""
        return f"{self.topic}-{self.topic_partition}"

    def __str__(self) -> str:
        if not self.limits:
            return (
                f"{self.place} is halted at offset {self.next_offset}, the others continue: {self.found} Nothing was "
                "committed from that offset on. Either correct the source file and drain again; or make the records "
                f"dead letters, in a separate run: `karmalake drain --accept-rejections {self.place}`"
            )
        return (
            f"{self.place} is halted at offset {self.next_offset}, the others continue: {self.found} So "
            "many rejections point to a wrong schema, so nothing was committed from that offset on. Either fix the "
            "producer or the [contract] settings and drain again; or make the records dead letters, in a separate "
            f"run: `karmalake drain --accept-rejections {self.place}`. The limits are {self.limits}"
        )

    def error(self) -> RejectedError:
        """Return the error that ends the ingest of a source with no other topic partition."""
        if not self.limits:
            return RejectedError(f"{self.found} Nothing of this batch was committed: correct the source file")
        return RejectedError(
            f"{self.found} So many rejections point to a wrong schema, so ingest has stopped and nothing of this batch "
            "was committed. Fix the source, the mapping or the [contract] settings; or raise both limits to make the "
            f"records dead letters: {self.limits}"
        )


@dataclass(slots=True)
class RejectionGuard:
    """Checks each topic partition: the share of rejected records in a batch, and runs of them across batches.

    A record for which the SELECT of the source is refused halts at once: the source file is wrong, not the record.
    """

    limits: IngestSettings
    accepted: frozenset[TopicPartition] = frozenset()
    """Topic partitions that are exempt from the limits."""
    runs: dict[Place, dict[int, int]] = field(default_factory=dict[Place, dict[int, int]])
    """By topic partition: the number of consecutive rejected records before an offset."""

    def check(self, batch: Batch) -> list[HaltedPartition]:
        """Return the topic partitions of a batch that exceed a limit: none of their records may be committed."""
        numbers, offsets = range_numbers(batch.records, batch.ranges), batch.records["offset"].to_numpy()
        rejected = batch.decoded.rejected
        of_range = range_numbers(rejected, batch.ranges)
        halted = (
            self._check(place, np.sort(offsets[numbers == n]), rejected.filter(pa.array(of_range == n)))
            for n, place in enumerate(batch.ranges)
        )
        return list(filter(None, halted))

    def _check(self, place: OffsetRange, offsets: np.ndarray, rejected: pa.Table) -> HaltedPartition | None:
        reasons = rejected["reason"].to_numpy(zero_copy_only=False)
        counted = rejected["offset"].to_numpy()[reasons != Reason.SKIPPED]
        longest = self._longest_run(place, offsets, counted)
        exceeded = self._exceeded(len(offsets), len(counted), longest)
        refused = rejected.filter(pa.array(reasons == Reason.REFUSED_SELECT))
        if TopicPartition(place.topic, place.topic_partition) in self.accepted or not (exceeded or len(refused)):
            return None
        self.runs.pop(place.place)  # start a new count when reading continues
        place_and_start = (place.topic_id, place.topic, place.topic_partition, place.start_offset)
        if len(refused):
            return HaltedPartition(*place_and_start, _first(refused), "")
        return HaltedPartition(*place_and_start, f"{' and '.join(exceeded)}, {_first(rejected)}", self._limits())

    def _longest_run(self, place: OffsetRange, offsets: np.ndarray, rejected: np.ndarray) -> int:
        """Return the longest run of rejected records that ends in the range, and remember the run at its end.

        `offsets` holds the sorted offsets of the range's records, int64 of shape (records,); `rejected` those of the
        rejected ones. A range that is read again continues the run before its start.
        """
        known = self.runs.setdefault(place.place, {})
        before = known.get(place.start_offset, 0)
        valid = np.flatnonzero(~np.isin(offsets, rejected))
        after = len(offsets) - 1 - int(valid[-1]) if len(valid) else before + len(offsets)
        self.runs[place.place] = {place.start_offset: before, place.next_offset: after}
        if not len(valid):
            return after
        inner = int(np.diff(valid).max(initial=1)) - 1
        return max(before + int(valid[0]) if valid[0] else 0, inner, after)

    def _exceeded(self, count: int, rejected: int, longest: int) -> list[str]:
        share = rejected / max(1, count)
        exceeded: list[str] = []
        if count >= self.limits.min_records_for_share and share > self.limits.max_dead_letter_share:
            exceeded.append(f"{share:.0%} of {amount(count, 'record')} were rejected")
        if longest > self.limits.max_dead_letter_run:
            exceeded.append(f"{longest:,} records in a row were rejected")
        return exceeded

    def _limits(self) -> str:
        limits = self.limits
        return (
            f"KARMALAKE_INGEST_MAX_DEAD_LETTER_SHARE={limits.max_dead_letter_share:g} (of at least "
            f"{limits.min_records_for_share} records) and KARMALAKE_INGEST_MAX_DEAD_LETTER_RUN="
            f"{limits.max_dead_letter_run}"
        )


def _first(rejected: pa.Table) -> str:
    row = rejected.slice(int(np.argmin(rejected["offset"].to_numpy())), 1).to_pylist()[0]
    return f"the first at {row['topic']}-{row['topic_partition']}@{row['offset']}: {row['reason']}: {row['detail']}"
