"""The daily summary: the trends of each day in one row."""

from datetime import date
from pathlib import Path

from pipelines.reputation.by_day import by_day
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of


def test_a_day_has_the_values_of_the_trends(tmp_path: Path) -> None:
    """Days without events have no row, those outside are left out, and a value that a trend lacks for a day is null."""
    events = [
        Event("e1", "ann", "DriverRated", NOW - 5 * DAY, {"rating": "5"}),
        Event("e2", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "2"}),
        Event("e3", "bob", "DriverRated", NOW - 3 * DAY + 1, {"rating": "4"}),
        Event("e4", "bob", "AccountSuspended", NOW - 2 * DAY),
    ]
    derive(snapshot_of(tmp_path / "lake", events), load_policy("default"), AS_OF, tmp_path / "warehouse.duckdb")
    with Warehouse(tmp_path / "warehouse.duckdb") as warehouse:
        days = by_day(warehouse, date(2024, 2, 26), date(2024, 2, 28))
    assert days["day"].to_list() == [date(2024, 2, 27), date(2024, 2, 28)]
    rated, suspended = days.to_dicts()
    assert (rated["events"], rated["active_users"], rated["ratings"], rated["rating_average"]) == (2, 2, 2, 3.0)
    assert (rated["rating_seven_day_mean"], rated["suspended"]) == (11 / 3, None)
    assert (suspended["events"], suspended["suspended"], suspended["currently_suspended"]) == (1, 1, 1)
    assert suspended["rating_average"] is None
