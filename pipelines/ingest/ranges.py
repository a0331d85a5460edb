"""Ranges of offsets: what a batch read of each topic partition, and what became of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets [start_offset, next_offset) of one topic partition, and the fate of every one of them.

    next_offset - start_offset = read + gaps + lost and read = accepted + duplicates + conflicts + dead_letters
    (`nothing-lost`). `gaps` hold no record for a reader: control records, aborted or compacted ones. `lost` were
    given up on the record; a range that steps back, to read a truncated log again, counts nothing.
    """

    topic_id: str
    topic: str
    topic_partition: int
    start_offset: int
    next_offset: int
    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    dead_letters: int = 0
    gaps: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return f"{self.topic}-{self.topic_partition}@{self.start_offset}..{self.next_offset}"
