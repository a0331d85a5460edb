"""What a source is, and how the records of a foreign topic become events."""

from pipelines.mapping.decoder import open_mapping
from pipelines.mapping.row_select import RowSelect, join_rows, open_row_select
from pipelines.mapping.source_files import CONTRACT, SourceFile, find_source, read_source, read_sources

__all__ = [
    "CONTRACT",
    "RowSelect",
    "SourceFile",
    "find_source",
    "join_rows",
    "open_mapping",
    "open_row_select",
    "read_source",
    "read_sources",
]
