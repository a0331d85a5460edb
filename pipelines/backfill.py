"""Backfill: files of history into the lake, without the bus. A file is another source for the same drain.

Owns the files of history by day, and the summary of a file: the fate of its rows by the lake's commit records.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from glob import escape, glob
from pathlib import Path
from typing import Any

from pipelines.drain import drain, open_ingest_from
from pipelines.errors import ConfigurationError, UsageError
from pipelines.ingest.file import FileSource, open_file
from pipelines.ingest.sample import RecordSample
from pipelines.inputs import UNNAMED, InputFile, find_files, local_file
from pipelines.lake.commit import CommitRecord
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.run_lake import OpenLake, RunLake
from pipelines.lake.tables import open_lake
from pipelines.mapping.source_files import DAY, SourceFile, find_source
from pipelines.reputation.lake_views import open_lake_views
from pipelines.settings import HistorySettings, Settings
from pipelines.sources.files import ColumnMapping
from pipelines.sources.options import ReadOptions
from pipelines.sources.rows import count_rows

_LOG = logging.getLogger(__name__)
_ANY_DAY = "-".join(["[0-9]" * 4, "[0-9]" * 2, "[0-9]" * 2])
"""The pattern of the files of any day."""

_FATES = """
WITH ranges AS (
    SELECT batch_id, unnest(ranges, recursive := true)
    FROM (SELECT batch_id, ranges FROM commits WHERE source <> 'withdrawal')
)
SELECT
    topic_id,
    count(*)::BIGINT AS commits,
    sum("read")::BIGINT AS "read",
    sum(coalesce(converted, accepted + duplicates + conflicts + erased))::BIGINT AS converted,
    sum(coalesce(filtered, 0))::BIGINT AS filtered,
    sum(coalesce(made, accepted + duplicates + conflicts + erased))::BIGINT AS made,
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
_OTHERS = """
SELECT DISTINCT left(topic_id, 17)
FROM (SELECT batch_id, unnest(ranges, recursive := true) FROM (SELECT batch_id, ranges FROM commits))
ANTI JOIN withdrawn USING (batch_id, topic_id)
WHERE topic = $topic AND source_digest <> $digest AND accepted > 0
ORDER BY ALL
"""
"""The loads of a file under other columns or another source, as `loads list` names them."""
_REASONS = """
SELECT topic_id, reason, count(*)::BIGINT AS rows, arg_min(detail, "offset") AS example
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
    converted: int = 0
    """Rows that became events."""
    filtered: int = 0
    """Rows that the SELECT of a source leaves out."""
    made: int = 0
    """Events."""
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    dead_letters: int = 0
    erased: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """The file's dead letters that are still in the lake, by reason."""
    example: str = ""
    """What is wrong with the first one of the most frequent reason."""

    @property
    def reconciles(self) -> bool:
        """Whether every row was read, and each and every event has exactly one fate (`nothing-lost`)."""
        rows = self.converted + self.filtered + self.dead_letters
        events = self.accepted + self.duplicates + self.conflicts + self.erased
        return self.rows == self.read == rows and self.made == events


def backfill(
    settings: Settings,
    data: Any,
    rows: ColumnMapping | SourceFile,
    report: Callable[[CommitRecord], None] = lambda _: None,
    name: str = "",
) -> int:
    """Commit the rows of files or of a frame, each from its checkpoint on; return the number of commits.

    `data` is a path or an s3:// address, also of a folder or a Delta table, a pattern, `-` for standard input, a frame
    of polars, pandas or Arrow, or a relation of DuckDB. `rows` says what its rows are: columns, or a source file
    (`karmalake.read_source`). `report` is called with the record of each commit. `name` is what `karmalake loads list`
    calls standard input or a frame. What is unusual about the form of a file is logged as a warning, such as sheets of
    a workbook that are not read. After a crash, the next call continues from the last commit (`once`). Several
    processes may load files at the same time, beside ingest from the bus. Raises UsageError for a file that does not
    exist or does not match the mapping, and RejectedError if its rejected rows exceed a limit; files before it stay
    committed.
    """
    files = find_files([data]) if isinstance(data, str | Path) else [data]
    lake = RunLake(settings.lake_root)
    return sum(_backfill_one(settings, lake.open, each, rows, report, name) for each in files)


def _backfill_one(
    settings: Settings,
    opening: OpenLake,
    data: Any,
    rows: ColumnMapping | SourceFile,
    report: Callable[[CommitRecord], None],
    name: str,
) -> int:
    with local_file(data, name) as file:
        source = open_input(file, rows, settings)
        if isinstance(data, str | Path) and (form := source.describe()):
            _LOG.warning("%s: %s", source.name, form)
        return load(settings, source, report, opening)


def open_input(file: InputFile, rows: ColumnMapping | SourceFile, settings: Settings) -> FileSource:
    """Return a source of the rows of an input. Raises UsageError if the file does not exist."""
    return open_file(file.path, rows, settings, file.name, file.content)


