"""Where the lake reads on in each topic partition, and what identifies that place, as application transactions.

`ingest:` is the checkpoint. `last:`, `digest:` and `epoch:` tell which record was read last before it; they need not
rise. A lake of an earlier release, a file and a queue have none; a `last:` below 0 says that it is not known.
"""

from collections.abc import Iterable

from deltalake import DeltaTable

from pipelines.ingest.ranges import LastRead, OffsetRange
from pipelines.lake.tables import checkpoint_id, last_record_ids

_UNKNOWN = -1


def positions(events: DeltaTable, ranges: Iterable[OffsetRange]) -> dict[str, int]:
    """Return the application transactions of a commit that reads up to the end of each range."""
    transactions: dict[str, int] = {}
    for offsets in ranges:
        transactions[checkpoint_id(offsets.topic_id, offsets.topic_partition)] = offsets.next_offset
        transactions |= _identify(events, offsets)
    return transactions


def _identify(events: DeltaTable, offsets: OffsetRange) -> dict[str, int]:
    names, last = last_record_ids(offsets.topic_id, offsets.topic_partition), offsets.last
    if last:
        return dict(zip(names, (last.offset, last.digest, last.epoch), strict=True))
    return {names[0]: _UNKNOWN} if events.transaction_version(names[0]) is not None else {}


def last_record(events: DeltaTable, topic_id: str, topic_partition: int) -> LastRead | None:
    """Return the last record read before the checkpoint of a handle's version; None if it is not known."""
    offset, digest, epoch = map(events.transaction_version, last_record_ids(topic_id, topic_partition))
    if offset is None or digest is None or epoch is None or offset <= _UNKNOWN:
        return None
    return LastRead(offset, digest, epoch)
