"""A data folder can be moved or copied: its warehouse finds the lake beside it, and nothing else is allowed."""

import shutil
from pathlib import Path

import duckdb
import pytest

from pipelines.errors import UsageError
from pipelines.reputation.derive import derive, open_draft
from pipelines.reputation.export import export_warehouse
from pipelines.reputation.lake_views import LAKE_VIEWS
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import open_warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

EVENTS = [Event("a", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"})]
LATER = [Event("b", "bob", "DriverRated", NOW - 2 * DAY, {"rating": "1"})]


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """Return a data folder that was made elsewhere, where nothing is left; its name has to be quoted in SQL."""
    made = tmp_path / "made" / "data"
    derive(snapshot_of(made / "lake", EVENTS), load_policy("default"), AS_OF, made / "warehouse.duckdb")
    folder = tmp_path / "it's moved"
    shutil.copytree(made, folder)
    shutil.rmtree(made.parent)
    return folder


@pytest.mark.slow
def test_a_copy_answers_like_the_original(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every view of the lake, scores, explanations and snapshots; also by a relative path."""
    monkeypatch.chdir(moved.parent)
    for folder in (moved, moved.name):
        with open_warehouse(folder) as warehouse:
            assert warehouse.events()["event_id"].to_list() == ["a"]
            assert all(warehouse[name].fetchall() is not None for name in LAKE_VIEWS)
            assert warehouse.scores()["user_id"].to_list() == ["ann"]
            assert warehouse.explain("ann")["event_id"].drop_nulls().to_list() == ["a"]
            assert warehouse.snapshot().sql("SELECT count(*) FROM events").item() == 1


def test_a_copy_is_locked_like_the_original(moved: Path) -> None:
    """Only the files of the views may be read, not their neighbours, by relative and by absolute paths."""
    shutil.copy(next(moved.glob("lake/*.parquet")), moved / "lake" / "other.parquet")
    with open_warehouse(moved) as warehouse:
        for path in ("lake/other.parquet", f"{moved}/lake/other.parquet", "lake/*.parquet"):
            with pytest.raises(UsageError, match=r"Permission Error|No files found"):
                warehouse.sql(f"FROM read_parquet('{path.replace(chr(39), chr(39) * 2)}')")


@pytest.mark.slow
def test_a_copy_is_refreshed_where_it_is(moved: Path) -> None:
    """The next refresh continues it, without a rebuild, and reads only the new place."""
    snapshot = snapshot_of(moved / "lake", EVENTS, LATER, version=2)
    with open_draft(moved / "warehouse.duckdb") as draft:
        draft.refresh(snapshot, load_policy("default"), AS_OF)
        draft.publish()
    with open_warehouse(moved) as warehouse:
        assert warehouse.events()["event_id"].to_list() == ["a", "b"]


def test_an_export_reads_the_lake_from_anywhere(moved: Path, tmp_path: Path) -> None:
    """It is opened by other tools in other folders, so its views have absolute paths."""
    export_warehouse(moved / "warehouse.duckdb", tmp_path / "out" / "all.duckdb")
    with duckdb.connect(tmp_path / "out" / "all.duckdb", read_only=True) as connection:
        assert connection.execute("SELECT event_id FROM events").fetchall() == [("a",)]


@pytest.mark.slow
def test_a_comma_in_the_name_of_the_folder(tmp_path: Path, moved: Path) -> None:
    """DuckDB divides search paths by commas: such a folder works where it was made, and is refused for a copy."""
    made = tmp_path / "a, b"
    derive(snapshot_of(made / "lake", EVENTS), load_policy("default"), AS_OF, made / "warehouse.duckdb")
    with open_warehouse(made) as warehouse:
        assert warehouse.events().height == 1
    shutil.copytree(moved, tmp_path / "c, d")
    with pytest.raises(UsageError, match=r"was moved to .*/c, d, which has a comma in its name: rename"):
        open_warehouse(tmp_path / "c, d")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([], ", and no such folder: set data_dir (KARMALAKE_DATA_DIR), or pass the data folder to open_warehouse();"),
        (
            ["other"],
            "warehouse.duckdb: set data_dir (KARMALAKE_DATA_DIR), or pass the data folder to open_warehouse();",
        ),
        (["lake"], "or derive one from the lake there by `karmalake rebuild`;"),
    ],
)
def test_a_wrong_folder_is_named(tmp_path: Path, made: list[str], said: str) -> None:
    """With the setting and the read-only way; a reader is never told to start ingest."""
    for name in made:
        (tmp_path / "data" / name).mkdir(parents=True)
    with pytest.raises(UsageError) as refused:
        open_warehouse(tmp_path / "data")
    message = str(refused.value)
    assert message.startswith(f"there is no warehouse at {tmp_path}/data/warehouse.duckdb")
    assert said in message
    assert message.endswith("a copy of one suffices, since a warehouse is only read")
    assert "drain" not in message
