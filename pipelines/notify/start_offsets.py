"""Start offsets where a checkpoint is missing or outside the log.

kafka-python has one option for both, `auto_offset_reset`, but the cases differ. A destination that begins at the end of
the topic does so once, while its group has no checkpoint at all. A topic partition added later is read from its start.
Where retention has passed a checkpoint, the remaining records are delivered, and the lost ones are reported
(`isolated`); so are those that compaction has removed from the topic of the feed, by the offsets that are missing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kafka.errors import CommitFailedError, RebalanceInProgressError
from kafka.structs import OffsetAndMetadata, TopicPartition


@dataclass(frozen=True, slots=True)
class Loss:
    """Offsets of a topic partition that could not be read, and where reading continues."""

    lost: int
    """Number of offsets; 0 if unknown."""
    message: str


def seek_without_checkpoint(
    reader: Any, places: Iterable[TopicPartition], begin: Literal["now", "earliest"]
) -> tuple[Loss, ...] | None:
    """Seek in topic partitions for which the group has no checkpoint; return None to wait for another member's.

    Otherwise return what a group that begins now leaves out, of which none is counted as lost: a group that is new
    looks like one that the brokers have forgotten.

    A new group that begins now gets the end offsets of the whole topic as checkpoints, in one commit of one notifier,
    the owner of the first topic partition. The others poll on until they find them, so none skips or repeats what came
    between its own look at the topic and another's; and topic partitions added later are read from their start. A crash
    before that commit, or a rebalance, which refuses it, leaves a new group. A member that does not know the topic's
    partitions yet waits as well.
    """
    places = list(places)
    topic = places[0].topic
    known = reader.partitions_for_topic(topic)
    if not known:
        return None
    everywhere = [TopicPartition(topic, number) for number in sorted(known | {place.partition for place in places})]
    if begin == "now" and all(reader.committed(place) is None for place in everywhere):
        if TopicPartition(topic, 0) not in reader.assignment():
            return None
        starts, ends = reader.beginning_offsets(everywhere), reader.end_offsets(everywhere)
        try:
            reader.commit({place: OffsetAndMetadata(at, "", -1) for place, at in ends.items()})
        except (CommitFailedError, RebalanceInProgressError):
            return ()
        return _left_out(topic, sum(ends.values()) - sum(starts.values()))
    # Each topic partition was a request of its own: that commit may have come between them.
    added = [place for place in places if reader.committed(place) is None]
    _seek(reader, reader.beginning_offsets(added) if added else {})
    return ()


def seek_after_data_loss(reader: Any, checkpoints: Mapping[TopicPartition, int]) -> tuple[Loss, ...]:
    """Seek to the start of the logs that no longer contain the checkpoints, and return the losses."""
    starts = reader.beginning_offsets(list(checkpoints))
    _seek(reader, starts)
    return tuple(_loss(place, at, starts[place]) for place, at in checkpoints.items())


def compaction_losses(place: TopicPartition, expected: int | None, position: int, records: int) -> tuple[Loss, ...]:
    """Return the loss of the offsets in [expected, position) beyond the records read of them; none for a new group.

    The topic of the feed is compacted: a removed record has a newer one of its user there, or the user was erased.
    """
    missing = 0 if expected is None else position - expected - records
    if missing <= 0:
        return ()
    message = (
        f"{missing:,} changes on {place.topic}-{place.partition} were replaced by newer ones of their users before "
        "they were read, by the topic's compaction: steps between are not delivered, the newest change of each user "
        "is. The table score_changes has all of them. Raise min.compaction.lag.ms above the longest time that this "
        "destination may lag"
    )
    return (Loss(missing, message),)


def _left_out(topic: str, records: int) -> tuple[Loss, ...]:
    if records <= 0:
        return ()
    message = (
        f"it has no checkpoint, and begins at the end of {topic}: up to {records:,} records before that are not "
        "delivered. That is right for a new destination. Kafka also forgets the checkpoints of one that was off for "
        'long, or whose topic was deleted meanwhile: give it begin = "earliest" and another name, and it delivers them'
    )
    return (Loss(0, message),)


def _seek(reader: Any, starts: Mapping[TopicPartition, int]) -> None:
    assigned = reader.assignment()
    for place, at in starts.items():
        if place in assigned:
            reader.seek(place, at)


def _loss(place: TopicPartition, at: int, start: int) -> Loss:
    where = f"{place.topic}-{place.partition}"
    if at < start:
        return Loss(
            start - at,
            f"{start - at:,} records of {where} (offsets {at} to {start - 1}) were deleted by the topic's retention "
            "before they were read, and are not delivered; later ones are. Raise retention.ms above the longest time "
            "that this destination may lag",
        )
    return Loss(
        0,
        f"{where} no longer has offset {at}: its log was truncated, or the topic was recreated. All records from "
        f"offset {start} are delivered, with the same idempotency keys",
    )
