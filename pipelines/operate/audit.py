"""Proof by another route that nothing was lost or doubled: the topic is read again by records, and the files raw.

Shares no code with ingest, only the rulings of what an event is: kafka-python's own records instead of whole batches,
one value at a time instead of columns (`audit_values.py`), Python sets instead of the index, pyarrow on the Parquet
files instead of views. It costs what that costs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from kafka.structs import TopicPartition

from pipelines.bus.clients import consumer, translated
from pipelines.bus.records import Salvaged, take_apart_as
from pipelines.bus.topics import describe_topic
from pipelines.contract.parsed import Problem
from pipelines.errors import TransientError, UsageError
from pipelines.lake.kept_tombstones import read_kept, stored
from pipelines.lake.stores import opened
from pipelines.lake.tombstones import keys_of, tombstone
from pipelines.lake.words import words_of_bytes
from pipelines.operate.audit_values import ReadEvent, read_event
from pipelines.settings import Settings

_SHOWN = 5
_QUIET_POLLS = 20
Place = tuple[int, int]
"""(topic partition, offset)"""
_Record = tuple[int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]


@dataclass(slots=True)
class Audited:
    """What became of the offsets [first_offset, next_offset) of one topic partition that the topic still has.

    next_offset - first_offset = accepted + repeated + dead_letters + erased + absent + lost.
    """

    topic_partition: int
    first_offset: int
    next_offset: int
    accepted: int = 0
    repeated: int = 0
    """Duplicates and conflicts: their event_id is in the lake, from another place."""
    dead_letters: int = 0
    erased: int = 0
    """Records of users who were erased."""
    absent: int = 0
    """Kafka's own: control records, aborted or compacted ones."""
    lost: int = 0
    """Records that are neither in the lake nor among the dead letters, also where another event has their place."""
    examples: list[int] = field(default_factory=list)
    """Offsets of some that are lost."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of a lake against its topic. It passes when nothing is lost and nothing doubled."""

    partitions: list[Audited]
    events: int
    doubled: int
    """Events whose event_id is there more than once."""

    @property
    def lost(self) -> int:
        """Records that the lake should have, of all topic partitions."""
        return sum(partition.lost for partition in self.partitions)

    @property
    def passed(self) -> bool:
        """Whether nothing is lost and nothing doubled."""
        return not self.lost and not self.doubled


@dataclass(frozen=True, slots=True)
class _Held:
    """What the files of the lake hold: every event_id, and the places of one topic's records."""

    ids: set[str]
    events: int
    accepted: dict[Place, str]
    """The event_id of each place."""
    rejected: set[Place]
    erased: set[Place]
    """The places of rows that an erasure removed."""
    tombstones: frozenset[str]

    def accepts(self, place: Place, event: ReadEvent | Problem | None) -> bool:
        """Return whether the event of a place is this one; one whose schema is gone meanwhile is not compared.

        A log that lost its end and grew again has other records at the places that were read.
        """
        if place not in self.accepted:
            return False
        return isinstance(event, Problem) or (event is not None and event.event_id == self.accepted[place])

    def is_erased(self, user_id: bytes | None) -> bool:
        """Return whether a user was erased."""
        if user_id is None:
            return False
        return any(tombstone(user_id, key) in self.tombstones for key in keys_of(self.tombstones))

    def is_erased_in(self, texts: Sequence[bytes | None]) -> bool:
        """Return whether a word of a record that cannot be decoded is the user_id of a user who was erased."""
        return bool(self.tombstones) and any(
            self.is_erased(word) for text in texts for word in words_of_bytes(text or b"")
        )


def audit(settings: Settings) -> Audit:
    """Read the topic up to the lake's checkpoints, and everything that the lake holds, and compare.

    Ingest may go on meanwhile. Raises UsageError without a topic or a lake, TransientError when the brokers do not
    answer or do not send everything (`nothing-lost`).
    """
    topic = describe_topic(settings.kafka)
    if topic is None:
        raise UsageError(f"topic {settings.kafka.topic} does not exist: there is nothing to audit against")
    if not DeltaTable.is_deltatable(f"{settings.lake_root}/events"):
        raise UsageError(f"there is no lake in {settings.lake_root} yet: run `karmalake drain` first")
    events = DeltaTable(f"{settings.lake_root}/events")
    read_upto = {
        p.partition: events.transaction_version(f"ingest:{topic.topic_id}:{p.partition}") for p in topic.partitions
    }
    held = _read_files(settings, topic.topic_id)
    partitions = [
        _of_partition(settings, held, p.partition, p.begin_offset, next_offset)
        for p in topic.partitions
        if (next_offset := read_upto[p.partition]) is not None
    ]
    return Audit(partitions, held.events, held.events - len(held.ids))


