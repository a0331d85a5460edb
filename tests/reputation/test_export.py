"""An exported warehouse: one file with all rows, which any DuckDB opens."""

from pathlib import Path

import duckdb
import pytest

from pipelines.errors import UsageError
from pipelines.reputation.base import base_folder
from pipelines.reputation.derive import open_draft
from pipelines.reputation.export import export_warehouse
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.history import NOW, Event, at
from tests.reputation.policies import policy
from tests.reputation.test_incremental import TABLES, lake, rows

_COMMITS = [
    [Event(f"e{n}", f"user-{n}", "Done", NOW - n - 1) for n in range(9)],
    [Event("n", "user-3", "Done", NOW - 1)],
]


def _published(folder: Path) -> Path:
    """Publish a warehouse with changes to its base."""
    path = folder / "warehouse.duckdb"
    with open_draft(path) as draft:
        draft.refresh(lake(folder, _COMMITS[:1]), policy(), at(NOW))
        draft.refresh(lake(folder, _COMMITS), policy(), at(NOW))
        draft.publish()
    return path


@pytest.mark.slow
def test_one_file_with_all_rows(tmp_path: Path) -> None:
    """It needs no other file but those of the lake, for its views of the lake; `Warehouse` opens it as well."""
    path, file = _published(tmp_path), tmp_path / "away" / "exported.duckdb"
    published = rows(path)
    export_warehouse(path, file)
    path.unlink()
    assert [left.name for left in file.parent.iterdir()] == ["exported.duckdb"]
    assert rows(file) == published
    for base in base_folder(path).iterdir():
        base.unlink()
    with duckdb.connect(file, read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        plain = {table: sorted(connection.sql(f"FROM {table}").fetchall(), key=repr) for table in TABLES}
        assert connection.execute("SELECT count(*) FROM events").fetchall() == [(10,)]
    assert plain == published


@pytest.mark.slow
def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    """The name of a file that exists is refused."""
    path = _published(tmp_path)
    with pytest.raises(UsageError, match=r"warehouse\.duckdb exists: choose another name"):
        export_warehouse(path, path)
    with Warehouse(path) as warehouse:
        assert warehouse.reputation().height == 9


@pytest.mark.slow
def test_a_warehouse_whose_base_is_lost_says_what_to_do(tmp_path: Path) -> None:
    """A reader learns the command; a refresh rebuilds."""
    path = _published(tmp_path)
    (base,) = base_folder(path).glob("*.duckdb")
    base.unlink()
    with pytest.raises(UsageError, match=r"cannot be opened: .*`karmalake rebuild`"):
        Warehouse(path)
    with open_draft(path) as draft:
        derived = draft.refresh(lake(tmp_path, _COMMITS), policy(), at(NOW))
        assert derived.rebuild_reason == "the published warehouse is damaged, or from another version of karmalake"
        draft.publish()
    assert rows(path)["reputation"]
