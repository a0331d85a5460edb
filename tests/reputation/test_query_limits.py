"""The queries of an opened warehouse use no more than the settings allow, and say which limit they met."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from pipelines.boundary.database import connect
from pipelines.boundary.private_files import is_private
from pipelines.dashboard import health
from pipelines.errors import UsageError
from pipelines.lake.mentions import Mentions
from pipelines.operate.erase_limits import list_unreached
from pipelines.reputation import query_limits
from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from pipelines.reputation.warehouse_file import Access, attach
from pipelines.settings import QueriesSettings, ReputationSettings, Settings
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of
from tests.services.waiting import wait_for

EVENTS = [Event("a", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"})]
LARGE = "SELECT i, random() AS r FROM range(5_000_000) AS t(i) ORDER BY r LIMIT 1 OFFSET 2_500_000"
SPILLING = "SELECT i, random() AS r FROM range(3_000_000) AS t(i) ORDER BY r LIMIT 1 OFFSET 1_000_000"
SMALL = {"max_memory_share": 0.002}
"""Not enough for SPILLING on a machine of up to 30 GB."""
ENDLESS = "SELECT count(*) FROM range(10_000_000_000) AS a(i), range(10_000) AS b(j) WHERE i % 7 = j"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data folder of a published warehouse."""
    folder = tmp_path_factory.mktemp("data")
    derive(snapshot_of(folder, EVENTS), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    return folder


def _open(folder: Path, **limits: float) -> Warehouse:
    return Warehouse(folder / "warehouse.duckdb", access=Access(limits=QueriesSettings.model_validate(limits)))


def _spills(folder: Path) -> list[Path]:
    return list(folder.glob("queries-*.tmp"))


def _spilled(folder: Path) -> list[Path]:
    return list(folder.glob("queries-*.tmp/*storage*"))


def _age(spill: Path) -> None:
    for place in (*spill.iterdir(), spill):
        os.utime(place, (0, 0))


@pytest.mark.slow
def test_a_query_is_limited_in_memory_and_disk(folder: Path) -> None:
    """The limits are those of each opened warehouse, for what a query buffers: one large value is not limited.

    The error names the setting and the limit; the warehouse answers the next query, and nothing is left on disk.
    """
    before = sorted(folder.iterdir())
    with _open(folder, max_memory_share=0.001, max_spill_bytes=1_000_000) as warehouse, _open(folder) as other:
        assert other.sql(LARGE).height == 1
        assert warehouse.sql("SELECT len(range(5_000_000))").item() == 5_000_000
        with pytest.raises(UsageError, match=r"queries\.max_spill_bytes allows \([\d.]+ KiB/976\.5 KiB used\)"):
            warehouse.sql(LARGE)
        assert warehouse.sql("SELECT 1").item() == 1
    with (
        _open(folder, max_memory_share=0.001) as warehouse,
        pytest.raises(UsageError, match=r"queries\.max_memory_share allows \([\d.]+ \w+/[\d.]+ \w+ used\)"),
    ):
        warehouse.sql("SELECT list(i) FROM range(100_000_000) AS t(i)")
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
def test_a_query_spills_beside_the_warehouse(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are in the data folder, whatever the working directory, and leave with the query."""
    monkeypatch.chdir(tmp_path)
    with _open(folder, **SMALL) as warehouse, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(warehouse.sql, SPILLING)
        wait_for("rows are spilled into the data folder", lambda: _spilled(folder))
        assert answer.result().height == 1
        assert (_spilled(folder), len(_spills(folder))) == ([], 1)
    assert not _spills(folder)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_read_only_folder_is_not_spilled_into(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows go to a folder of the process, which no other user can read."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may write everywhere
    query_limits._private_folder.cache_clear()
    try:
        with _open(folder, **SMALL) as warehouse:
            assert warehouse.sql(SPILLING).height == 1
            (private,) = tmp_path.iterdir()
            assert is_private(private)
            assert len(_spills(private)) == 1
    finally:
        query_limits._private_folder.cache_clear()
    assert not _spills(folder)


def test_commands_have_no_limits_of_readers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command reads to publish or export may need more: it has DuckDB's limits, whatever the settings say."""
    monkeypatch.setenv("KARMALAKE_QUERIES_MAX_SPILL_BYTES", "1024")
    with closing(attach(folder / "warehouse.duckdb", Access(all_files=True))) as command, closing(connect()) as plain:
        for name in ("memory_limit", "max_temp_directory_size"):
            limit = f"SELECT current_setting('{name}')"
            assert command.sql(limit).fetchall() == plain.sql(limit).fetchall()


def _limit(connection: duckdb.DuckDBPyConnection) -> object:
    return connection.sql("SELECT current_setting('memory_limit')").fetchall()


@pytest.mark.parametrize("settings", [ReputationSettings(), ReputationSettings(max_memory_share=0.1)])
def test_a_rebuild_has_the_memory_that_the_settings_allow(tmp_path: Path, settings: ReputationSettings) -> None:
    """A quarter unless it is set: a warehouse of any number of users leaves the rest of the machine to others."""
    with open_draft(tmp_path / "warehouse.duckdb", settings) as draft, closing(connect()) as plain:
        plain.execute("SET memory_limit = ?", [f"{100 * settings.max_memory_share:g}%"])
        draft.rebuild(snapshot_of(tmp_path, EVENTS), load_policy("default"), AS_OF)
        assert _limit(draft.connection) == _limit(plain)


def test_a_rebuild_that_needs_more_memory_names_the_setting(tmp_path: Path) -> None:
    """What DuckDB cannot spill ends the rebuild with what to do, and without a draft."""

    def too_large(connection: duckdb.DuckDBPyConnection, *_: object) -> None:
        connection.execute("SELECT list(i) FROM range(100_000_000) AS t(i)").fetchall()

    with open_draft(tmp_path / "warehouse.duckdb", ReputationSettings(max_memory_share=0.001)) as draft:
        with pytest.raises(UsageError, match=r"more memory than reputation\.max_memory_share allows \(0\.1 %\)"):
            draft.rebuild(snapshot_of(tmp_path, EVENTS), load_policy("default"), AS_OF, too_large)
        with pytest.raises(UsageError, match="is empty"):
            _ = draft.tables


def test_the_limits_of_the_settings_apply(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_warehouse()` takes them from the environment, also for a data folder that it is given."""
    monkeypatch.setenv("KARMALAKE_QUERIES_MAX_SPILL_BYTES", "1024")
    with open_warehouse(folder, allow_files=True) as warehouse:
        assert warehouse.sql("SELECT current_setting('max_temp_directory_size')").item() == "1.0 KiB"


def test_an_abandoned_spill_folder_is_removed(folder: Path) -> None:
    """What a killed process left is removed after a day, and not before; an erasure names it meanwhile."""
    old, young = folder / "queries-old.tmp", folder / "queries-young.tmp"
    for spill in (old, young):
        spill.mkdir()
        (spill / "duckdb_temp_1_0_storage_DEFAULT-0.tmp").write_bytes(b"rows")
    assert [
        line
        for line in list_unreached(Settings(data_dir=folder), Mentions())
        if "queries-old.tmp, queries-young.tmp" in line
    ]
    _age(old)
    with _open(folder):
        assert (old.exists(), young.exists()) == (False, True)
    shutil.rmtree(young)


@pytest.mark.slow
def test_a_warehouse_that_is_open_for_long_keeps_its_spill_folder(folder: Path) -> None:
    """Another one that is opened a day after the last spilled row does not take the folder from it."""
    with _open(folder, **SMALL) as idle:
        idle.sql(SPILLING)
        (spill,) = _spills(folder)
        _age(spill)
        with _open(folder):
            assert spill.exists()
        assert idle.sql(SPILLING).height == 1


def test_a_section_of_the_dashboard_has_a_limit_of_time(folder: Path) -> None:
    """The error names the limit, its setting, and what has none."""
    settings = Settings.model_validate({"dashboard": {"query_seconds": 0.2}})
    with (
        _open(folder) as warehouse,
        pytest.raises(UsageError, match=r"within 0\.2 s.*dashboard\.query_seconds"),
        health.limited(warehouse, settings),
    ):
        warehouse.sql(ENDLESS)
