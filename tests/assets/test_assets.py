"""The graph in Dagster: it reports the simulated data, its checks can fail, and nothing is reported twice."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import redis

from assets import checks, lake, scores, sensors, upkeep
from assets.definitions import build_defs
from assets.resources import Karmalake
from pipelines.bus.topics import ensure_topic
from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import produce_records
from pipelines.first_day import first_day
from pipelines.refresh import publish_warehouse
from pipelines.reputation import histories, user_rows
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import FeedSettings, Settings
from pipelines.simulate.simulator import Planted, simulate
from tests.assets.running import days, materialize, metadata, metadata_by_day
from tests.conftest import REPOSITORY
from tests.copied_code import copy_code
from tests.draining import send, valid_records
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

WHOLE = [lake.events, lake.dead_letters, scores.reputation, scores.reputation_cache]
CHECKS = [
    checks.reconciliation,
    checks.ingest_keeps_up,
    checks.dead_letter_share,
    checks.served_documents_match_the_lake,
    checks.served_scores_are_fresh,
]

EVENT_DAYS = lake.event_days.key
DAYS_SHOWN = 25
END = datetime.now(UTC)
"""End of the simulated world and of the requested days, fixed so that tests can run past midnight."""
LAST_DAY = END.date().isoformat()
FIRST_DAY = (END.date() - timedelta(days=DAYS_SHOWN - 1)).isoformat()


@pytest.fixture
def planted(settings: Settings) -> Planted:
    """Put a small world on the bus."""
    ensure_topic(settings.kafka)
    world = simulate(1, 2_000, days=20, end=END)
    produce_records(settings.kafka, world.records)
    return world.planted


def drain_outside(settings: Settings) -> int:
    with open_ingest(settings) as ingest:
        return drain(ingest, lambda _: None)


def test_the_whole_graph_reports_the_simulated_data(
    karmalake: Karmalake, planted: Planted, instance: dg.DagsterInstance
) -> None:
    """Counts in the metadata are those of the simulator, and every check passes; with the feed on."""
    settings = karmalake.settings.model_copy(update={"feed": FeedSettings(enabled=True)})
    result = materialize(Karmalake(lambda: settings), instance, WHOLE + CHECKS)
    counts = metadata(result, lake.events)
    assert counts["read"] == planted.sent
    assert counts["accepted"] == planted.distinct
    assert counts["duplicates"] == planted.duplicates
    assert counts["conflicts"] == planted.conflicts
    assert counts["dead_letters"] == sum(planted.malformed.values())
    assert counts["lag_records"] == 0
    assert metadata(result, lake.dead_letters)["dagster/row_count"] == counts["dead_letters"]
    reputation = metadata(result, scores.reputation)
    assert reputation["dagster/row_count"] == planted.users
    for columns in (reputation["dagster/column_schema"], lake.EVENT_COLUMNS):
        assert [column.name for column in columns.columns if not column.description] == []
    served = metadata(result, scores.reputation_cache)
    assert served["written"] == served["feed_changes"] == served["feed_last_number"] == planted.users
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == dict.fromkeys(
        [
            "offsets_add_up",
            "commit_counts_match_the_events",
            "no_duplicate_event_id",
            "each_dead_letter_is_stored",
            "each_conflict_is_stored",
            "ingest_keeps_up",
            "dead_letter_share",
            "served_documents_match_the_lake",
            "served_scores_are_fresh",
        ],
        True,
    )


@pytest.mark.slow
def test_alarms_are_shown_with_their_evidence(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """A user with one low rating a day gets twelve on one day: it is counted, and listed with day and number.

    It names no user: an erasure does not reach Dagster's storage (`erasable`).
    """
    settings = Settings(data_dir=tmp_path)
    events = [
        Event(f"{day}-{n}", "driver|x", "DriverRated", NOW - (21 - day) * DAY + n, {"rating": "1", "rater_id": f"r{n}"})
        for day in range(20)
        for n in range(12 if day == 19 else 1)
    ]
    derive(snapshot_of(tmp_path / "files", events), load_policy("default"), AS_OF, settings.warehouse_path)
    shown = metadata(materialize(Karmalake(lambda: settings), instance, [scores.anomalies]), scores.anomalies)
    assert (shown["review_bombs"], shown["dagster/row_count"]) == (1, 1)
    assert "| ` review_bombs ` | 2024-02-28 | 1.02 | 12 |" in shown["newest"]
    assert "driver" not in str(shown)


def test_what_runs_each_minute_reads_no_history(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job succeeds although no earlier file of the lake can be read, so its cost does not grow with them.

    The job of each night reads them all, and fails. The newest 100,000 events may be read again; here, two.
    """
    for module in (histories, user_rows):
        monkeypatch.setattr(module, "_MEMORY_ROWS", 2)
    defs = build_defs(lambda: settings)
    jobs = {name: defs.resolve_job_def(name) for name in ("refresh", "verification")}
    for numbers in (range(24), range(24, 48)):  # the first refresh after a rebuild reads all events once more
        send(settings, valid_records(numbers))
        assert jobs["refresh"].execute_in_process(instance=instance).success
    for table in ("events", "dead_letters", "conflicts"):
        for file in (Path(settings.lake_root) / table).rglob("*.parquet"):
            file.write_bytes(b"?" * file.stat().st_size)
    send(settings, valid_records(range(48, 60)))
    result = jobs["refresh"].execute_in_process(instance=instance)
    assert metadata(result, lake.events)["accepted"] == 12
    assert metadata(result, scores.reputation)["rebuilt"] == "no"
    assert metadata(result, scores.reputation_cache)["in_full"] is False
    assert {check.check_name for check in result.get_asset_check_evaluations()} == {
        "ingest_keeps_up",
        "served_documents_match_the_lake",
        "served_scores_are_fresh",
    }
    assert not jobs["verification"].execute_in_process(instance=instance, raise_on_error=False).success
    nightly = {key.name for key in jobs["verification"].asset_layer.asset_graph.asset_check_keys}
    assert nightly == {key.name for check in CHECKS for key in check.check_keys}


