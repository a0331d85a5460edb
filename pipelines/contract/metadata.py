"""The metadata map as a column: its size in bytes, and one value for each key."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def sizes(metadata: pa.ChunkedArray) -> pa.Array:
    """Return the bytes of all keys and values of each row."""
    column = metadata.combine_chunks()
    lengths = pc.add(pc.binary_length(column.keys), pc.fill_null(pc.binary_length(column.items), 0))
    ends = np.concatenate([[0], np.cumsum(lengths.to_numpy(), dtype=np.int64)])
    offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
    return pa.array(ends[offsets[1:]] - ends[offsets[:-1]])


def last_value_wins(events: pa.Table) -> pa.Table:
    """Return `events` with at most one entry for each metadata key.

    The wire format may hold a key twice; Protobuf's rule for maps is that the last one counts.
    """
    column = events["metadata"].combine_chunks()
    rows = _rows_with_repeated_keys(column)
    if not len(rows):
        return events
    repaired = column.to_pylist()
    for row in rows:
        repaired[row] = list(dict(repaired[row]).items())
    index = events.schema.get_field_index("metadata")
    return events.set_column(index, events.schema.field(index), pa.array(repaired, column.type))


def _rows_with_repeated_keys(column: pa.MapArray) -> np.ndarray:
    if not len(column.keys):
        return np.empty(0, np.int64)
    codes = column.keys.dictionary_encode()
    counts = np.diff(column.offsets.to_numpy())
    row_of_entry = np.repeat(np.arange(len(column), dtype=np.int64), counts)
    entries = row_of_entry * len(codes.dictionary) + codes.indices.to_numpy()
    unique, seen = np.unique(entries, return_counts=True)
    return np.unique(unique[seen > 1] // len(codes.dictionary))
