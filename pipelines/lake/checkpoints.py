"""The checkpoint of each topic partition, and the record that was read last before it, as application transactions.

`ingest:` holds the next offset. `last:`, `digest:` and `epoch:` identify the last record read; their values may go
down. A lake of an earlier release, a file and a queue have none of these three; a `last:` below 0 means unknown.
"""

from collections.abc import Iterable

from deltalake import DeltaTable

from pipelines.ingest.batch import LastRead, OffsetRange
from pipelines.lake.tables import checkpoint_id, last_record_ids

_UNKNOWN = -1


def checkpoint_transactions(events: DeltaTable, ranges: Iterable[OffsetRange]) -> dict[str, int]:
    """Return the application transactions, version by app_id, of a commit that reads to the end of each range."""
    transactions: dict[str, int] = {}
    for offsets in ranges:
        transactions[checkpoint_id(offsets.topic_id, offsets.topic_partition)] = offsets.next_offset
        transactions |= _last_record_transactions(events, offsets)
    return transactions


def _last_record_transactions(events: DeltaTable, offsets: OffsetRange) -> dict[str, int]:
    names, last = last_record_ids(offsets.topic_id, offsets.topic_partition), offsets.last
    if last:
        return dict(zip(names, (last.offset, last.digest, last.epoch), strict=True))
    return {names[0]: _UNKNOWN} if events.transaction_version(names[0]) is not None else {}


def last_record(events: DeltaTable, topic_id: str, topic_partition: int) -> LastRead | None:
    """Return the last record read before the checkpoint at a handle's version; None if unknown."""
    offset, digest, epoch = map(events.transaction_version, last_record_ids(topic_id, topic_partition))
    if offset is None or digest is None or epoch is None or offset <= _UNKNOWN:
        return None
    return LastRead(offset, digest, epoch)
