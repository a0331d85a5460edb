"""The graph in a Dagster that has others: keys, days, links, and a second code location."""

import re
import shutil
import sys
from datetime import UTC, date, datetime, timedelta
from email.message import Message
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget

from assets.definitions import build_defs
from assets.history import history
from assets.resources import Karmalake
from assets.sensors import commits, updated_days
from pipelines.backfill import backfill
from pipelines.errors import CorruptionError, TransientError, UsageError
from pipelines.settings import HistorySettings, Settings
from pipelines.sources.files import ColumnMapping
from tests.assets.running import days, metadata_by_day
from tests.conftest import REPOSITORY

_ROWS = ColumnMapping("who", "at", "iso", "TransactionCompleted")
_OURS, _THEIRS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "dagster.md").read_text("utf-8"), re.DOTALL)
"""The two code locations of the page."""


@pytest.fixture
def no_bus(tmp_path: Path) -> Settings:
    """Return settings without a bus."""
    return Settings(data_dir=tmp_path / "data")


def load(settings: Settings, folder: Path, *times: datetime) -> None:
    """Put an event of each time into the lake."""
    path = folder / f"{len(list(folder.glob('*.csv')))}.csv"
    path.write_text("\n".join(["who,at", *(f"ann,{time.isoformat()}" for time in times), ""]))
    backfill(settings, path, _ROWS)


