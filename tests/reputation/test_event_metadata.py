"""The metadata that the steps read of events, which a refresh loads into DuckDB."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation.event_metadata import only_keys
from pipelines.reputation.segment import ROWS

_KEYS = st.sampled_from("abc")
_METADATA = st.dictionaries(_KEYS, st.sampled_from(("", "1", None)))
_CHUNKS = st.lists(st.lists(_METADATA, max_size=3), max_size=3)


def _events(chunk: list[dict[str, str | None]]) -> pa.Table:
    rows = [dict.fromkeys(ROWS.names) | {"metadata": list(metadata.items())} for metadata in chunk]
    return pa.Table.from_pylist(rows, ROWS)


@given(_CHUNKS, st.sets(_KEYS), st.integers(0, 3))
def test_only_the_metadata_at_some_keys_remain(
    chunks: list[list[dict[str, str | None]]], keys: set[str], skipped: int
) -> None:
    """Of events in any number of chunks, and of a part of a table."""
    events = pa.concat_tables([ROWS.empty_table(), *map(_events, chunks)]).slice(skipped)
    expected = [[(key, text) for key, text in metadata if key in keys] for metadata in events["metadata"].to_pylist()]
    found = only_keys(events, keys)
    assert found.schema == events.schema
    assert found["metadata"].to_pylist() == expected
    assert found.drop(["metadata"]).equals(events.drop(["metadata"]))
