"""What would come of a file or a source: loaded into a scratch lake, beside the real one, which stays as it is."""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.backfill import FileSummary, load, open_input, summarize_commits
from pipelines.boundary.text import amount
from pipelines.drain import drain, open_ingest_from
from pipelines.errors import UsageError
from pipelines.file_steps import equal_rows_step
from pipelines.ingest.file import FileSource
from pipelines.ingest.sample import RecordSample
from pipelines.inputs import InputFile
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import Lake, open_lake
from pipelines.mapping.row_select import RowSelect
from pipelines.mapping.source_files import SourceFile
from pipelines.refresh import policy_in_force
from pipelines.reputation.derive import derive
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.policy import Policy
from pipelines.reputation.warehouse_file import attach
from pipelines.settings import LakeSettings, Settings
from pipelines.sources.files import ColumnMapping, read_mapped

_FIRST = """
SELECT user_id, action_type, event_time::VARCHAR, metadata::VARCHAR, event_id
FROM events
ORDER BY topic_partition, "offset", event_id
LIMIT 5
"""
_REASONS = """
SELECT
    reason, count(*)::BIGINT AS rows,
    arg_min(
        CASE WHEN starts_with(topic, 'file:') THEN '' ELSE format('{}-{}@{}: ', topic, topic_partition, "offset") END
        || detail,
        "offset"
    )
FROM dead_letters
GROUP BY reason
ORDER BY rows DESC
"""
_EVENTS = "SELECT event_id, user_id, action_type, event_time, metadata FROM events"
_KNOWN = """
SELECT
    count(*) FILTER (loaded.user_id = known.user_id AND loaded.action_type = known.action_type
        AND loaded.event_time = known.event_time AND loaded.metadata = known.metadata)::BIGINT AS duplicates,
    count(*)::BIGINT - duplicates AS conflicts
FROM loaded
JOIN events AS known USING (event_id)
"""
_SCORED = """
WITH others AS (
    SELECT action_type, reason, sum(events)::BIGINT AS events FROM user_reasons GROUP BY ALL
)
SELECT * FROM others
UNION ALL
SELECT action_type, 'granted', total.events - coalesce(sum(others.events), 0)::BIGINT
FROM (SELECT action_type, count(*) AS events FROM loaded GROUP BY action_type) AS total
LEFT JOIN others USING (action_type)
GROUP BY action_type, total.events
ORDER BY ALL
"""


@dataclass(frozen=True, slots=True)
class Preview:
    """What would come of the rows of a file, or the records of a topic."""

    form: str
    """What was found about the form of the file."""
    rows: int
    first_events: list[tuple[Any, ...]]
    fates: list[tuple[str, int]]
    reasons: list[tuple[Any, ...]]
    """Reason, rows or records, and an example of those that would be dead letters."""
    notes: list[str]
    policy: str
    scored: list[tuple[Any, ...]]
    """Action type, reason and events under the policy in force, as if the lake had nothing else."""


def preview(settings: Settings, file: InputFile, rows: ColumnMapping | SourceFile) -> Preview:
    """Return what would come of a file; commit nothing to the lake. Raises UsageError as `load` does."""
    with _scratch(settings) as scratch:
        source = open_input(file, rows, scratch)
        form = source.describe()
        load(scratch, source, lambda _: None)
        (account,) = summarize_commits(scratch, [source])
        return _examine(settings, scratch, form, account, "rows", list(_notes(source, account)))


def preview_records(settings: Settings, sample: RecordSample, unused: tuple[str, ...]) -> Preview:
    """Return what would come of records of a topic; commit nothing. `unused` are fields that the source leaves out."""
    with _scratch(settings) as scratch:
        with open_ingest_from(sample, scratch) as ingest:
            drain(ingest, lambda _: None)
        (account,) = summarize_commits(scratch, [sample])
        notes = [f"unused fields: {', '.join(unused)}"] if unused else []
        if not account.rows:
            notes.append("there are no records to check")
        return _examine(settings, scratch, "", account, "records", notes)


def _examine(
    settings: Settings, scratch: Settings, form: str, account: FileSummary, unit: str, notes: list[str]
) -> Preview:
    """Return what a scratch lake has, beside the real lake and under its policy."""
    policy, lake = policy_in_force(settings), open_lake(scratch.lake_root)
    with open_lake_views(take_snapshot(lake)) as connection:
        events = connection.sql(_EVENTS).pl()
        first, reasons = connection.sql(_FIRST).fetchall(), connection.sql(_REASONS).fetchall()
    fates = _fates(account, unit, *_known(settings, events))
    scored = _scored(lake, policy, scratch.data_dir, events)
    return Preview(form, account.rows, first, fates, reasons, notes, f"{policy.name} {policy.version}", scored)


@contextmanager
def _scratch(settings: Settings) -> Generator[Settings]:
    """Yield settings of an empty lake that takes any share of dead letters."""
    with tempfile.TemporaryDirectory(prefix="karmalake-") as folder:
        yield unlimited(settings.model_copy(update={"data_dir": Path(folder), "lake": LakeSettings()}))


def unlimited(settings: Settings) -> Settings:
    """Return settings under which ingest takes any share of dead letters."""
    limits = {"max_dead_letter_share": 1.0, "max_dead_letter_run": 2**62}
    return settings.model_copy(update={"ingest": settings.ingest.model_copy(update=limits)})


def _known(settings: Settings, loaded: pl.DataFrame) -> tuple[int, int]:
    """Return how many events the lake has with the same content, and with other content."""
    try:
        snapshot = take_snapshot(open_lake(settings.lake_root))
    except UsageError:
        return 0, 0
    with open_lake_views(snapshot) as connection:
        connection.register("loaded", loaded)
        (found,) = connection.sql(_KNOWN).fetchall()
    return found


def _fates(account: FileSummary, unit: str, duplicates: int, conflicts: int) -> list[tuple[str, int]]:
    selects = unit == "records" or account.filtered or account.made != account.converted
    return [
        (unit, account.rows),
        *([("filtered", account.filtered), ("events", account.made)] if selects else []),
        ("accepted", account.accepted - duplicates - conflicts),
        ("duplicates", account.duplicates + duplicates),
        ("conflicts", account.conflicts + conflicts),
        ("dead letters", account.dead_letters),
        ("erased", account.erased),
    ]


def _notes(source: FileSource, account: FileSummary) -> Iterator[str]:
    if not account.rows:
        yield "it has no rows: nothing would be loaded"
    if step := equal_rows_step(account, source):
        yield step
    if account.conflicts:
        conflicts = amount(account.conflicts, "row has", "rows have")
        yield f"{conflicts} the event_id of an earlier row of the file, with other content"
    first = next(read_mapped(source.path, source.mapping, source.name), None)
    columns = first.columns.column_names if first else []
    if unused := [name for name in columns if not _uses(source.mapping, name)]:
        yield f"unused columns: {', '.join(map(repr, unused))}"


def _uses(mapping: ColumnMapping | RowSelect, column: str) -> bool:
    if isinstance(mapping, RowSelect):
        return mapping.uses(column)
    return any(path == column or path.startswith(f"{column}.") for path in mapping.required_columns())


def _scored(lake: Lake, policy: Policy, folder: Path, loaded: pl.DataFrame) -> list[tuple[Any, ...]]:
    path = folder / "warehouse.duckdb"
    derive(take_snapshot(lake), policy, datetime.now(UTC), path)
    with attach(path) as connection:
        connection.register("loaded", loaded)
        return [row for row in connection.sql(_SCORED).fetchall() if row[-1]]
