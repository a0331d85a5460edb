"""History files straight into the lake, without the bus: another source for the very same drain.

Owns the files of history by day, and the account of a file: what became of its rows, by the lake's own records.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from pipelines.drain import drain, open_ingest_from
from pipelines.errors import ConfigurationError, UsageError
from pipelines.ingest.file import open_file
from pipelines.lake.commit import CommitRecord
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.reputation.lake_views import create_lake_views
from pipelines.settings import HistorySettings, Settings
from pipelines.sources.files import Mapping
from pipelines.sources.rows import count_rows

_SHOWN = 3

_FATES = """
WITH ranges AS (
    SELECT unnest(ranges, recursive := true) FROM commits
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
WHERE topic_id IN (SELECT unnest(?))
GROUP BY topic_id
"""
_REASONS = """
SELECT topic_id, reason, count(*)::BIGINT AS rows
FROM dead_letters
WHERE topic_id IN (SELECT unnest(?))
GROUP BY topic_id, reason
ORDER BY rows DESC, reason
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the rows of one file, whoever loaded it and in however many attempts."""

    path: Path
    rows: int
    """Counted in the file itself."""
    commits: int = 0
    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    dead_letters: int = 0
    erased: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Of its dead letters that are still there, by reason."""

    @property
    def adds_up(self) -> bool:
        """Whether every row of the file was read, and has one fate (`nothing-lost`)."""
        fates = self.accepted + self.duplicates + self.conflicts + self.dead_letters + self.erased
        return self.rows == self.read == fates


def backfill(settings: Settings, path: Path, mapping: Mapping, report: Callable[[CommitRecord], None]) -> int:
    """Commit the rows of a file that the lake does not have, calling `report` after each commit; return their number.

    Whatever kills it: the next call goes on from the last commit (`once`). Several files may be loaded at a time, by
    processes of their own, beside ingest from the bus. Raises UsageError for a file that is not there or is not what
    the mapping says, RejectedError when most of its rows are no events.
    """
    with open_ingest_from(open_file(path, mapping, settings), settings) as ingest:
        return drain(ingest, report)


def mapping_of(history: HistorySettings) -> Mapping:
    """Return which column of the files of history is what."""
    column = None if history.action_type else history.action_type_column
    pairs = tuple(sorted(history.metadata.items()))  # in whatever order they stand, it is the same file
    return Mapping(
        history.user_id,
        history.time,
        history.time_unit,
        history.action_type,
        column,
        pairs,
        history.event_id,
        "\t" if history.delimiter == "tab" else history.delimiter,
    )


def files_of(history: HistorySettings, days: Sequence[str]) -> dict[str, Path]:
    """Return the file of each day that has one.

    Raises UsageError, naming days without a file, unless days may be missing; ConfigurationError without a path.
    """
    if history.path is None:
        raise ConfigurationError("set history.path: where the file of a day is")
    paths = {day: Path(history.path.replace("{day}", day)) for day in days}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing and not history.days_may_be_missing:
        raise UsageError(
            f"{len(missing)} of {len(days)} days have no file, such as {', '.join(missing[:_SHOWN])}: put them "
            "there, or set history.days_may_be_missing; nothing was loaded"
        )
    return {day: path for day, path in paths.items() if path.exists()}


def account_for(settings: Settings, paths: Sequence[Path], mapping: Mapping) -> list[Account]:
    """Return the account of each file as it is now, with the rows counted in it; a file that changed is another one.

    Raises UsageError for a file that is not there, and when there is no lake.
    """
    return [
        replace(account, rows=count_rows(account.path, mapping.delimiter))
        for account in recorded(settings, paths, mapping)
    ]


def recorded(settings: Settings, paths: Sequence[Path], mapping: Mapping) -> list[Account]:
    """Return the account of each file by the lake's records alone, without reading it: its rows are those read."""
    topic_ids = [open_file(path, mapping, settings).topic_id for path in paths]
    with duckdb.connect() as connection:
        create_lake_views(connection, take_snapshot(open_lake(settings.lake_root)))
        fates = {row["topic_id"]: row for row in connection.sql(_FATES, params=[topic_ids]).pl().to_dicts()}
        reasons: dict[str, dict[str, int]] = {}
        for topic_id, reason, rows in connection.execute(_REASONS, [topic_ids]).fetchall():
            reasons.setdefault(topic_id, {})[reason] = rows
    return [
        Account(path, reasons=reasons.get(topic_id, {}), **_fate(fates.get(topic_id, {})))
        for path, topic_id in zip(paths, topic_ids, strict=True)
    ]


def _fate(counts: dict[str, int]) -> dict[str, int]:
    return {"rows": counts.get("read", 0), **{name: count for name, count in counts.items() if name != "topic_id"}}
