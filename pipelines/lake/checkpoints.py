"""The checkpoint of each topic partition, and the record that was read last before it, as application transactions.

`ingest:` holds the next offset. `last:`, `digest:` and `epoch:` identify the last record read; their values may go
down. A lake of an earlier release, a file and a queue have none of these three; a `last:` below 0 means unknown.
"""

import re
from collections.abc import Iterable, Mapping

from deltalake import DeltaTable

from pipelines.ingest.batch import LastRead, OffsetRange
from pipelines.lake.transactions import transactions

_CHECKPOINT = re.compile(r"ingest:(?P<topic_id>.*):(?P<topic_partition>[0-9]{1,9})", re.DOTALL)
_UNKNOWN = -1


def checkpoint(events: DeltaTable, topic_id: str, topic_partition: int) -> int | None:
    """Return the next_offset of a topic partition at a handle's version; None if it was never read."""
    return transactions(events).get(_checkpoint_id(topic_id, topic_partition))


def checkpoints(transactions_of_events: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the next_offset of all that was ever read, by (topic_id, topic_partition)."""
    found: dict[tuple[str, int], int] = {}
    for app_id, next_offset in transactions_of_events.items():
        if place := _CHECKPOINT.fullmatch(app_id):
            found[place["topic_id"], int(place["topic_partition"])] = next_offset
    return found


def checkpoint_transactions(events: DeltaTable, ranges: Iterable[OffsetRange]) -> dict[str, int]:
    """Return the application transactions, version by app_id, of a commit that reads to the end of each range."""
    found: dict[str, int] = {}
    for offsets in ranges:
        found[_checkpoint_id(offsets.topic_id, offsets.topic_partition)] = offsets.next_offset
        found |= _last_record_transactions(events, offsets)
    return found


def last_record(events: DeltaTable, topic_id: str, topic_partition: int) -> LastRead | None:
    """Return the last record read before the checkpoint at a handle's version; None if unknown."""
    offset, digest, epoch = map(transactions(events).get, _last_record_ids(topic_id, topic_partition))
    if offset is None or digest is None or epoch is None or offset <= _UNKNOWN:
        return None
    return LastRead(offset, digest, epoch)


def _last_record_transactions(events: DeltaTable, offsets: OffsetRange) -> dict[str, int]:
    names, last = _last_record_ids(offsets.topic_id, offsets.topic_partition), offsets.last
    if last:
        return dict(zip(names, (last.offset, last.digest, last.epoch), strict=True))
    return {names[0]: _UNKNOWN} if names[0] in transactions(events) else {}


def _checkpoint_id(topic_id: str, topic_partition: int) -> str:
    return f"ingest:{topic_id}:{topic_partition}"


def _last_record_ids(topic_id: str, topic_partition: int) -> tuple[str, str, str]:
    place = f"{topic_id}:{topic_partition}"
    return f"last:{place}", f"digest:{place}", f"epoch:{place}"
