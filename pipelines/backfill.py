"""Backfill: files of history into the lake, without the bus. A file is another source for the same drain.

Owns the files of history by day, and the summary of a file: the fate of its rows by the lake's commit records.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from pipelines.drain import drain, open_ingest_from
from pipelines.errors import ConfigurationError, UsageError
from pipelines.ingest.file import FileSource, open_file
from pipelines.inputs import InputFile, local_file
from pipelines.lake.commit import CommitRecord
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import HistorySettings, Settings
from pipelines.sources.files import ColumnMapping
from pipelines.sources.options import ReadOptions
from pipelines.sources.rows import count_rows

_MAX_EXAMPLES = 3

_FATES = """
WITH ranges AS (
    SELECT batch_id, unnest(ranges, recursive := true)
    FROM (SELECT batch_id, ranges FROM commits WHERE source <> 'withdrawal')
)
SELECT
    topic_id,
    count(*)::BIGINT AS commits,
    sum("read")::BIGINT AS "read",
    sum(accepted)::BIGINT AS accepted,
    sum(duplicates)::BIGINT AS duplicates,
    sum(conflicts)::BIGINT AS conflicts,
    sum(dead_letters)::BIGINT AS dead_letters,
    sum(erased)::BIGINT AS erased
FROM ranges
ANTI JOIN withdrawn USING (batch_id, topic_id)
WHERE topic_id IN (SELECT unnest(?))
GROUP BY topic_id
"""
_REASONS = """
SELECT topic_id, reason, count(*)::BIGINT AS rows
FROM dead_letters
ANTI JOIN withdrawn USING (batch_id, topic_id)
WHERE topic_id IN (SELECT unnest(?))
GROUP BY topic_id, reason
ORDER BY rows DESC, reason
"""


@dataclass(frozen=True, slots=True)
class FileSummary:
    """The fates of the rows of one file, over all attempts to load it, except loads that were withdrawn."""

    path: Path
    rows: int
    """Rows of the file."""
    commits: int = 0
    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    dead_letters: int = 0
    erased: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """The file's dead letters that are still in the lake, by reason."""

    @property
    def reconciles(self) -> bool:
        """Whether every row of the file was read and has exactly one fate (`nothing-lost`)."""
        fates = self.accepted + self.duplicates + self.conflicts + self.dead_letters + self.erased
        return self.rows == self.read == fates


def backfill(
    settings: Settings, data: Any, mapping: ColumnMapping, report: Callable[[CommitRecord], None] = lambda _: None
) -> int:
    """Commit the rows of a file or frame from its checkpoint on; return the number of commits.

    `data` is a path, an s3:// address, `-` for standard input, a frame of polars, pandas or Arrow, or a relation of
    DuckDB. `report` is called with the record of each commit. After a crash, the next call continues from the last
    commit (`once`). Several processes may load files at the same time, beside ingest from the bus. Raises UsageError
    for a file that does not exist or does not match the mapping, and RejectedError if its rejected rows exceed a limit.
    """
    with local_file(data) as file:
        try:
            return load(settings, open_input(file, mapping, settings), report)
        except UsageError as error:
            if not file.name:
                raise
            raise UsageError(str(error).replace(str(file.path), file.name)) from None


def open_input(file: InputFile, mapping: ColumnMapping, settings: Settings) -> FileSource:
    """Return a source of the rows of an input. Raises UsageError if the file does not exist."""
    return open_file(file.path, mapping, settings, file.name, file.content)


def load(settings: Settings, source: FileSource, report: Callable[[CommitRecord], None]) -> int:
    """Commit the rows of a source from its checkpoint on; return the number of commits. Raises like `backfill`."""
    with open_ingest_from(source, settings) as ingest:
        return drain(ingest, report)


def history_mapping(history: HistorySettings) -> ColumnMapping:
    """Return the column mapping of the files of history."""
    column = None if history.action_type else history.action_type_column
    return ColumnMapping(
        None if history.user else history.user_id,
        history.time,
        history.time_unit,
        history.action_type,
        column,
        tuple(sorted(history.metadata.items())),  # sorted: the order in the settings must not change the topic id
        history.event_id,
        _read_options(history),
        history.user,
        history.time_format,
        history.time_zone,
        tuple(history.identity),
        history.number_rows,
    )


def _read_options(history: HistorySettings) -> ReadOptions:
    return ReadOptions(
        history.format,
        "\t" if history.delimiter == "tab" else history.delimiter,
        history.quote,
        history.escape,
        history.comment,
        history.encoding,
        tuple(history.columns),
        history.decimal_comma,
        tuple(history.null),
    )


def find_day_files(history: HistorySettings, days: Sequence[str]) -> dict[str, Path]:
    """Return the file of history of each day that has one.

    Raises UsageError for days without a file, unless `history.days_may_be_missing` is on, and ConfigurationError if
    `history.path` is unset.
    """
    if history.path is None:
        raise ConfigurationError("set history.path, the path of the file of a day")
    paths = {day: Path(history.path.replace("{day}", day)) for day in days}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing and not history.days_may_be_missing:
        raise UsageError(
            f"{len(missing)} of {len(days)} days have no file, such as {', '.join(missing[:_MAX_EXAMPLES])}: add "
            "them, or set history.days_may_be_missing; nothing was loaded"
        )
    return {day: path for day, path in paths.items() if path.exists()}


def summarize_files(settings: Settings, paths: Sequence[Path], mapping: ColumnMapping) -> list[FileSummary]:
    """Return the summary of each file in its current state, with its rows counted; a file that changed is another file.

    Raises UsageError for a file that does not exist, and if there is no lake.
    """
    sources = [open_file(path, mapping, settings) for path in paths]
    return [
        replace(summary, rows=count_rows(path, mapping.reading, mapping.required_columns()))
        for path, summary in zip(paths, summarize_commits(settings, sources), strict=True)
    ]


def summarize_commits(settings: Settings, sources: Sequence[FileSource]) -> list[FileSummary]:
    """Return the summary of each file by the lake's commit records alone: `rows` is the number of rows read.

    Raises UsageError if there is no lake.
    """
    topic_ids = [source.topic_id for source in sources]
    with duckdb.connect() as connection:
        create_lake_views(connection, take_snapshot(open_lake(settings.lake_root)))
        fates = {row["topic_id"]: row for row in connection.sql(_FATES, params=[topic_ids]).pl().to_dicts()}
        reasons: dict[str, dict[str, int]] = {}
        for topic_id, reason, rows in connection.execute(_REASONS, [topic_ids]).fetchall():
            reasons.setdefault(topic_id, {})[reason] = rows
    return [
        FileSummary(source.path, reasons=reasons.get(source.topic_id, {}), **_fate(fates.get(source.topic_id, {})))
        for source in sources
    ]


def _fate(counts: dict[str, int]) -> dict[str, int]:
    return {"rows": counts.get("read", 0), **{name: count for name, count in counts.items() if name != "topic_id"}}
