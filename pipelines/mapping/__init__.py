"""What a source is, and how the records of a foreign topic become events."""

from pipelines.mapping.decoder import open_mapping
from pipelines.mapping.source_files import SourceFile, read_source, read_sources

__all__ = ["SourceFile", "open_mapping", "read_source", "read_sources"]
