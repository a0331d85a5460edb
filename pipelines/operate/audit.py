"""Independent audit of a lake: reads the topics and the Parquet files again, and accounts for every offset.

Shares no code with ingest, only the definition of an event: kafka-python's own records instead of whole batches, one
value at a time instead of columns (`audit_values.py`), Python sets instead of the index, pyarrow on the Parquet files
instead of views. It is slower accordingly. What a record of another source is, only its source says: its decoder is
applied to some hundred records of a topic partition at a time, in other batches than those of ingest.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
from kafka.structs import TopicPartition

from pipelines.bus.clients import consumer, translate_errors
from pipelines.bus.records import CrcCheckedBatch, install_batch_types
from pipelines.bus.topics import Topic, TopicPartitionState, describe_topic
from pipelines.contract.parsing import Problem
from pipelines.contract.schema import RECORD
from pipelines.contract.times import bus_times
from pipelines.errors import TransientError, UsageError
from pipelines.ingest.sources import CONTRACT, IngestedTopic, explain_missing_topic, open_topics
from pipelines.lake.checkpoints import checkpoint
from pipelines.lake.files import read_file
from pipelines.lake.tables import Lake, is_lake, open_lake
from pipelines.lake.tokens import tokenize_bytes
from pipelines.lake.tombstone_file import lake_tombstones, read_tombstones
from pipelines.lake.tombstones import keys_of, tombstone
from pipelines.operate.audit_values import ReadEvent, read_event
from pipelines.settings import Settings

_REPLAY = "replay:"
"""Before the topic of replayed records in the lake."""
_MAX_EXAMPLES = 5
_MAX_EMPTY_POLLS = 20
_MAX_RECORDS = 500
_MAX_BYTES = 8 << 20
"""Records, and bytes of their values, that are mapped together."""
_PLACE = ["topic_id", "topic_partition", "offset"]
_COMMIT = ["batch_id", "version", "ranges", "withdrawn"]
Position = tuple[int, int]
"""(topic partition, offset)"""


class _Record(NamedTuple):
    offset: int
    bus_time_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(slots=True)
class PartitionAudit:
    """Counts for the offsets [first_offset, next_offset) that the topic still holds of one topic partition.

    Records: next_offset - first_offset = converted + filtered + dead_letters + changed + gaps. Events: made =
    accepted + duplicate_ids + erased + withdrawn + lost.
    """

    topic: str
    topic_partition: int
    first_offset: int
    next_offset: int
    converted: int = 0
    """Records that became events, one or several. One that is neither event nor dead letter counts as one lost event,
    and a dead letter of an erased user as one erased event."""
    filtered: int = 0
    """Records that their source leaves out."""
    made: int = 0
    accepted: int = 0
    duplicate_ids: int = 0
    """Duplicates and conflicts: the lake holds their event_id from another offset."""
    dead_letters: int = 0
    erased: int = 0
    """Events of erased users."""
    withdrawn: int = 0
    """Events that a withdrawal removed, and that were not loaded again."""
    changed: int = 0
    """Records that were only read while their source had another text: they are not compared."""
    gaps: int = 0
    """Offsets without a record: control records, and records that were aborted or compacted away."""
    lost: int = 0
    """Events that the lake does not hold, or whose offset holds others."""
    examples: list[int] = field(default_factory=list)
    """The first offsets that are lost, at most five."""

    def lose(self, offset: int) -> None:
        """Count a lost event."""
        self.lost += 1
        self.examples = [*self.examples, offset][:_MAX_EXAMPLES]


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit of a lake against its topics."""

    partitions: list[PartitionAudit]
    events: int
    duplicated: int
    """Rows of events beyond the first of their event_id."""

    @property
    def lost(self) -> int:
        """Events that the lake should hold and does not, in all topic partitions."""
        return sum(partition.lost for partition in self.partitions)

    @property
    def changed(self) -> int:
        """Records that are not compared, in all topic partitions: `lost` says nothing about their events."""
        return sum(partition.changed for partition in self.partitions)

    @property
    def totals(self) -> dict[str, int]:
        """The counts of the verdict by name."""
        return {name: getattr(self, name) for name in ("events", "lost", "duplicated", "changed")}

    @property
    def passed(self) -> bool:
        """Whether nothing is lost or duplicated, of the records that are compared."""
        return not self.lost and not self.duplicated


