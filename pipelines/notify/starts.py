"""Where a destination reads a topic partition from, if its checkpoint does not say: there is none, or the log left it.

kafka-python knows one answer for both, `auto_offset_reset`. They are two: a destination that begins at the end of the
topic does so once, while its group has no checkpoint at all; a topic partition added later is read from its start; and
where retention passed a checkpoint, what is still there is told, and what is not is reported (`isolated`).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from kafka.errors import CommitFailedError, RebalanceInProgressError
from kafka.structs import OffsetAndMetadata, TopicPartition


@dataclass(frozen=True, slots=True)
class Loss:
    """Offsets of a topic partition that could not be read, and what was done instead."""

    lost: int
    """How many offsets; 0 where that cannot be known."""
    sentence: str


def begin_without_checkpoint(reader: Any, places: Iterable[TopicPartition], begin: Literal["now", "earliest"]) -> None:
    """Place a reader in topic partitions that its group has no checkpoint of.

    A new group that begins now commits the ends of the whole topic at once, so that notifiers that join it in this
    moment, and topic partitions that are added later, do not begin by themselves. A crash before leaves a new group.
    """
    places = list(places)
    topic = places[0].topic
    everywhere = [TopicPartition(topic, number) for number in reader.partitions_for_topic(topic) or ()]
    if begin == "now" and all(reader.committed(place) is None for place in everywhere):
        starts = reader.end_offsets(everywhere)
        with suppress(CommitFailedError, RebalanceInProgressError):  # then its owner finds a group that is still new
            reader.commit({place: OffsetAndMetadata(at, "", -1) for place, at in starts.items()})
    else:
        starts = reader.beginning_offsets(places)
    _seek(reader, {place: starts[place] for place in places})


def go_on_after_loss(reader: Any, checkpoints: Mapping[TopicPartition, int]) -> tuple[Loss, ...]:
    """Place a reader at the start of the logs that no longer reach its offsets, and say what that means."""
    starts = reader.beginning_offsets(list(checkpoints))
    _seek(reader, starts)
    return tuple(_loss(place, at, starts[place]) for place, at in checkpoints.items())


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
            "before they were read, and are not told; what is left is. Raise retention.ms above the longest time that "
            "this destination may be behind",
        )
    return Loss(
        0,
        f"{where} has no offset {at} any more: its log lost its end, or the topic was created again. All that it holds "
        f"from offset {start} on is told, under the keys of before",
    )
