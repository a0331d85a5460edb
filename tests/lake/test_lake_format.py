"""The format of the lake: upgrades that compete or are killed, and commits on a table that was upgraded meanwhile."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.errors import NewerFormatError, TransientError
from pipelines.formats import LAKE
from pipelines.lake import tables
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.files import conform
from pipelines.lake.lake_format import configuration, has_mixed_files, is_current, upgrade
from pipelines.lake.tables import COMMITS, TABLES, CachedLake, create_lake, is_lake

_OLDER = pa.schema([("a", pa.int64()), ("r", pa.list_(pa.struct([("x", pa.int64())])))])
_SCHEMA = pa.schema(
    [("a", pa.int64()), ("r", pa.list_(pa.struct([("x", pa.int64()), ("y", pa.string())]))), ("b", pa.string())]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a table of an older release."""
    DeltaTable.create(tmp_path / "table", _OLDER)
    return tmp_path / "table"


def _opening(folder: Path) -> Callable[[], DeltaTable]:
    return lambda: DeltaTable(folder)


def test_columns_and_nested_fields_are_added_once(folder: Path) -> None:
    """The table has the number and the columns; readers know that its files may lack some; again changes nothing."""
    assert not is_current(DeltaTable(folder), _SCHEMA)
    upgrade(_opening(folder), _SCHEMA)
    table = DeltaTable(folder)
    assert is_current(table, _SCHEMA)
    assert has_mixed_files(table)
    assert pa.schema(table.schema()).field("r").type.value_type.num_fields == 2
    upgrade(_opening(folder), _SCHEMA)
    assert DeltaTable(folder).version() == table.version()


def test_a_killed_upgrade_is_finished(folder: Path) -> None:
    """After a crash between the number and the columns, the next start adds the columns."""
    DeltaTable(folder).alter.set_table_properties(configuration(), raise_if_not_exists=False)
    assert not is_current(DeltaTable(folder), _SCHEMA)
    upgrade(_opening(folder), _SCHEMA)
    assert is_current(DeltaTable(folder), _SCHEMA)
    assert has_mixed_files(DeltaTable(folder))


def test_of_two_upgrades_the_later_finds_it_done(folder: Path) -> None:
    """A handle from before the other's upgrade cannot commit, and is opened again (`atomic`)."""
    stale = [DeltaTable(folder)]
    upgrade(_opening(folder), _SCHEMA)
    version = DeltaTable(folder).version()
    upgrade(lambda: stale.pop() if stale else DeltaTable(folder), _SCHEMA)
    assert (stale, DeltaTable(folder).version()) == ([], version)
    with pytest.raises(TransientError, match="it was not changed; try again"):
        _upgrade_only_stale(folder)


def _upgrade_only_stale(folder: Path) -> None:
    handle = DeltaTable(folder, version=0)
    upgrade(lambda: handle, _SCHEMA)


def test_a_commit_after_an_upgrade_is_refused(tmp_path: Path) -> None:
    """A process of the older release cannot commit on either version, nor open the table (`fenced`)."""
    lake = CachedLake(create_lake(tmp_path / "lake").root)
    table = lake.table("commits")
    newer = {"karmalake.format": str(LAKE.number + 1), "karmalake.release": "99.0.0"}
    DeltaTable(lake.folder("commits")).alter.set_table_properties(newer, raise_if_not_exists=False)
    with pytest.raises(CommitFailedError):
        commit_actions(table, [], {"x": 1})
    table.update_incremental()
    with pytest.raises(NewerFormatError, match=r"commits has format \d+ of the lake, written by karmalake 99\.0\.0; "):
        commit_actions(table, [], {"x": 1})
    with pytest.raises(NewerFormatError, match="install that release or a newer one"):
        lake.table("commits")


def test_rows_of_an_older_file_have_all_columns() -> None:
    """Missing columns and nested fields are null; columns of other engines stay."""
    rows = pa.table({"other": [1], "a": [2], "r": pa.array([[{"x": 3}]], _OLDER.field("r").type)})
    found = conform(rows, _SCHEMA)
    assert found.column_names == ["a", "r", "b", "other"]
    assert found.to_pylist() == [{"a": 2, "r": [{"x": 3, "y": None}], "b": None, "other": 1}]
    assert conform(COMMITS.empty_table(), COMMITS).schema == COMMITS


def test_readers_find_every_table_of_a_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is created, there is no lake: a reader at that moment found a lake without its commits."""
    create, found = tables._create_table, list[bool]()  # pyright: ignore[reportPrivateUsage]

    def create_and_look(folder: str, schema: pa.Schema) -> None:
        found.append(is_lake(tmp_path))
        create(folder, schema)

    monkeypatch.setattr(tables, "_create_table", create_and_look)
    create_lake(tmp_path)
    assert found == [False] * len(TABLES)
    assert is_lake(tmp_path)