class _Range(NamedTuple):
    """Offsets of one topic partition that a commit read, and the digest of its source."""

    partition: int
    start: int
    end: int
    digest: str | None
    version: int
    withdrawn_at: int | None
    """The version of the withdrawal that removed its events."""


@dataclass(slots=True)
class _TopicContents:
    """What the files of the lake contain of one topic, and of its replays."""

    accepted: dict[Position, tuple[str, ...]] = field(default_factory=dict[Position, tuple[str, ...]])
    """The event_ids stored for each position."""
    rejected: dict[Position, frozenset[str | None]] = field(default_factory=dict[Position, frozenset[str | None]])
    """The digests of the source that refused the record at each position."""
    erased: set[Position] = field(default_factory=set[Position])
    """The positions of rows that an erasure removed."""
    ranges: list[_Range] = field(default_factory=list[_Range])
    """Each range that was read."""

    def accepts(self, position: Position, event: ReadEvent | Problem | None) -> bool:
        """Return whether this event is stored for a position; where its schema no longer exists, any event passes.

        A log that lost its end and grew again holds other records at the same offsets.
        """
        if position not in self.accepted:
            return False
        return isinstance(event, Problem) or (event is not None and event.event_id in self.accepted[position])

    def read_otherwise(self, partition: int, digest: str | None) -> Callable[[int], bool]:
        """Return a function: whether an offset was only read while its source had another digest."""
        ranges = [each for each in self.ranges if each.partition == partition]
        same = [each for each in ranges if each.digest == digest]
        if len(same) == len(ranges):
            return lambda _offset: False
        return lambda offset: not any(each.start <= offset < each.end for each in same)

    def is_withdrawn(self, position: Position) -> bool:
        """Return whether a withdrawal removed what was read at a position, and no later batch read it again.

        A replay before the withdrawal found its events in the lake, as duplicates: they left with the others.
        """
        partition, offset = position
        found = [each for each in self.ranges if each.partition == partition and each.start <= offset < each.end]
        withdrawn = [(each.version, each.withdrawn_at) for each in found if each.withdrawn_at is not None]
        kept = [each.version for each in found if each.withdrawn_at is None]
        return bool(withdrawn) and all(any(read < at < left for read, left in withdrawn) for at in kept)


@dataclass(frozen=True, slots=True)
class _LakeContents:
    """What the files of the lake contain: every event_id, and what they have of the audited topics, by topic id."""

    ids: set[str]
    events: int
    topics: dict[str, _TopicContents]
    tombstones: frozenset[str]

    def is_erased(self, user_id: bytes | None) -> bool:
        """Return whether a user was erased."""
        if user_id is None:
            return False
        return any(tombstone(user_id, key) in self.tombstones for key in keys_of(self.tombstones))

    def is_erased_in(self, record: _Record) -> bool:
        """Return whether an undecodable record contains the user_id of an erased user as a word."""
        texts = [record.key, record.value, *(text for _, text in record.headers)]
        return bool(self.tombstones) and any(
            self.is_erased(word) for text in texts for word in tokenize_bytes(text or b"")
        )