@pytest.mark.usefixtures("planted")
def test_a_lost_document_fails_its_check(
    karmalake: Karmalake, settings: Settings, instance: dg.DagsterInstance
) -> None:
    """If a document in Redis differs from the lake, the check fails and names a user."""
    materialize(karmalake, instance, WHOLE)
    assert settings.redis.url is not None
    with redis.Redis.from_url(settings.redis.url.get_secret_value()) as client:
        client.delete(f"{settings.redis.prefix}:driver-ada")
    result = checks.served_documents_match_the_lake(karmalake=karmalake)
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed
    assert "driver-ada" in str(result.metadata["evidence"].value)


@pytest.mark.slow
def test_a_range_of_days_is_one_run_that_derives_once(
    karmalake: Karmalake, settings: Settings, planted: Planted, instance: dg.DagsterInstance
) -> None:
    """A backfill of many days reports the numbers of every day, from one warehouse."""
    drain_outside(settings)
    tags = days(FIRST_DAY, LAST_DAY)
    result = materialize(karmalake, instance, [scores.user_days, scores.trends], tags=tags)
    for asset in (scores.user_days, scores.trends):
        reported = metadata_by_day(result, asset)
        assert len(reported) == DAYS_SHOWN
        assert sum(day.get("events", 0) for day in reported.values()) == planted.distinct
    some_day = next(day for day in reversed(metadata_by_day(result, scores.trends).values()) if "events" in day)
    assert some_day.keys() >= {"active_users", "rating_seven_day_mean", "points_p10", "points_p90"}
    assert "| action_type | events | counted |" in some_day["by_action"]
    warehouse_made = settings.warehouse_path.stat().st_mtime_ns
    materialize(karmalake, instance, [scores.user_days], tags=tags)
    assert settings.warehouse_path.stat().st_mtime_ns == warehouse_made


