"""The first day that there is anything of: of the first event of the lake, or of the first file of history."""

from datetime import date, datetime

from pipelines.backfill import day_files, history_rows
from pipelines.lake.tables import data_files, is_lake, open_lake, read_rows
from pipelines.settings import Settings


def first_day(settings: Settings) -> date | None:
    """Return the UTC day of the first event in the lake or of the first file of history; None if there is neither.

    Reads one column of the commit records, and the names of the files of history. Raises like `history_rows`.
    """
    days = [_first_event_day(settings), _first_file_day(settings)]
    return min((day for day in days if day is not None), default=None)


def _first_event_day(settings: Settings) -> date | None:
    if not is_lake(settings.lake_root):
        return None
    files = data_files(open_lake(settings.lake_root).table("commits"))
    columns = (read_rows("commits", file, ["first_event_time"]).column(0) for file in files)
    times: list[datetime | None] = [time for column in columns for time in column.unique().to_pylist()]
    return min((time.date() for time in times if time is not None), default=None)


def _first_file_day(settings: Settings) -> date | None:
    return min(map(date.fromisoformat, day_files(settings, history_rows(settings))), default=None)
