"""What a file of history may hold at most, so that reading one takes bounded memory whatever is in it.

docs/backfilling.md states the bounds; a file beyond one is refused with the bound and the remedy.
"""

MAX_ROW_BYTES = 4 * 1024 * 1024
"""Of a line, a row or a value, decompressed: Python's objects for a line of JSON take thirty times its bytes."""
MAX_COLUMNS = 4_096
MAX_NAME_BYTES = 1_024
"""Of a column's name, which every row's digest repeats."""
CHUNK_BYTES = 32 * 1024 * 1024
"""Of the rows that are worked on at a time, in memory: smaller chunks take turns, a larger one is divided."""
CHUNK_ROWS = 65_536
MAX_PARQUET_BYTES = 1024 * 1024 * 1024
"""What decoding a Parquet file may take beside the process itself: a page, a dictionary, nested values of one batch."""


def mebibytes(count: int) -> str:
    """Return a bound as part of a sentence."""
    return f"{count // (1024 * 1024)} MiB"