def audit(settings: Settings) -> Audit:
    """Compare every topic, up to the lake's checkpoints, with everything that the lake holds (`nothing-lost`).

    Safe while ingest runs. Raises UsageError if a topic or the lake does not exist, TransientError if the brokers do
    not answer or do not send every record.
    """
    with open_topics(settings) as ingested:
        described = {name: _describe(settings, name) for name in ingested}
        if not is_lake(settings.lake_root):
            raise UsageError(f"there is no lake in {settings.lake_root} yet: run `karmalake drain` first")
        lake = open_lake(settings.lake_root)
        events = lake.table("events")
        checkpoints = {
            (topic.topic_id, p.partition): checkpoint(events, topic.topic_id, p.partition)
            for topic in described.values()
            for p in topic.partitions
        }
        contents = _read_files(settings, lake, {topic.topic_id for topic in described.values()})
        partitions = [
            _PartitionAuditor(settings, contents, ingested[name], topic.topic_id).audit(p, next_offset)
            for name, topic in described.items()
            for p in topic.partitions
            if (next_offset := checkpoints[topic.topic_id, p.partition]) is not None
        ]
    return Audit(partitions, contents.events, contents.events - len(contents.ids))


def _describe(settings: Settings, name: str) -> Topic:
    topic = describe_topic(settings.kafka.model_copy(update={"topic": name}))
    if topic is None:
        missing, is_own = explain_missing_topic(settings, name), name == settings.kafka.topic
        remedy = "; if the lake was ingested from another one, set kafka.topic to it" if is_own else ""
        raise UsageError(f"{missing}{remedy}")
    return topic


def _read_files(settings: Settings, lake: Lake, topic_ids: set[str]) -> _LakeContents:
    """Read the files of the newest version: of each topic, and of the replays of it."""
    topics = {topic_id: _TopicContents() for topic_id in topic_ids}
    commits = [row for table in _tables(lake, "commits", _COMMIT) for row in table.to_pylist()]
    contents = topics | {replay: topics[each] for replay, each in replayed_topics(commits).items() if each in topics}
    _add_ranges(commits, contents)
    ids, count = _read_events(lake, contents)
    _read_dead_letters(lake, contents, commits)
    for table in _tables(lake, "erased", _PLACE):
        for topic_id, topic in contents.items():
            topic.erased.update(_positions(_of_topic(table, topic_id)))
    tombstones = lake_tombstones(settings.lake_root) | read_tombstones(settings.tombstones_file)
    return _LakeContents(ids, count, topics, tombstones)


