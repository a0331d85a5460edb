"""The metadata of events, which the lake stores as a map, as columns that a data frame can unnest and write."""

import polars as pl

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