def test_the_audit_result_is_in_the_metadata_as_json(
    karmalake: Karmalake, settings: Settings, planted: Planted, instance: dg.DagsterInstance
) -> None:
    """The metadata accounts for every offset of the topic, and the check passes: nothing is lost or duplicated."""
    drain_outside(settings)
    result = materialize(karmalake, instance, [upkeep.audit])
    found = metadata(result, upkeep.audit)["audit"]
    assert (found["events"], found["lost"], found["duplicated"]) == (planted.distinct, 0, 0)
    offsets = [partition["next_offset"] - partition["first_offset"] for partition in found["partitions"]]
    assert sum(offsets) == planted.sent
    [check] = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("nothing_is_lost_or_duplicated", True)


@pytest.mark.slow
def test_the_sensor_reports_commits_of_others_once(
    karmalake: Karmalake, settings: Settings, planted: Planted, instance: dg.DagsterInstance
) -> None:
    """Commits of other processes are reported once, as a total; commits of a run are not reported again."""

    def tick(cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        answer = sensors.commits(context, karmalake=karmalake)
        assert isinstance(answer, dg.SensorResult)
        reported = [{name: value.value for name, value in event.metadata.items()} for event in answer.asset_events]
        return reported, answer.cursor

    batches = drain_outside(settings)
    [first], cursor = tick(None)
    assert (first["commits"], first["read"], first["accepted"]) == (batches, planted.sent, planted.distinct)
    again, cursor = tick(cursor)
    assert again == []
    produce_records(settings.kafka, simulate(2, 500).records)
    materialize(karmalake, instance, [lake.events])
    assert tick(cursor)[0] == []


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_the_sensor_reports_the_publications_of_others_once(
    karmalake: Karmalake, settings: Settings, instance: dg.DagsterInstance
) -> None:
    """Publications of other processes count for the freshness policy; those of a run are not reported again."""

    def tick() -> dg.SensorResult | dg.SkipReason:
        answer = sensors.publications(dg.build_sensor_context(instance=instance), karmalake=karmalake)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        return answer

    assert isinstance(tick(), dg.SkipReason)
    materialize(karmalake, instance, WHOLE)
    assert isinstance(tick(), dg.SkipReason)
    publish_warehouse(settings)
    reported = tick()
    assert isinstance(reported, dg.SensorResult)
    assert [event.asset_key for event in reported.asset_events] == [scores.reputation.key, scores.reputation_cache.key]
    for event in reported.asset_events:
        instance.report_runless_asset_event(event)
    assert isinstance(tick(), dg.SkipReason)


@pytest.mark.usefixtures("planted")
def test_records_that_wait_too_long_fail_their_check(settings: Settings) -> None:
    """The check reports the age, the number of records, and what to do."""
    strict = settings.model_copy(update={"lag": settings.lag.model_copy(update={"max_seconds": 1e-6})})
    result = checks.ingest_keeps_up(karmalake=Karmalake(lambda: strict))
    assert isinstance(result, dg.AssetCheckResult)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    lag_records = result.metadata["lag_records"].value
    assert isinstance(lag_records, int)
    assert lag_records > 2_000


@pytest.mark.parametrize(
    ("asset", "fail", "warn"),
    [
        (lake.events, timedelta(hours=26), timedelta(hours=2)),
        (scores.reputation, timedelta(hours=1), timedelta(minutes=15)),
        (scores.reputation_cache, timedelta(hours=1), timedelta(minutes=15)),
    ],
)
def test_what_must_be_current_has_the_freshness_policy_of_the_docs(
    asset: dg.AssetsDefinition, fail: timedelta, warn: timedelta
) -> None:
    """Dagster itself warns when nothing has been read, derived or published for too long; docs/dagster.md says when."""
    policy = asset.specs_by_key[asset.key].freshness_policy
    assert policy == dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn)
    page = (REPOSITORY / "docs" / "dagster.md").read_text(encoding="utf-8")
    assert "policy of 26 hours (a warning after 2 hours), `reputation` and `reputation_cache` one of 1 hour" in page


