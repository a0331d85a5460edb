"""The graph in Dagster: what it reports is what was planted, its checks can fail, and nothing is reported twice."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import redis

from assets import automation, checks, history, lake, scores
from assets.definitions import build_defs
from assets.resources import Karmalake
from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import produce_records
from pipelines.emit.simulator import Planted, simulate
from pipelines.emit.topics import ensure_topic
from pipelines.errors import UsageError
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import create_lake
from pipelines.refresh import publish_warehouse
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

WHOLE = [lake.events, lake.dead_letters, scores.reputation, scores.trends, scores.reputation_cache]
CHECKS = [
    checks.reconciliation,
    checks.ingest_keeps_up,
    checks.dead_letter_share,
    checks.redis_serves_what_the_lake_says,
    checks.what_is_served_is_fresh,
]

DAYS_SHOWN = 25
END = datetime.now(UTC)
"""Of the world and of the days that are asked for, also when the tests run past midnight."""
LAST_DAY = END.date().isoformat()
FIRST_DAY = (END.date() - timedelta(days=DAYS_SHOWN - 1)).isoformat()


@pytest.fixture
def karmalake(settings: Settings) -> Karmalake:
    return Karmalake(lambda: settings)


@pytest.fixture
def planted(settings: Settings) -> Planted:
    """Put a small world on the bus."""
    ensure_topic(settings.kafka)
    world = simulate(1, 2_000, days=20, end=END)
    produce_records(settings.kafka, world.records)
    return world.planted


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def materialize(
    karmalake: Karmalake, instance: dg.DagsterInstance, assets: list[Any], **options: Any
) -> dg.ExecuteInProcessResult:
    return dg.materialize(assets, resources={"karmalake": karmalake}, instance=instance, **options)


def metadata(result: dg.ExecuteInProcessResult, asset: dg.AssetsDefinition) -> dict[str, Any]:
    [event] = result.asset_materializations_for_node(asset.node_def.name)
    return {name: value.value for name, value in event.metadata.items()}


def drain_outside(settings: Settings) -> int:
    with open_ingest(settings) as ingest:
        return drain(ingest, lambda _: None)


def test_the_whole_graph_reports_what_was_planted(
    karmalake: Karmalake, planted: Planted, instance: dg.DagsterInstance
) -> None:
    """Counts in the metadata are those of the simulator, and every check passes."""
    result = materialize(karmalake, instance, WHOLE + CHECKS)
    counts = metadata(result, lake.events)
    assert counts["read"] == planted.sent
    assert counts["accepted"] == planted.distinct
    assert counts["duplicates"] == planted.duplicates
    assert counts["conflicts"] == planted.conflicts
    assert counts["dead_letters"] == sum(planted.malformed.values())
    assert counts["lag_records"] == 0
    assert metadata(result, lake.dead_letters)["dagster/row_count"] == counts["dead_letters"]
    assert metadata(result, scores.reputation)["dagster/row_count"] == planted.users
    assert metadata(result, scores.reputation_cache)["written"] == planted.users
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == dict.fromkeys(
        [
            "offsets_add_up",
            "each_commits_events_are_there",
            "no_event_id_twice",
            "each_dead_letter_is_there",
            "each_conflict_is_there",
            "ingest_keeps_up",
            "dead_letter_share",
            "redis_serves_what_the_lake_says",
            "what_is_served_is_fresh",
        ],
        True,
    )


def test_alarms_are_shown_with_their_evidence(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """A user with a low rating a day gets twelve in one: counted, and a line tells who, when and how many."""
    settings = Settings(data_dir=tmp_path)
    events = [
        Event(f"{day}-{n}", "driver|x", "DriverRated", NOW - (21 - day) * DAY + n, {"rating": "1", "rater_id": f"r{n}"})
        for day in range(20)
        for n in range(12 if day == 19 else 1)
    ]
    derive(snapshot_of(tmp_path / "files", events), load_policy("default"), AS_OF, settings.warehouse_path)
    shown = metadata(materialize(Karmalake(lambda: settings), instance, [scores.anomalies]), scores.anomalies)
    assert (shown["review_bombs"], shown["dagster/row_count"]) == (1, 1)
    assert "| review_bombs | driver\\|x | 2024-02-28 | 1.02 | 12 |" in shown["newest"]


@pytest.mark.usefixtures("planted")
def test_a_lost_document_fails_its_check(
    karmalake: Karmalake, settings: Settings, instance: dg.DagsterInstance
) -> None:
    """When Redis does not serve what the lake says, that check fails and names a user."""
    materialize(karmalake, instance, WHOLE)
    assert settings.redis.url is not None
    with redis.Redis.from_url(settings.redis.url.get_secret_value()) as client:
        client.delete(f"{settings.redis.prefix}:driver-ada")
    result = checks.redis_serves_what_the_lake_says(karmalake=karmalake)
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed
    assert "driver-ada" in str(result.metadata["evidence"].value)


def test_a_range_of_days_is_one_run_that_derives_once(
    karmalake: Karmalake, settings: Settings, planted: Planted, instance: dg.DagsterInstance
) -> None:
    """A backfill of many days counts the events of all of them, from one warehouse."""
    drain_outside(settings)
    tags = {"dagster/asset_partition_range_start": FIRST_DAY, "dagster/asset_partition_range_end": LAST_DAY}
    result = materialize(karmalake, instance, [scores.user_days], tags=tags)
    events = result.asset_materializations_for_node("user_days")
    assert len(events) == DAYS_SHOWN
    counted = [event.metadata["events"].value for event in events if "events" in event.metadata]
    assert sum(counted) == planted.distinct
    warehouse_made = settings.warehouse_path.stat().st_mtime_ns
    materialize(karmalake, instance, [scores.user_days], tags=tags)
    assert settings.warehouse_path.stat().st_mtime_ns == warehouse_made


def test_days_of_history_are_runs_of_their_own(
    karmalake: Karmalake, settings: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Each run loads its day's file into the lake, once; a day without a file says which one is missing."""
    for number, day in enumerate(("2024-05-01", "2024-05-02")):
        (tmp_path / f"{day}.csv").write_text(f"who,at,stars\nann,{day}T10:00:00Z,{number}\nbob,{day}T11:00:00Z,5\n")
    config = {
        "path": f"{tmp_path}/{{day}}.csv",
        "user_id": "who",
        "time": "at",
        "action_type": "DriverRated",
        "metadata": {"rating": "stars"},
    }
    run_config = {"ops": {"history": {"config": config}}}

    def accepted(day: str) -> int:
        options = {"partition_key": day, "run_config": run_config}
        return metadata(materialize(karmalake, instance, [history.history], **options), history.history)["accepted"]

    assert [accepted(day) for day in ("2024-05-01", "2024-05-02", "2024-05-01")] == [2, 2, 0]
    with pytest.raises(UsageError, match=r"2024-05-03\.csv: No such file"):
        accepted("2024-05-03")
    assert len(take_snapshot(create_lake(settings.lake_root)).checkpoints) == 2


