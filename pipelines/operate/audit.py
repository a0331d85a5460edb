"""Independent audit of a lake: reads the topic and the Parquet files again, and accounts for every offset.

Shares no code with ingest, only the definition of an event: kafka-python's own records instead of whole batches, one
value at a time instead of columns (`audit_values.py`), Python sets instead of the index, pyarrow on the Parquet files
instead of views. It is slower accordingly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from kafka.structs import TopicPartition

from pipelines.bus.clients import consumer, translate_errors
from pipelines.bus.records import CrcCheckedBatch, install_batch_types
from pipelines.bus.topics import describe_topic
from pipelines.contract.parsing import Problem
from pipelines.errors import TransientError, UsageError
from pipelines.lake.lake_format import require_known_format
from pipelines.lake.stores import resolve_store
from pipelines.lake.tables import is_lake
from pipelines.lake.tokens import tokenize_bytes
from pipelines.lake.tombstone_file import lake_tombstones, read_tombstones
from pipelines.lake.tombstones import keys_of, tombstone
from pipelines.operate.audit_values import ReadEvent, read_event
from pipelines.settings import Settings

_MAX_EXAMPLES = 5
_MAX_EMPTY_POLLS = 20
Position = tuple[int, int]
"""(topic partition, offset)"""
_Record = tuple[int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]


@dataclass(slots=True)
class PartitionAudit:
    """Counts by outcome for the offsets [first_offset, next_offset) that the topic still holds of one topic partition.

    next_offset - first_offset = accepted + duplicate_ids + dead_letters + erased + gaps + lost.
    """

    topic_partition: int
    first_offset: int
    next_offset: int
    accepted: int = 0
    duplicate_ids: int = 0
    """Duplicates and conflicts: the lake holds their event_id from another offset."""
    dead_letters: int = 0
    erased: int = 0
    """Records of erased users."""
    gaps: int = 0
    """Offsets without a record: control records, and records that were aborted or compacted away."""
    lost: int = 0
    """Records that are neither events nor dead letters of the lake, or whose offset holds another event."""
    examples: list[int] = field(default_factory=list)
    """The first offsets that are lost, at most five."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit of a lake against its topic."""

    partitions: list[PartitionAudit]
    events: int
    duplicated: int
    """Rows of events beyond the first of their event_id."""

    @property
    def lost(self) -> int:
        """Records that the lake should hold and does not, in all topic partitions."""
        return sum(partition.lost for partition in self.partitions)

    @property
    def passed(self) -> bool:
        """Whether nothing is lost or duplicated."""
        return not self.lost and not self.duplicated


@dataclass(frozen=True, slots=True)
class _LakeContents:
    """What the files of the lake contain: every event_id, and the positions of one topic's records."""

    ids: set[str]
    events: int
    accepted: dict[Position, str]
    """The event_id stored for each position."""
    rejected: set[Position]
    erased: set[Position]
    """The positions of rows that an erasure removed."""
    tombstones: frozenset[str]

    def accepts(self, position: Position, event: ReadEvent | Problem | None) -> bool:
        """Return whether this event is stored for a position; where its schema no longer exists, any event passes.

        A log that lost its end and grew again holds other records at the same offsets.
        """
        if position not in self.accepted:
            return False
        return isinstance(event, Problem) or (event is not None and event.event_id == self.accepted[position])

    def is_erased(self, user_id: bytes | None) -> bool:
        """Return whether a user was erased."""
        if user_id is None:
            return False
        return any(tombstone(user_id, key) in self.tombstones for key in keys_of(self.tombstones))

    def is_erased_in(self, texts: Sequence[bytes | None]) -> bool:
        """Return whether an undecodable record contains the user_id of an erased user as a word."""
        return bool(self.tombstones) and any(
            self.is_erased(word) for text in texts for word in tokenize_bytes(text or b"")
        )


def audit(settings: Settings) -> Audit:
    """Compare the topic, up to the lake's checkpoints, with everything that the lake holds (`nothing-lost`).

    Safe while ingest runs. Raises UsageError if the topic or the lake does not exist, TransientError if the brokers do
    not answer or do not send every record.
    """
    topic = describe_topic(settings.kafka)
    if topic is None:
        raise UsageError(
            f"topic {settings.kafka.topic} does not exist: set kafka.topic to the topic that the lake was ingested from"
        )
    if not is_lake(settings.lake_root):
        raise UsageError(f"there is no lake in {settings.lake_root} yet: run `karmalake drain` first")
    events = DeltaTable(f"{settings.lake_root}/events")
    require_known_format(events)
    checkpoints = {
        p.partition: events.transaction_version(f"ingest:{topic.topic_id}:{p.partition}") for p in topic.partitions
    }
    contents = _read_files(settings, topic.topic_id)
    partitions = [
        _audit_partition(settings, contents, p.partition, p.begin_offset, next_offset)
        for p in topic.partitions
        if (next_offset := checkpoints[p.partition]) is not None
    ]
    return Audit(partitions, contents.events, contents.events - len(contents.ids))