def test_every_asset_has_description_owners_and_links() -> None:
    """Description, group, kinds and owners; links to its code and to existing pages and notebooks."""
    for spec in build_defs().resolve_all_asset_specs():
        assert spec.description
        assert spec.group_name
        assert spec.kinds
        assert spec.owners == ["team:reputation"]
        links = [Path(link.file_path) for link in spec.metadata["dagster/code_references"].code_references]
        assert [link for link in links if not link.exists()] == []
        assert [link.parent.name for link in links if link.suffix == ".py"] == ["assets"] * (spec.key != EVENT_DAYS)
        assert "failures.py" not in {link.name for link in links}


def test_every_job_and_schedule_resolves(karmalake: Karmalake) -> None:
    """The definitions refer only to existing assets and jobs."""
    defs = build_defs(lambda: karmalake.settings)
    dg.Definitions.validate_loadable(defs)
    assert {job.name for job in defs.resolve_all_job_defs()} >= {"refresh", "days", "upkeep", "verification"}


def test_a_schedule_waits_for_its_run(karmalake: Karmalake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick starts no run while the one before has not ended: a rebuild would leave one behind for each minute.

    A schedule of the same name in another code location, with a lake of its own, does not wait for it. Nor does any
    wait for a run that a killed scheduler did not start, or that was killed long ago.
    """
    defs, others = (build_defs(lambda: karmalake.settings, key_prefix=prefix) for prefix in ("", "other"))
    schedules = [defs.resolve_schedule_def(name) for name in ("minutely_refresh", "weekly_audit")]
    schedules.append(others.resolve_schedule_def("minutely_refresh"))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def requested() -> list[list[dg.RunRequest]]:
            ticks = (schedule.evaluate_tick(dg.build_schedule_context(instance)) for schedule in schedules)
            return [list(tick.run_requests or ()) for tick in ticks]

        [[first], *_] = requested()
        instance.add_run(dg.DagsterRun("refresh", tags=first.tags))
        assert [len(requests) for requests in requested()] == [1, 1, 1]
        run = dg.DagsterRun("refresh", tags=first.tags, status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        assert [len(requests) for requests in requested()] == [0, 1, 1]
        with monkeypatch.context() as later:
            later.setattr("assets.automation._FORGOTTEN", timedelta(0))
            assert [len(requests) for requests in requested()] == [1, 1, 1]
        instance.report_run_failed(run)
        assert [len(requests) for requests in requested()] == [1, 1, 1]


def test_run_config_with_a_typo_is_refused() -> None:
    """Each asset, check and op has a config schema: Dagster ignores what a schema does not know if there is none."""
    defs = build_defs()
    for job in defs.resolve_all_job_defs():
        for node in job.graph.nodes:
            config = {"ops": {node.name: {"config": {"no_such_field": 1}}}}
            with pytest.raises(dg.DagsterInvalidConfigError, match="no_such_field"):
                dg.validate_run_config(job, config)
    dg.validate_run_config(defs.resolve_job_def("refresh"), {"ops": {"events": {"config": {"max_batches": 5}}}})


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_the_command_line_of_dagster_works(settings: Settings, tmp_path: Path) -> None:
    """`dg scaffold`, `list`, which loads all, and `launch` run on a copy of the repository, and the local services."""
    home = tmp_path / "repository"
    copy_code(REPOSITORY, home, ".git", ".venv*", "build", "data", "storage", "tests", ".hypothesis")
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

    run("scaffold", "defs", "dagster.asset", "mine.py")
    listed = json.loads(run("list", "defs", "--json"))
    assert {asset["asset_key"] for asset in listed["assets"]} >= {
        "events",
        "mine",
        "reputation",
        "reputation_cache",
        "user_days",
    }
    run("launch", "--assets", "events,reputation,reputation_cache,dead_letters")
    run("launch", "--assets", "user_days,trends", "--partition-range", f"{first_day(settings)}...{LAST_DAY}")
