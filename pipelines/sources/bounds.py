"""Limits on history files, so that reading one takes bounded memory whatever it contains.

docs/backfilling.md lists them; a file that exceeds one is rejected with the limit and the remedy.
"""

MAX_ROW_BYTES = 4 * 1024 * 1024
"""Of a line, a row or a value, decompressed. Python objects for a line of JSON take thirty times its size."""
MAX_COLUMNS = 4_096
MAX_NAME_BYTES = 1_024
"""Of a column's name, which is part of every row's digest."""
CHUNK_BYTES = 32 * 1024 * 1024
"""Of the rows processed at a time, in memory; larger chunks are split."""
CHUNK_ROWS = 65_536
MAX_PARQUET_BYTES = 1024 * 1024 * 1024
"""Memory for decoding a Parquet file, beyond the process itself: a page, a dictionary, nested values of a batch."""


def mebibytes(count: int) -> str:
    """Format a limit in bytes as MiB."""
    return f"{count // (1024 * 1024)} MiB"