def _read_files(settings: Settings, topic_id: str) -> _LakeContents:
    """Read the files of the newest version; dead letters of uncommitted batches do not count."""
    batches = {batch for table in _tables(settings, "commits", ["batch_id"]) for batch in table["batch_id"].to_pylist()}
    ids: set[str] = set()
    accepted: dict[Position, str] = {}
    rejected: set[Position] = set()
    count = 0
    for table in _tables(settings, "events", ["event_id", "topic_id", "topic_partition", "offset"]):
        ids.update(table["event_id"].to_pylist())
        of_topic = table.filter(pa.array([topic == topic_id for topic in table["topic_id"].to_pylist()], pa.bool_()))
        accepted.update(zip(_positions(of_topic, topic_id), of_topic["event_id"].to_pylist(), strict=True))
        count += len(table)
    for table in _tables(settings, "dead_letters", ["topic_id", "topic_partition", "offset", "batch_id"]):
        committed = [batch in batches for batch in table["batch_id"].to_pylist()]
        rejected.update(_positions(table.filter(pa.array(committed, pa.bool_())), topic_id))
    erased: set[Position] = set()
    for table in _tables(settings, "erased", ["topic_id", "topic_partition", "offset"]):
        erased.update(_positions(table, topic_id))
    tombstones = lake_tombstones(settings.lake_root) | read_tombstones(settings.tombstones_file)
    return _LakeContents(ids, count, accepted, rejected, erased, tombstones)


def _tables(settings: Settings, name: str, columns: list[str]) -> Iterator[pa.Table]:
    for path in DeltaTable(f"{settings.lake_root}/{name}").file_uris():
        store, place = resolve_store(unquote(path))
        yield pq.ParquetFile(place, filesystem=store).read(columns)


def _positions(table: pa.Table, topic_id: str) -> Iterator[Position]:
    columns = (table[name].to_pylist() for name in ("topic_id", "topic_partition", "offset"))
    return ((partition, offset) for topic, partition, offset in zip(*columns, strict=True) if topic == topic_id)


def _audit_partition(
    settings: Settings, contents: _LakeContents, partition: int, first: int, end: int
) -> PartitionAudit:
    found = PartitionAudit(partition, first, max(first, end))
    records = 0
    for offset, key, value, headers in _records(settings, partition, first, end):
        records += 1
        position = (partition, offset)
        if position in contents.rejected:
            found.dead_letters += 1
            continue
        if position in contents.erased and position not in contents.accepted:
            found.erased += 1
            continue
        event = read_event(value or b"", headers, settings.contract)  # never a dead letter: it may crash any decoder
        read = event if isinstance(event, ReadEvent) else None
        if contents.accepts(position, event):
            found.accepted += 1
        elif contents.is_erased(key) or (read and contents.is_erased(read.user_id.encode())):
            found.erased += 1
        elif read and read.event_id in contents.ids:
            found.duplicate_ids += 1
        elif read is None and contents.is_erased_in([key, value, *(text for _, text in headers)]):
            found.erased += 1
        else:
            found.lost += 1
            found.examples = [*found.examples, offset][:_MAX_EXAMPLES]
    found.gaps = found.next_offset - found.first_offset - records
    return found


def _records(settings: Settings, partition: int, first: int, end: int) -> Iterator[_Record]:
    """Yield offset, key, value and headers of each committed record in [first, end)."""
    place = TopicPartition(settings.kafka.topic, partition)
    options = {"group_id": None, "enable_auto_commit": False, "isolation_level": "read_committed", "check_crcs": False}
    with (
        translate_errors(settings.kafka, f"auditing {settings.kafka.topic}"),
        consumer(settings.kafka, **options) as reader,
    ):
        install_batch_types(reader, CrcCheckedBatch)  # a damaged batch below a checkpoint is one dead letter
        reader.assign([place])
        reader.seek(place, first)
        empty_polls = 0
        while reader.position(place) < end and empty_polls < _MAX_EMPTY_POLLS:
            records = reader.poll(timeout_ms=500).get(place, [])
            empty_polls = 0 if records else empty_polls + 1
            yield from ((r.offset, r.key, r.value, r.headers) for r in records if r.offset < end)
        if reader.position(place) < end:
            at = f"{place.topic}-{partition}@{reader.position(place)}"
            raise TransientError(
                f"the brokers sent no records from {at} on, although the lake's checkpoint is {end}; try again"
            )
