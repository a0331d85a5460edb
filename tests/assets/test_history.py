"""History by day through Dagster: each row once, one account per day, also after kills (`once`, `nothing-lost`)."""

import errno
import os
import re
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from deltalake import DeltaTable

from assets.history import history
from assets.resources import Karmalake
from pipelines.backfill import backfill
from pipelines.settings import HistorySettings, Settings
from pipelines.sources.files import ColumnMapping
from tests.assets.running import days, materialize, metadata, metadata_by_day
from tests.commands import Started
from tests.conftest import REPOSITORY
from tests.draining import assert_verified, query
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for

_DAYS = [f"2024-05-{day:02}" for day in range(1, 13)]
_ROWS = 200
_LOAD = """
import sys
import dagster as dg
from assets.history import history
from assets.resources import Karmalake
from pipelines.settings import Settings
from tests.assets.running import days, materialize
folder, first, last, settings = sys.argv[1:]
settings = Settings.model_validate_json(settings)
with dg.DagsterInstance.local_temp(f"{folder}/dagster") as instance:
    materialize(Karmalake(lambda: settings), instance, [history], tags=days(first, last))
"""


@pytest.fixture
def no_bus(tmp_path: Path) -> Settings:
    """Return settings without a bus: history needs none."""
    history = HistorySettings(
        path=f"{tmp_path}/{{day}}.parquet",
        user_id="who",
        time="at",
        action_type="DriverRated",
        metadata={"rating": "stars"},
    )
    return Settings(data_dir=tmp_path / "data", history=history)


def write(folder: Path, day: str, rows: int, user: str = "ann") -> None:
    frame = pl.DataFrame({"who": [user] * rows, "stars": [1 + n % 5 for n in range(rows)]})
    times = [f"{day}T{n // 60:02}:{n % 60:02}:00Z" for n in range(rows)]
    frame.with_columns(at=pl.Series(times, dtype=pl.String)).write_parquet(folder / f"{day}.parquet")


