"""Polled records of several topics, decoded into one batch, each topic by its source."""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from pipelines.contract.decode import Decoded
from pipelines.contract.schema import EVENT, POSITION, RECORD, REJECTED
from pipelines.ingest.batch import Batch, OffsetRange
from pipelines.ingest.record_batches import Polled
from pipelines.ingest.sources import IngestedTopic

NOTHING = Decoded(
    events=pa.schema([*EVENT, *POSITION]).empty_table(),
    rejected=REJECTED.empty_table(),
    mis_keyed=pa.array([], pa.bool_()),
    filtered=POSITION.empty_table(),
)
"""The decoded records of a batch without records."""


def decode_batch(
    polled: Mapping[str, Polled], ranges: tuple[OffsetRange, ...], topics: Mapping[str, IngestedTopic]
) -> Batch:
    """Decode polled records into a batch, each topic by its source; unreadable record batches become rejected records.

    Raises what the decoders raise.
    """
    parts = [_decode(topics[name], found) for name, found in polled.items()]
    records, decoded = parts[0] if len(parts) == 1 else _joined(parts)
    names = dict.fromkeys(place.topic for place in ranges)
    return Batch(f"kafka:{', '.join(names)}", records, decoded, ranges)


def _decode(topic: IngestedTopic, polled: Polled) -> tuple[pa.Table, Decoded]:
    records, decoded = polled.records, topic.decode(polled.records, None)
    if len(polled.unreadable):
        records = pa.concat_tables([records, polled.unreadable.select(RECORD.names)])
        decoded = replace(decoded, rejected=pa.concat_tables([decoded.rejected, polled.unreadable]))
    return records, decoded


def _joined(parts: list[tuple[pa.Table, Decoded]]) -> tuple[pa.Table, Decoded]:
    """Return the records and the decoded records of several topics, or of none."""
    decoded = [NOTHING, *(part for _, part in parts)]
    return pa.concat_tables([RECORD.empty_table(), *(records for records, _ in parts)]), Decoded(
        events=pa.concat_tables([each.events for each in decoded]).combine_chunks(),
        rejected=pa.concat_tables([each.rejected for each in decoded]).combine_chunks(),
        mis_keyed=pa.concat_arrays([each.mis_keyed for each in decoded]),
        filtered=pa.concat_tables([each.filtered for each in decoded]),
    )
