"""What the dashboard's charts are drawn from: which periods are complete, and periods without events."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from pipelines.dashboard import charts, queries
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from tests.reputation.history import Event, snapshot_of, us

_AS_OF = datetime(2026, 11, 18, 6, tzinfo=UTC)
"""A Wednesday."""


def _opened(folder: Path, *days: int) -> Warehouse:
    """Return a warehouse of an event in the first hour of each day of November 2026."""
    moments = [us(datetime(2026, 11, day, tzinfo=UTC)) + number for number, day in enumerate(days)]
    events = [Event(f"e{t}", "ann", "TransactionCompleted", t) for t in moments]
    derive(snapshot_of(folder / "lake", events), load_policy("default"), _AS_OF, folder / "warehouse.duckdb")
    return open_warehouse(folder)


def test_as_of_decides_which_periods_are_complete(tmp_path: Path) -> None:
    """Not the newest event: a day after it is complete, too, and has no events."""
    with _opened(tmp_path, 10, 10, 10, 15) as warehouse:
        days, weeks = queries.activity(warehouse, "day"), queries.activity(warehouse, "week")
    assert days["first_day"].to_list() == [date(2026, 11, day) for day in range(10, 18)]
    assert days["events"].to_list() == [3, 0, 0, 0, 0, 1, 0, 0]
    assert days["active_users"].to_list() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert weeks.select("first_day", "events").rows() == [(date(2026, 11, 9), 4)]
    assert charts.activity(days).title == "0 events in the latest complete period, 0 in the median one"


@pytest.mark.parametrize(("day", "days"), [(17, [date(2026, 11, 17)]), (18, [])])
def test_a_single_period_is_complete_once_as_of_has_passed_it(tmp_path: Path, day: int, days: list[date]) -> None:
    """One day of events is shown when it is over, and not on the day itself."""
    with _opened(tmp_path, day) as warehouse:
        assert queries.activity(warehouse, "day")["first_day"].to_list() == days
        assert queries.activity(warehouse, "week").is_empty()
