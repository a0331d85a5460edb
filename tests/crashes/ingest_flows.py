"""Kills during ingest, and during the start that recovers from such a kill."""

import pytest

from pipelines.lake import runs
from pipelines.settings import Settings
from tests.crashes.flows import Flow, killed
from tests.crashes.kills import Moment
from tests.draining import contents, drain_all, with_ingest
from tests.rides import with_rides

_READING = {
    "pipelines.drain:Ingest.checkpoint": 2,
    "pipelines.ingest.read_ahead:ReadAhead.poll": 2,
    "pipelines.ingest.kafka:KafkaSource._fetch": 2,
    "pipelines.ingest.sources:decode": 2,
}
_COMMITTING = {
    "pipelines.drain:append": 4,
    "pipelines.drain:DedupIndex.classify": 2,
    "pipelines.drain:stage_events": 2,
    "pipelines.lake.files:_write": 2,
    "pipelines.lake.commit:commit_actions": 2,
    "pipelines.drain:commit_batch": 2,
    "deltalake:DeltaTable.update_incremental": 2,
}
_CATCHING_UP = {
    "pipelines.drain:DedupIndex.extend": 2,
    "pipelines.lake.index:Runs.add": 2,
    "pipelines.lake.index:DedupIndex._save": 2,
    "pathlib:Path.replace": 2,
    "pipelines.drain:complete_commits": 2,
    "pipelines.lake.commit_log:write_file": 2,
    "pipelines.lake.commit_log:commit_actions": 2,
    "pipelines.ingest.kafka:KafkaSource.acknowledge": 2,
}
_STARTING = {
    "pipelines.lake.index:DedupIndex.load": 1,
    "pipelines.drain:DedupIndex.catch_up": 2,
    "pipelines.lake.index:Runs.remove_replaced_files": 1,
    "pipelines.lake.runs:Runs._merge": 1,
    "pipelines.lake.runs:_remove": 1,
    "pipelines.drain:DedupIndex.close": 1,
}
_FILTERING = {
    "pipelines.lake.runs:write_filter": 2,
    "pipelines.lake.run_filter:_header": 2,
    "pipelines.lake.runs:make_durable": 2,
}
_CREATING = {
    "pipelines.lake.run_lake:RunLake.open": 1,
    "pipelines.lake.tables:_create_table": 2,
    "pipelines.lake.tables:make_durable": 1,
}
_OF_TOPICS = (
    "pipelines.drain:Ingest.checkpoint",
    "pipelines.ingest.read_ahead:ReadAhead.poll",
    "pipelines.ingest.kafka:KafkaSource._fetch",
    "pipelines.ingest.sources:decode",
    "pipelines.mapping.sandbox:Sandbox._ask",
    "pipelines.drain:append",
    "pipelines.drain:DedupIndex.classify",
    "pipelines.drain:stage_events",
    "pipelines.drain:commit_batch",
    "pipelines.drain:DedupIndex.extend",
    "pipelines.ingest.kafka:KafkaSource.acknowledge",
)
"""The steps whose work depends on the topic. Each run starts a process for the source: the others are killed above."""


def ingest(settings: Settings) -> None:
    """Commit all batches of the topic, as `karmalake drain` does."""
    drain_all(settings)


def ingest_with_filters(settings: Settings) -> None:
    """Commit all batches, with a filter beside each run of the dedup index, as beside large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_FILTER_ROWS", 1)
        drain_all(settings)


def ingest_two_topics(settings: Settings) -> None:
    """Commit all batches of the topic and of one of another source, whose records may be two events or none."""
    both = with_rides(settings, settings.data_dir / "sources")
    drain_all(with_ingest(both, max_batch_records=1_000, linger_seconds=0.3))


_BEFORE_THE_COMMIT = Moment("pipelines.drain:commit_batch", "before", 2)
_AFTER_THE_COMMIT = Moment("pipelines.drain:commit_batch", "after", 2)

FLOWS = {
    "ingest": Flow(ingest, _CREATING | _STARTING | _READING | _COMMITTING | _CATCHING_UP),
    "ingest with filters": Flow(ingest_with_filters, _FILTERING),
    "ingest of two topics": Flow(ingest_two_topics, dict.fromkeys(_OF_TOPICS, 1), seen=contents),
    "recovery from a commit that was not made": Flow(
        ingest, dict.fromkeys(_STARTING | _COMMITTING, 1), killed(_BEFORE_THE_COMMIT, ingest)
    ),
    "recovery from a commit without its record": Flow(
        ingest,
        {
            "pipelines.lake.run_lake:RunLake.open": 1,
            "pipelines.lake.commit_log:write_file": 1,
            "pipelines.lake.commit_log:commit_actions": 1,
            "pipelines.lake.commit_log:make_durable": 1,
            "pipelines.drain:complete_commits": 2,
            "pipelines.lake.index:DedupIndex.load": 1,
            "pipelines.lake.index:Runs.add": 2,
            "pipelines.lake.index:DedupIndex._save": 2,
            "pipelines.drain:DedupIndex.catch_up": 2,
        },
        killed(_AFTER_THE_COMMIT, ingest),
    ),
}