def load(
    settings: Settings, source: FileSource, report: Callable[[CommitRecord], None], opening: OpenLake | None = None
) -> int:
    """Commit the rows of a source from its checkpoint on; return the number of commits. Raises like `backfill`.

    opening: as in `open_ingest`.
    """
    with closing(source), open_ingest_from(source, settings, opening=opening) as ingest:
        return drain(ingest, report)


def history_rows(settings: Settings) -> ColumnMapping | SourceFile:
    """Return what the rows of files of history are. Raises UsageError if `history.source` is not a source of files."""
    history = settings.history
    if history.source is None:
        return history_mapping(history)
    others = sorted(history.model_fields_set - {"source", "path", "days_may_be_missing"})
    if others:
        raise ConfigurationError(f"history.{others[0]} and history.source exclude each other: remove one")
    return find_file_source(settings, history.source)


def find_file_source(settings: Settings, name: str) -> SourceFile:
    """Return a source of files by its name. Raises UsageError if there is none, or it reads topics."""
    source = find_source(settings.sources.folder, name)
    if not source.files:
        raise UsageError(f"{source.path} reads topics, which `karmalake drain` ingests: give a source with `files`")
    return source


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


def _day_path(settings: Settings, rows: ColumnMapping | SourceFile) -> str | None:
    """Return the path of the file of a day: that of the settings, or the one of the source."""
    if settings.history.path or isinstance(rows, ColumnMapping):
        return settings.history.path
    return next((rows.locate(file) for file in rows.files if DAY in file), None)


def day_file(settings: Settings, rows: ColumnMapping | SourceFile, day: str) -> Path | None:
    """Return the file of history of a day; `rows` is what `history_rows` returns.

    day: like 2024-05-01.
    Returns None if there is none and `history.days_may_be_missing` is on. Raises UsageError if it is off, and
    ConfigurationError if neither `history.path` nor the source names the file of a day.
    """
    path = _day_path(settings, rows)
    if path is None:
        raise ConfigurationError("set history.path, the path of the file of a day")
    file = Path(path.replace(DAY, day))
    if file.exists():
        return file
    if settings.history.days_may_be_missing:
        return None
    raise UsageError(f"there is no file {file}: add it, or set history.days_may_be_missing")


def day_files(settings: Settings, rows: ColumnMapping | SourceFile) -> dict[str, Path]:
    """Return the files of history that exist, by day; none if the settings name no file of a day."""
    path = _day_path(settings, rows) or ""
    if DAY not in path:
        return {}
    found = glob(_ANY_DAY.join(map(escape, path.split(DAY))))  # noqa: PTH207 - it may be absolute
    days = {file[path.index(DAY) :][: len("2024-05-01")] for file in found}
    return {day: file for day in sorted(filter(_is_day, days)) if (file := Path(path.replace(DAY, day))).exists()}


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def other_loads(settings: Settings, source: FileSource) -> list[str]:
    """Return the loads of a file that gave events by other columns, or by another text of its source.

    None without a lake, and for standard input and frames without a name.
    """
    if source.name in UNNAMED:
        return []
    try:
        snapshot = take_snapshot(open_lake(settings.lake_root))
    except UsageError:
        return []
    with open_lake_views(snapshot) as connection:
        found = connection.execute(_OTHERS, {"topic": source.topic, "digest": source.digest}).fetchall()
    return [load for (load,) in found]


def summarize_files(settings: Settings, paths: Sequence[Path], rows: ColumnMapping | SourceFile) -> list[FileSummary]:
    """Return the summary of each file in its current state, with its rows counted; a file that changed is another file.

    Raises UsageError for a file that does not exist, and if there is no lake.
    """
    sources = [open_file(path, rows, settings) for path in paths]
    return [
        replace(summary, rows=count_rows(path, source.mapping.reading, source.mapping.required_columns()))
        for path, source, summary in zip(paths, sources, summarize_commits(settings, sources), strict=True)
    ]


def summarize_commits(settings: Settings, sources: Sequence[FileSource | RecordSample]) -> list[FileSummary]:
    """Return the summary of each file, or sample of a topic, by the lake's commit records alone.

    `rows` is the number of rows read. Raises UsageError if there is no lake.
    """
    topic_ids = [source.topic_id for source in sources]
    with open_lake_views(take_snapshot(open_lake(settings.lake_root))) as connection:
        fates = {row["topic_id"]: row for row in connection.sql(_FATES, params=[topic_ids]).pl().to_dicts()}
        reasons: dict[str, dict[str, int]] = {}
        examples: dict[str, str] = {}
        for topic_id, reason, rows, example in connection.execute(_REASONS, [topic_ids]).fetchall():
            reasons.setdefault(topic_id, {})[reason] = rows
            examples.setdefault(topic_id, example or "")
    return [
        FileSummary(
            source.path,
            reasons=reasons.get(source.topic_id, {}),
            example=examples.get(source.topic_id, ""),
            **_fate(fates.get(source.topic_id, {})),
        )
        for source in sources
    ]


def _fate(counts: dict[str, int]) -> dict[str, int]:
    return {"rows": counts.get("read", 0), **{name: count for name, count in counts.items() if name != "topic_id"}}