def test_every_key_has_the_prefix(no_bus: Settings, tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """Assets, checks, jobs, sensors and what a run and a sensor report: nothing is left under a bare name."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "2024-05-01.csv").write_text("user_id,timestamp\nann,2024-05-01T10:00:00Z\n")
    found = HistorySettings(path=f"{tmp_path}/files/{{day}}.csv", action_type="TransactionCompleted")
    settings = no_bus.model_copy(update={"history": found})
    defs = build_defs(lambda: settings, key_prefix=["team", "scores"])
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    keys = {*graph.get_all_asset_keys(), *(key.asset_key for key in graph.asset_check_keys)}
    assert {tuple(key.path[:-1]) for key in keys} == {("team", "scores")}
    job = defs.resolve_job_def("load_history")
    assert metadata_by_day(job.execute_in_process(instance=instance, partition_key="2024-05-01"), history).keys() == {
        "2024-05-01"
    }
    reported = [
        event.asset_key.to_user_string()
        for name in ("commits", "updated_days")
        for event in defs.resolve_sensor_def(name)
        .evaluate_tick(dg.build_sensor_context(instance, definitions=defs, resources=defs.resources))
        .asset_events
    ]
    assert reported == ["team/scores/events", "team/scores/event_days"]


def test_the_days_begin_with_the_first_event(no_bus: Settings, tmp_path: Path) -> None:
    """Or with the first file of history, if it is earlier; a given day counts more; nothing means today."""

    def first(settings: Settings, start: date | str | None = None) -> str:
        defs = build_defs(lambda: settings, partitions_start=start)
        partitions = defs.resolve_asset_graph().get(dg.AssetKey("user_days")).partitions_def
        assert isinstance(partitions, dg.DailyPartitionsDefinition)
        return partitions.get_first_partition_key() or ""

    before = datetime.now(UTC).date()
    assert first(no_bus) in {before.isoformat(), datetime.now(UTC).date().isoformat()}
    load(no_bus, tmp_path, datetime.now(UTC) + timedelta(hours=23))  # ahead of time: today is a day, too
    assert first(no_bus) in {before.isoformat(), datetime.now(UTC).date().isoformat()}
    load(no_bus, tmp_path, datetime(2025, 3, 2, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC))
    load(no_bus, tmp_path, datetime(2025, 4, 1, tzinfo=UTC))
    assert first(no_bus) == "2025-03-02"
    for name in ("2024-02-29", "2024-02-30", "latest"):
        (tmp_path / f"rides-{name}.csv").touch()
    with_files = no_bus.model_copy(update={"history": HistorySettings(path=f"{tmp_path}/rides-{{day}}.csv")})
    assert first(with_files) == "2024-02-29"
    with pytest.raises(UsageError, match="a day like 2024-05-01, not 'yesterday'"):
        first(with_files, "yesterday")
    assert first(with_files, "2025-01-01") == first(with_files, date(2025, 1, 1)) == "2025-01-01"
    assert first(with_files, datetime(2025, 1, 1, 12, tzinfo=UTC)) == "2025-01-01"


def test_a_lake_that_does_not_answer_fails_no_code_location(
    no_bus: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its schedules would start nothing until it is reloaded by hand; a damaged lake is a matter for an operator."""

    def fail(error: Exception) -> None:
        def first_day(_settings: Settings) -> None:
            raise error

        monkeypatch.setattr("assets.definitions.first_day", first_day)

    fail(TransientError("S3 does not answer"))
    days = build_defs(lambda: no_bus).resolve_asset_graph().get(dg.AssetKey("user_days")).partitions_def
    assert isinstance(days, dg.DailyPartitionsDefinition)
    assert days.get_first_partition_key() == "2010-01-01"
    assert "S3 does not answer; until this code location is reloaded" in caplog.text
    fail(CorruptionError("damaged"))
    with pytest.raises(CorruptionError):
        build_defs(lambda: no_bus)


def test_an_empty_prefix_is_none(no_bus: Settings) -> None:
    """Such as one from a variable that is not set."""
    for prefix in ("", [""]):
        graph = build_defs(lambda: no_bus, key_prefix=prefix).resolve_asset_graph()
        assert dg.AssetKey("events") in graph.get_all_asset_keys()


def test_a_day_that_is_no_partition_yet_waits(no_bus: Settings, tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """An event ahead of time is reported when its day begins, one before the first day after a reload; each once."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=1, microsecond=0)
    tomorrow = today + timedelta(days=1)
    load(no_bus, tmp_path, tomorrow, datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))
    late, reloaded = (
        (build_defs(lambda: no_bus, partitions_start=start).resources or {})["karmalake"]
        for start in ("2024-06-01", None)
    )

    def tick(karmalake: Karmalake, cursor: str | None, now: datetime) -> tuple[list[str | None], str | None]:
        with dg.partition_loading_context(effective_dt=now):
            answer = updated_days(dg.build_sensor_context(instance, cursor=cursor), karmalake=karmalake)
        return [event.partition for event in answer.asset_events], answer.cursor

    reported, cursor = tick(late, None, today)
    assert reported == ["2025-01-01"]
    assert tick(late, cursor, today) == ([], cursor)
    reported, cursor = tick(reloaded, cursor, today)
    assert reported == ["2024-01-01"]
    reported, cursor = tick(reloaded, cursor, tomorrow)
    assert reported == [tomorrow.date().isoformat()]
    assert tick(reloaded, cursor, tomorrow) == ([], cursor)


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        (None, None, "the run has no day: launch it for a day"),
        ("2099-01-01", "2099-01-01", "there is no 2099-01-01: the days of this asset are those from 2026-01-01 to 20"),
        ("2025-12-31", "2026-01-02", "there is no 2025-12-31 to 2026-01-02: "),
        ("2026-01-03", "2026-01-02", "there is no 2026-01-03 to 2026-01-02: "),
    ],
)
def test_a_run_of_a_day_that_is_no_partition_fails(
    no_bus: Settings, instance: dg.DagsterInstance, first: str | None, last: str | None, why: str
) -> None:
    """Dagster starts runs for any day that its API is given; what is of no partition would count as materialized."""
    found = HistorySettings(path="{day}.csv", action_type="TransactionCompleted", days_may_be_missing=True)
    settings = no_bus.model_copy(update={"history": found})
    defs = build_defs(lambda: settings, partitions_start="2026-01-01")
    tags = days(first, last) if first and last else {}
    for name in ("load_history", "days"):
        result = defs.resolve_job_def(name).execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        [event] = [event for event in result.all_events if event.is_step_failure]
        failure = event.step_failure_data.user_failure_data
        assert failure is not None
        assert failure.description is not None
        assert failure.description.startswith(why)


def test_a_lake_in_the_place_of_another_is_reported_in_full(
    no_bus: Settings, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    """Its versions begin again, with other commits: what was reported of the one before says nothing of it."""
    karmalake = Karmalake(lambda: no_bus)
    cursors: list[str | None] = [None, None]

    def tick() -> tuple[int, list[str | None]]:
        """Return how many commits one sensor reports, and which days the other one."""
        answers = [
            sensor(dg.build_sensor_context(instance, cursor=cursor), karmalake=karmalake)
            for sensor, cursor in zip([commits, updated_days], cursors, strict=True)
        ]
        cursors[:] = [answer.cursor for answer in answers]
        ours, days = (answer.asset_events for answer in answers)
        return sum(event.metadata["commits"].value for event in ours), [event.partition for event in days]

    for day in (1, 2):
        load(no_bus, tmp_path, datetime(2025, 1, day, tzinfo=UTC))
    assert tick() == (2, ["2025-01-01", "2025-01-02"])
    shutil.rmtree(no_bus.data_dir)
    for day in (3, 4, 5):
        load(no_bus, tmp_path, datetime(2025, 1, day, tzinfo=UTC))
        if day == 4:
            assert tick() == (2, ["2025-01-03", "2025-01-04"])
    assert tick() == (1, ["2025-01-05"])
    assert tick() == (0, [])


@pytest.mark.filterwarnings("ignore:Property `ScheduleDefinition.environment_vars`:DeprecationWarning")  # Dagster's own
def test_a_second_code_location_depends_on_ours(tmp_path: Path) -> None:
    """Both have an asset named `events`: one graph has each under its own key, with the edge between the locations."""
    origins = [location(tmp_path, name, text) for name, text in {"karmalake": _OURS, "reports": _THEIRS}.items()]
    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
        WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origins)) as workspace,
    ):
        request = workspace.create_request_context()
        errors = [entry.load_error for entry in request.get_code_location_entries().values() if entry.load_error]
        assert errors == []
        graph = request.asset_graph
        ours, theirs, report = (
            graph.get(dg.AssetKey(path)) for path in (["karmalake", "events"], ["events"], ["report"])
        )
        assert report.parent_keys == {ours.key, theirs.key}
        assert {
            node.key.to_user_string(): node.resolve_to_singular_repo_scoped_node().repository_handle.location_name
            for node in (ours, theirs)
        } == {"karmalake/events": "karmalake", "events": "reports"}


def location(folder: Path, name: str, text: str) -> InProcessCodeLocationOrigin:
    """Write a module, and return where it is."""
    path = folder / f"{name}_location.py"
    path.write_text(text)
    target = LoadableTargetOrigin(executable_path=sys.executable, python_file=str(path), working_directory=str(folder))
    return InProcessCodeLocationOrigin(target, location_name=name)


def code_links(defs: dg.Definitions) -> list[str]:
    return [
        link.source
        for spec in defs.resolve_all_asset_specs()
        if "dagster/code_references" in spec.metadata
        for link in spec.metadata["dagster/code_references"].code_references
        if isinstance(link, dg.UrlCodeReference)
    ]


@pytest.mark.parametrize(
    ("installed", "start"),
    [
        (["Repository, https://github.com/acme/karmalake"], "https://github.com/acme/karmalake/tree/main/"),
        (["Repository, https://git.example.org/karmalake"], None),
        (None, None),
    ],
)
def test_the_repository_of_the_package_is_the_default(
    no_bus: Settings, monkeypatch: pytest.MonkeyPatch, installed: list[str] | None, start: str | None
) -> None:
    """Its address in `project.urls`; where Dagster knows no way to a file, or there is none, links stay local."""
    package = Message()
    for url in installed or ():
        package["Project-URL"] = url
    monkeypatch.setattr("assets.definitions.metadata", lambda _name: package)  # pyright: ignore[reportUnknownLambdaType]
    links = code_links(build_defs(lambda: no_bus))
    assert bool(links) == bool(start)
    assert all(link.startswith(start or "") for link in links)


def test_links_go_to_the_repository(no_bus: Settings) -> None:
    """With its address, each link of an asset is one to a file of that branch; no path of this machine is shown."""
    defs = build_defs(lambda: no_bus, git_url="https://github.com/acme/karmalake", git_branch="v0.1.0")
    links = code_links(defs)
    beginning = "https://github.com/acme/karmalake/tree/v0.1.0/"
    assert len(links) > len(defs.resolve_all_asset_specs())
    assert [link for link in links if not link.startswith(beginning)] == []
    files = {link.removeprefix(beginning).partition("#")[0] for link in links}
    assert files >= {"assets/scores.py", "docs/redis.md"}