@pytest.mark.slow
def test_a_day_is_accounted_for_over_all_attempts(
    no_bus: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Each day reports the outcomes of its rows, with dead letters by reason; repeating it changes nothing."""
    write(tmp_path, "2024-05-01", 3)
    write(tmp_path, "2024-05-02", 2, user="")
    pl.concat([pl.read_parquet(tmp_path / f"2024-05-0{day}.parquet") for day in (1, 2)]).write_parquet(
        tmp_path / "2024-05-03.parquet"
    )
    karmalake, tags = Karmalake(lambda: no_bus), days("2024-05-01", "2024-05-03")
    reported = metadata_by_day(materialize(karmalake, instance, [history], tags=tags), history)
    fates = ("rows", "read", "accepted", "duplicates", "dead_letters", "dead_letters_by_reason")
    assert {day: tuple(account[fate] for fate in fates) for day, account in reported.items()} == {
        "2024-05-01": (3, 3, 3, 0, 0, "none"),
        "2024-05-02": (2, 2, 0, 0, 2, "missing_user_id: 2"),
        "2024-05-03": (5, 5, 0, 3, 2, "missing_user_id: 2"),
    }
    assert metadata_by_day(materialize(karmalake, instance, [history], tags=tags), history) == reported
    assert query(no_bus, "SELECT count(*) FROM commits") == [(3,)]
    assert_verified(no_bus)


@pytest.mark.slow
def test_a_day_without_a_file_fails_alone(no_bus: Settings, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """So does a day whose file is refused: all others of the run are loaded and materialized, and no more is retried.

    The failure names the days and what to do. If missing days are allowed, they count as days without events.
    """
    for day in _DAYS:
        write(tmp_path, day, 3)
    (tmp_path / f"{_DAYS[4]}.parquet").unlink()
    (tmp_path / f"{_DAYS[7]}.parquet").write_text("no Parquet")
    tags = days(_DAYS[0], _DAYS[-1])
    result = materialize(Karmalake(lambda: no_bus), instance, [history], tags=tags, raise_on_error=False)
    [event] = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert re.match(
        rf"2 of 12 days failed, the others are loaded\. {_DAYS[4]}: there is no file .*{_DAYS[4]}\.parquet: add it, or "
        rf"set history\.days_may_be_missing; {_DAYS[7]}: .*{_DAYS[7]}\.parquet",
        failure.description or "",
    )
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    assert instance.get_materialized_partitions(history.key) == {*_DAYS} - {_DAYS[4], _DAYS[7]}
    [last] = instance.fetch_materializations(history.key, limit=1).records
    assert last.asset_materialization is not None
    assert last.asset_materialization.metadata["accepted"].value == 3
    assert query(no_bus, "SELECT count(*) FROM events") == [(30,)]
    lenient = no_bus.model_copy(update={"history": no_bus.history.model_copy(update={"days_may_be_missing": True})})
    result = materialize(Karmalake(lambda: lenient), instance, [history], tags=days(_DAYS[3], _DAYS[5]))
    assert [day.get("accepted") for day in metadata_by_day(result, history).values()] == [3, None, 3]


@pytest.mark.slow
def test_a_day_whose_file_may_not_be_read_fails_alone(
    no_bus: Settings, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure says whose file it is, as the command line does."""

    def denying(settings: Settings, path: Path, rows: ColumnMapping) -> int:
        if path.stem == _DAYS[1]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return backfill(settings, path, rows)

    for day in _DAYS[:3]:
        write(tmp_path, day, 3)
    monkeypatch.setattr("assets.history.backfill", denying)
    tags = days(_DAYS[0], _DAYS[2])
    result = materialize(Karmalake(lambda: no_bus), instance, [history], tags=tags, raise_on_error=False)
    [event] = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    text = f"1 of 3 days failed, the others are loaded. {_DAYS[1]}: {tmp_path / _DAYS[1]}.parquet: Permission denied; "
    assert (failure.description or "").startswith(text)
    assert failure.metadata["code"].value == "KL-PERMISSION"
    assert instance.get_materialized_partitions(history.key) == {_DAYS[0], _DAYS[2]}


@pytest.mark.slow
def test_a_single_day_can_be_requested(no_bus: Settings, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """A single partition key instead of a range."""
    write(tmp_path, "2024-05-01", 3)
    result = materialize(Karmalake(lambda: no_bus), instance, [history], partition_key="2024-05-01")
    assert metadata(result, history)["accepted"] == 3


@pytest.mark.slow
def test_a_backfill_killed_twice_completes(no_bus: Settings, tmp_path: Path) -> None:
    """Twelve days in one run, SIGKILL after four and after eight: the third run ends with each row in the lake once."""
    for day in _DAYS:
        write(tmp_path, day, _ROWS)
    (tmp_path / "dagster").mkdir()
    for commits in (4, 8):
        with ended(_load(no_bus, tmp_path)) as loading:
            wait_for(
                f"{commits} commits or its end",
                lambda at_least=commits, loading=loading: loading.poll() is not None or _commits(no_bus) >= at_least,
            )
        assert loading.returncode == -9
    with ended(_load(no_bus, tmp_path)) as loading:
        assert loading.wait(PATIENCE_SECONDS) == 0
    assert query(no_bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(_ROWS * len(_DAYS),) * 2]
    assert query(no_bus, 'SELECT sum("read"), sum(duplicates) FROM commits') == [(_ROWS * len(_DAYS), 0)]
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        assert instance.get_materialized_partitions(history.key) == set(_DAYS)
        records = instance.fetch_materializations(history.key, limit=100).records
    events = [record.asset_materialization for record in records if record.asset_materialization]
    assert [event.metadata["accepted"].value for event in events] == [_ROWS] * len(_DAYS)
    assert_verified(no_bus)


def _commits(settings: Settings) -> int:
    table = Path(settings.lake_root) / "events"
    return DeltaTable(table).version() if DeltaTable.is_deltatable(str(table)) else 0


def _load(settings: Settings, folder: Path) -> Started:
    is_set = settings.model_dump_json(exclude_unset=True)  # as a file would have it
    arguments = [str(folder), _DAYS[0], _DAYS[-1], is_set]
    return Started(["-c", _LOAD, *arguments], cwd=REPOSITORY)