def _read_files(settings: Settings, topic_id: str) -> _Held:
    """Read the files of the newest version; dead letters of batches that were never committed do not count."""
    batches = {batch for table in _tables(settings, "commits", ["batch_id"]) for batch in table["batch_id"].to_pylist()}
    ids: set[str] = set()
    accepted: dict[Place, str] = {}
    rejected: set[Place] = set()
    count = 0
    for table in _tables(settings, "events", ["event_id", "topic_id", "topic_partition", "offset"]):
        ids.update(table["event_id"].to_pylist())
        mine = table.filter(pa.array([topic == topic_id for topic in table["topic_id"].to_pylist()], pa.bool_()))
        accepted.update(zip(_places(mine, topic_id), mine["event_id"].to_pylist(), strict=True))
        count += len(table)
    for table in _tables(settings, "dead_letters", ["topic_id", "topic_partition", "offset", "batch_id"]):
        committed = [batch in batches for batch in table["batch_id"].to_pylist()]
        rejected.update(_places(table.filter(pa.array(committed, pa.bool_())), topic_id))
    erased: set[Place] = set()
    for table in _tables(settings, "erased", ["topic_id", "topic_partition", "offset"]):
        erased.update(_places(table, topic_id))
    tombstones = stored(settings.lake_root) | read_kept(settings.tombstones_file)
    return _Held(ids, count, accepted, rejected, erased, tombstones)


def _tables(settings: Settings, name: str, columns: list[str]) -> Iterator[pa.Table]:
    for path in DeltaTable(f"{settings.lake_root}/{name}").file_uris():
        store, place = opened(unquote(path))
        yield pq.ParquetFile(place, filesystem=store).read(columns)


def _places(table: pa.Table, topic_id: str) -> Iterator[Place]:
    columns = (table[name].to_pylist() for name in ("topic_id", "topic_partition", "offset"))
    return ((partition, offset) for topic, partition, offset in zip(*columns, strict=True) if topic == topic_id)


def _of_partition(settings: Settings, held: _Held, partition: int, first: int, upto: int) -> Audited:
    found = Audited(partition, first, max(first, upto))
    seen = 0
    for offset, key, value, headers in _records(settings, partition, first, upto):
        seen += 1
        place = (partition, offset)
        if place in held.rejected:
            found.dead_letters += 1
            continue
        if place in held.erased and place not in held.accepted:
            found.erased += 1
            continue
        event = read_event(value or b"", headers, settings.contract)  # never of a dead letter: it may harm any decoder
        read = event if isinstance(event, ReadEvent) else None
        if held.accepts(place, event):
            found.accepted += 1
        elif held.is_erased(key) or (read and held.is_erased(read.user_id.encode())):
            found.erased += 1
        elif read and read.event_id in held.ids:
            found.repeated += 1
        elif read is None and held.is_erased_in([key, value, *(text for _, text in headers)]):
            found.erased += 1
        else:
            found.lost += 1
            found.examples = [*found.examples, offset][:_SHOWN]
    found.absent = found.next_offset - found.first_offset - seen
    return found


def _records(settings: Settings, partition: int, first: int, upto: int) -> Iterator[_Record]:
    """Yield offset, key, value and headers of each record of [first, upto) that a reader of committed records gets."""
    place = TopicPartition(settings.kafka.topic, partition)
    options = {"group_id": None, "enable_auto_commit": False, "isolation_level": "read_committed", "check_crcs": False}
    with translated(settings.kafka, f"auditing {settings.kafka.topic}"), consumer(settings.kafka, **options) as reader:
        take_apart_as(reader, Salvaged)  # a damaged batch below a checkpoint was skipped, as one dead letter
        reader.assign([place])
        reader.seek(place, first)
        quiet = 0
        while reader.position(place) < upto and quiet < _QUIET_POLLS:
            records = reader.poll(timeout_ms=500).get(place, [])
            quiet = 0 if records else quiet + 1
            yield from ((r.offset, r.key, r.value, r.headers) for r in records if r.offset < upto)
        if reader.position(place) < upto:
            at = f"{place.topic}-{partition}@{reader.position(place)}"
            raise TransientError(f"the brokers sent nothing from {at} on, although the lake has read on to {upto}")
