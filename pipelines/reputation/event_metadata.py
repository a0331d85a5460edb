"""The metadata of events, which the lake stores as a map: as columns, for a data frame, and cut to some keys."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError

_MAX_KEYS = 500
"""A producer may put an id into a key; a column for each of a million ids would take the memory of their square."""


def with_fields(events: pl.DataFrame) -> pl.DataFrame:
    """Return events with `metadata` as a struct: a field (String, or null) for each key of these rows, in their order.

    Raises UsageError for more than 500 keys.
    """
    metadata = pl.col("metadata")
    keys = events.select(metadata.map.keys().explode().drop_nulls().unique().sort()).to_series().to_list()
    if len(keys) > _MAX_KEYS:
        raise UsageError(
            f"{events.height:,} events have {len(keys):,} keys of metadata, and at most {_MAX_KEYS} become columns: "
            "ask for fewer events, or for single keys by .sql(), as metadata['rating']"
        )
    fields = [metadata.map.get(key).alias(key) for key in keys]
    return events.with_columns(metadata=pl.struct(fields) if fields else pl.lit(None, pl.Struct([])))


def only_keys(events: pa.Table, keys: Iterable[str]) -> pa.Table:
    """Return events (ROWS) without the metadata at other keys: DuckDB takes longer to load maps than anything else."""
    wanted, column = pa.array(keys, pa.large_string()), events["metadata"]
    cut = pa.chunked_array([_only_keys(chunk, wanted) for chunk in column.chunks], column.type)
    return events.set_column(events.schema.get_field_index("metadata"), "metadata", cut)


def _only_keys(maps: pa.MapArray, wanted: pa.Array) -> pa.MapArray:
    is_wanted = pc.is_in(maps.keys, value_set=wanted)
    before = np.concatenate([[0], np.cumsum(is_wanted.to_numpy(zero_copy_only=False))])
    offsets = pa.array(before[maps.offsets.to_numpy()], pa.int32())
    return pa.MapArray.from_arrays(offsets, maps.keys.filter(is_wanted), maps.items.filter(is_wanted))
