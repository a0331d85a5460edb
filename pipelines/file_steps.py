"""What to do about rows of a file that equal earlier ones: the same for a load and for its preview."""

from pipelines.backfill import FileSummary
from pipelines.boundary.text import amount
from pipelines.ingest.file import FileSource


def equal_rows_step(account: FileSummary, source: FileSource) -> str:
    """Return what becomes of rows that equal an earlier one of the file, and the remedy; empty if there are none."""
    equal = repeated_rows(account, source)
    if not equal:
        return ""
    if source.mapping.makes_ids:
        remedy = separate_events(source)
        rows = amount(
            equal,
            "row equals an earlier row of the file and counts once. If they are separate events",
            "rows equal an earlier row of the file and count once. If they are separate events",
        )
        return f"{rows}, {remedy}"
    rows, count = amount(equal, "row has", "rows have"), "counts" if equal == 1 else "count"
    return f"{rows} the event_id of an earlier row of the file with the same content, and {count} once"


def repeated_rows(account: FileSummary, source: FileSource) -> int:
    """Return how many duplicates have the event_id of an earlier row; 0 unless all rows were read now."""
    return min(source.equal_rows() or 0, account.duplicates)


def separate_events(source: FileSource) -> str:
    """Return what makes equal rows of a file separate events."""
    if source.source:
        return f"write number_rows = true, or an event_id that distinguishes them, in {source.source.path}"
    return "give --number-rows, or name the column that distinguishes them with --event-id"
