"""The queries of an opened warehouse use no more than the settings allow, and say which limit they met."""

import os
from pathlib import Path

import pytest

from pipelines.dashboard import health
from pipelines.errors import UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from pipelines.reputation.warehouse_file import Access
from pipelines.settings import QueriesSettings, Settings
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

EVENTS = [Event("a", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"})]
LARGE = "SELECT i, random() AS r FROM range(20_000_000) AS t(i) ORDER BY r LIMIT 1 OFFSET 10_000_000"
ENDLESS = "SELECT count(*) FROM range(10_000_000_000) AS a(i), range(10_000) AS b(j) WHERE i % 7 = j"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data folder of a published warehouse."""
    folder = tmp_path_factory.mktemp("data")
    derive(snapshot_of(folder, EVENTS), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    return folder


def _open(folder: Path, **limits: float) -> Warehouse:
    return Warehouse(folder / "warehouse.duckdb", access=Access(limits=QueriesSettings.model_validate(limits)))


def test_a_query_is_limited_in_memory_and_disk(folder: Path) -> None:
    """The error names the setting and the limit; the warehouse answers the next query, and nothing is left on disk."""
    before = sorted(folder.iterdir())
    with _open(folder, max_memory_share=0.001, max_spill_bytes=1_000_000) as warehouse:
        with pytest.raises(UsageError, match=r"queries\.max_spill_bytes allows \([\d.]+ KiB/976\.5 KiB used\)"):
            warehouse.sql(LARGE)
        assert warehouse.sql("SELECT 1").item() == 1
    with (
        _open(folder, max_memory_share=0.001) as warehouse,
        pytest.raises(UsageError, match=r"queries\.max_memory_share allows \([\d.]+ \w+/[\d.]+ \w+ used\)"),
    ):
        warehouse.sql("SELECT list(i) FROM range(100_000_000) AS t(i)")
    assert sorted(folder.iterdir()) == before


def test_a_query_spills_beside_the_warehouse(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spill folder is in the data folder, whatever the working directory, and nothing else is written."""
    monkeypatch.chdir(tmp_path)
    with open_warehouse(folder, allow_files=True) as warehouse:
        (spill,) = warehouse.sql("SELECT current_setting('temp_directory')").row(0)
    assert Path(spill).parent == folder
    assert not any(tmp_path.iterdir())


def test_the_limits_of_the_settings_apply(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_warehouse()` takes them from the environment, also for a data folder that it is given."""
    monkeypatch.setenv("KARMALAKE_QUERIES_MAX_SPILL_BYTES", "1024")
    with open_warehouse(folder, allow_files=True) as warehouse:
        assert warehouse.sql("SELECT current_setting('max_temp_directory_size')").item() == "1.0 KiB"


def test_an_abandoned_spill_folder_is_removed(folder: Path) -> None:
    """What a killed process left is removed after a day; that of a running one is not."""
    old, young = folder / "queries-old.tmp", folder / "queries-young.tmp"
    for spill in (old, young):
        spill.mkdir()
        (spill / "duckdb_temp_storage-0.tmp").write_bytes(b"rows")
    for place in (old / "duckdb_temp_storage-0.tmp", old):
        os.utime(place, (0, 0))
    with _open(folder):
        assert (old.exists(), young.exists()) == (False, True)


def test_a_section_of_the_dashboard_has_a_limit_of_time(folder: Path) -> None:
    """The error names the limit, its setting, and what has none."""
    settings = Settings.model_validate({"dashboard": {"query_seconds": 0.2}})
    with (
        _open(folder) as warehouse,
        pytest.raises(UsageError, match=r"within 0\.2 s.*dashboard\.query_seconds"),
        health.limited(warehouse, settings),
    ):
        warehouse.sql(ENDLESS)