@pytest.mark.usefixtures("planted")
def test_the_sensor_reports_commits_of_others_once(
    karmalake: Karmalake, settings: Settings, instance: dg.DagsterInstance
) -> None:
    """Each commit made by another process is reported once; one that a run made is not reported again."""
    batches = drain_outside(settings)
    context = dg.build_sensor_context(instance=instance)
    first = automation.commits(context, karmalake=karmalake)
    assert isinstance(first, dg.SensorResult)
    assert len(first.asset_events) == batches
    context = dg.build_sensor_context(instance=instance, cursor=first.cursor)
    again = automation.commits(context, karmalake=karmalake)
    assert isinstance(again, dg.SensorResult)
    assert list(again.asset_events) == []
    produce_records(settings.kafka, simulate(2, 500).records)
    materialize(karmalake, instance, [lake.events])
    after_run = automation.commits(dg.build_sensor_context(instance=instance, cursor=again.cursor), karmalake=karmalake)
    assert isinstance(after_run, dg.SensorResult)
    assert list(after_run.asset_events) == []


@pytest.mark.usefixtures("planted")
def test_the_sensor_reports_the_publications_of_others_once(
    karmalake: Karmalake, settings: Settings, instance: dg.DagsterInstance
) -> None:
    """What another process published counts for the freshness policy; what a run published is not reported again."""

    def tick() -> dg.SensorResult | dg.SkipReason:
        answer = automation.publications(dg.build_sensor_context(instance=instance), karmalake=karmalake)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        return answer

    assert isinstance(tick(), dg.SkipReason)
    materialize(karmalake, instance, WHOLE)
    assert isinstance(tick(), dg.SkipReason)
    publish_warehouse(settings)
    reported = tick()
    assert isinstance(reported, dg.SensorResult)
    [event] = reported.asset_events
    assert isinstance(event, dg.AssetMaterialization)
    instance.report_runless_asset_event(event)
    assert isinstance(tick(), dg.SkipReason)


@pytest.mark.usefixtures("planted")
def test_records_that_wait_too_long_fail_their_check(settings: Settings) -> None:
    """The check says how long, how many, and what to do."""
    impatient = settings.model_copy(update={"lag": settings.lag.model_copy(update={"max_seconds": 1e-6})})
    result = checks.ingest_keeps_up(karmalake=Karmalake(lambda: impatient))
    assert isinstance(result, dg.AssetCheckResult)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    behind = result.metadata["lag_records"].value
    assert isinstance(behind, int)
    assert behind > 2_000


def test_what_is_served_has_a_freshness_policy() -> None:
    """Dagster itself tells when nothing was published for too long."""
    assert scores.reputation_cache.specs_by_key[scores.reputation_cache.key].freshness_policy is not None


def test_every_job_and_schedule_resolves(karmalake: Karmalake) -> None:
    """Nothing in the definitions names an asset or job that is not there."""
    defs = build_defs(lambda: karmalake.settings)
    dg.Definitions.validate_loadable(defs)
    assert {job.name for job in defs.resolve_all_job_defs()} >= {"refresh", "days", "upkeep", "verification"}


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_the_command_line_of_dagster_works(settings: Settings, tmp_path: Path) -> None:
    """`dg check defs`, `dg list defs` and `dg launch` run on a copy of the repository, against the local services."""
    home = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".git", ".venv", "data", "storage", "__pycache__", "tests", ".hypothesis")
    shutil.copytree(REPOSITORY, home, ignore=ignored)
    assert settings.redis.url is not None
    environment = os.environ | {
        "DAGSTER_HOME": str(home),
        "KARMALAKE_DATA_DIR": str(settings.data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
        "KARMALAKE_REDIS_URL": settings.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": settings.redis.prefix,
        "PYTHONPATH": str(home),
    }
    dg_command = str(Path(sys.executable).with_name("dg"))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [dg_command, *arguments], cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("check", "defs")
    listed = json.loads(run("list", "defs", "--json"))
    assert {asset["asset_key"] for asset in listed["assets"]} >= {
        "events",
        "reputation",
        "reputation_cache",
        "user_days",
    }
    run("launch", "--assets", "events,reputation,trends,reputation_cache,dead_letters")
    run("launch", "--assets", "user_days", "--partition-range", f"{FIRST_DAY}...{LAST_DAY}")