def replayed_topics(commits: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the id of the topic that each replay read, by the topic id of the replay: the newest before it.

    A topic that is created again has another id, and a replay of the one before says nothing about its records. A topic
    that was read only after the replay is the one that it read.
    """
    newest: dict[str, str] = {}
    unread: dict[str, list[str]] = defaultdict(list)
    found: dict[str, str] = {}
    for commit in sorted(commits, key=lambda each: each["version"]):
        for place in commit["ranges"]:
            name = place["topic"].removeprefix(_REPLAY)
            if name == place["topic"]:
                newest[name] = place["topic_id"]
                for replay in unread.pop(name, ()):
                    found[replay] = place["topic_id"]
            elif name in newest:
                found.setdefault(place["topic_id"], newest[name])
            else:
                unread[name].append(place["topic_id"])
    return found


def _add_ranges(commits: Sequence[Mapping[str, Any]], topics: Mapping[str, _TopicContents]) -> None:
    """Add the ranges that were read of each topic."""
    withdrawn = {
        (each["batch_id"], each["topic_id"]): row["version"] for row in commits for each in row.get("withdrawn") or ()
    }
    for commit in commits:
        for place in commit["ranges"]:
            if place["topic_id"] in topics:
                bounds = (place["topic_partition"], place["start_offset"], place["next_offset"])
                withdrawn_at = withdrawn.get((commit["batch_id"], place["topic_id"]))
                read = _Range(*bounds, place.get("source_digest"), commit["version"], withdrawn_at)
                topics[place["topic_id"]].ranges.append(read)


def _read_events(lake: Lake, topics: Mapping[str, _TopicContents]) -> tuple[set[str], int]:
    """Add the event_ids at each position of each topic; return the ids of all events, and the number of events."""
    ids: set[str] = set()
    count = 0
    for table in _tables(lake, "events", ["event_id", *_PLACE]):
        ids.update(table["event_id"].to_pylist())
        count += len(table)
        for topic_id, topic in topics.items():
            of_topic = _of_topic(table, topic_id)
            for position, event_id in zip(_positions(of_topic), of_topic["event_id"].to_pylist(), strict=True):
                topic.accepted[position] = (*topic.accepted.get(position, ()), event_id)
    return ids, count


def _read_dead_letters(lake: Lake, topics: Mapping[str, _TopicContents], commits: Sequence[Mapping[str, Any]]) -> None:
    """Add the positions of the dead letters of each topic; those of uncommitted batches do not count."""
    digests = {
        (commit["batch_id"], place["topic_id"]): place.get("source_digest")
        for commit in commits
        for place in commit["ranges"]
    }
    for table in _tables(lake, "dead_letters", [*_PLACE, "batch_id"]):
        for topic_id, topic in topics.items():
            of_topic = _of_topic(table, topic_id)
            for position, batch_id in zip(_positions(of_topic), of_topic["batch_id"].to_pylist(), strict=True):
                if (batch_id, topic_id) in digests:
                    digest = digests[batch_id, topic_id]
                    topic.rejected[position] = topic.rejected.get(position, frozenset()) | {digest}


def _tables(lake: Lake, name: str, columns: list[str]) -> Iterator[pa.Table]:
    for path in lake.table(name).file_uris():
        yield read_file(unquote(path), columns)


def _of_topic(table: pa.Table, topic_id: str) -> pa.Table:
    return table.filter(pa.array([each == topic_id for each in table["topic_id"].to_pylist()], pa.bool_()))


def _positions(table: pa.Table) -> Iterator[Position]:
    return zip(table["topic_partition"].to_pylist(), table["offset"].to_pylist(), strict=True)


@dataclass(frozen=True, slots=True)
class _PartitionAuditor:
    """Audits the topic partitions of one topic."""

    settings: Settings
    contents: _LakeContents
    topic: IngestedTopic
    topic_id: str

    def audit(self, log: TopicPartitionState, end: int) -> PartitionAudit:
        """Read the records below the checkpoint `end`, and count what became of them."""
        found = PartitionAudit(self.topic.name, log.partition, log.begin_offset, max(log.begin_offset, end))
        is_changed = self.contents.topics[self.topic_id].read_otherwise(log.partition, self.topic.digest)
        records, size = 0, 0
        mapped: list[_Record] = []
        for record in _records(self.settings, TopicPartition(self.topic.name, log.partition), log.begin_offset, end):
            records += 1
            if self._is_mapped(found, record, is_changed):
                mapped.append(record)
                size += len(record.value or b"")
            if len(mapped) == _MAX_RECORDS or size > _MAX_BYTES:
                self._count_mapped(found, mapped)
                mapped, size = [], 0
        if mapped:
            self._count_mapped(found, mapped)
        found.gaps = found.next_offset - found.first_offset - records
        return found

    def _is_mapped(self, found: PartitionAudit, record: _Record, is_changed: Callable[[int], bool]) -> bool:
        """Count a record, unless a source maps it: return whether it does, since those are counted together."""
        lake, position = self.contents.topics[self.topic_id], (found.topic_partition, record.offset)
        refused_by = lake.rejected.get(position, ())
        if self.topic.digest in refused_by or (refused_by and is_changed(record.offset)):
            found.dead_letters += 1
        elif is_changed(record.offset):
            found.changed += 1
        elif self.topic.source == CONTRACT:
            found.converted += 1
            found.made += 1
            self._count_own(found, record, lake)
        else:
            return True
        return False

    def _count_own(self, found: PartitionAudit, record: _Record, lake: _TopicContents) -> None:
        """Count a record of our own contract, which is one event."""
        position = (found.topic_partition, record.offset)
        if position in lake.erased and position not in lake.accepted:
            found.erased += 1
            return
        # never a dead letter: it may crash any decoder
        event = read_event(record.value or b"", record.headers, self.settings.contract)
        read = event if isinstance(event, ReadEvent) else None
        if lake.accepts(position, event):
            found.accepted += 1
        elif self.contents.is_erased(record.key) or (read and self.contents.is_erased(read.user_id.encode())):
            found.erased += 1
        elif read and read.event_id in self.contents.ids:
            found.duplicate_ids += 1
        elif read is None and self.contents.is_erased_in(record):
            found.erased += 1
        else:
            found.lose(record.offset)

    def _count_mapped(self, found: PartitionAudit, records: Sequence[_Record]) -> None:
        """Count records of another source, decoded without those before and after them, and each of their events."""
        rows = pa.Table.from_pylist([self._as_row(found.topic_partition, each) for each in records], RECORD)
        decoded = self.topic.decode(rows, None)
        found.filtered += len(decoded.filtered)
        found.converted += len(records) - len(decoded.filtered)
        events, refused = _by_offset(decoded.events), Counter(decoded.rejected["offset"].to_pylist())
        for record in records:
            found.made += max(len(events[record.offset]), refused[record.offset])
            for event_id, user_id in events[record.offset]:
                self._count_event(found, record, event_id, user_id)
            if refused[record.offset]:
                self._count_refused(found, record)

    def _count_event(self, found: PartitionAudit, record: _Record, event_id: str, user_id: str) -> None:
        lake, position = self.contents.topics[self.topic_id], (found.topic_partition, record.offset)
        if event_id in lake.accepted.get(position, ()):
            found.accepted += 1
        elif self.contents.is_erased(user_id.encode()):
            found.erased += 1
        elif event_id in self.contents.ids:
            found.duplicate_ids += 1
        elif lake.is_withdrawn(position):
            found.withdrawn += 1
        else:
            found.lose(record.offset)

    def _count_refused(self, found: PartitionAudit, record: _Record) -> None:
        """Count a record that is not a valid event, although the lake has no dead letter of it."""
        position = (found.topic_partition, record.offset)
        is_erased = position in self.contents.topics[self.topic_id].erased
        if is_erased or self.contents.is_erased(record.key) or self.contents.is_erased_in(record):
            found.erased += 1
        else:
            found.lose(record.offset)

    def _as_row(self, partition: int, record: _Record) -> dict[str, Any]:
        return {
            "topic_id": self.topic_id,
            "topic": self.topic.name,
            "topic_partition": partition,
            "offset": record.offset,
            "bus_time": bus_times([record.bus_time_ms])[0].as_py(),
            "key": record.key,
            "value": record.value,
            "headers": [{"key": key, "value": value} for key, value in record.headers],
        }


def _by_offset(events: pa.Table) -> Mapping[int, list[tuple[str, str]]]:
    """Return event_id and user_id of the events of each record."""
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for offset, *event in zip(*(events[name].to_pylist() for name in ("offset", "event_id", "user_id")), strict=True):
        found[offset].append((event[0], event[1]))
    return found


def _records(settings: Settings, place: TopicPartition, first: int, end: int) -> Iterator[_Record]:
    """Yield each committed record in [first, end) of a topic partition."""
    options = {"group_id": None, "enable_auto_commit": False, "isolation_level": "read_committed", "check_crcs": False}
    with (
        translate_errors(settings.kafka, f"auditing {place.topic}"),
        consumer(settings.kafka, **options) as reader,
    ):
        install_batch_types(reader, CrcCheckedBatch)  # a damaged batch below a checkpoint is one dead letter
        reader.assign([place])
        reader.seek(place, first)
        empty_polls = 0
        while reader.position(place) < end and empty_polls < _MAX_EMPTY_POLLS:
            records = reader.poll(timeout_ms=500).get(place, [])
            empty_polls = 0 if records else empty_polls + 1
            yield from (_Record(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records if r.offset < end)
        if reader.position(place) < end:
            at = f"{place.topic}-{place.partition}@{reader.position(place)}"
            raise TransientError(
                f"the brokers sent no records from {at} on, although the lake's checkpoint is {end}; try again"
            )
