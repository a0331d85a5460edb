"""What happened to merged users, from the histories and by a scan."""

from pathlib import Path

import polars as pl
import pytest

from pipelines.reputation.derive import open_draft
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.recent_events import SINCE, recent_in_warehouse
from tests.reputation.history import DAY, NOW, Event, at
from tests.reputation.test_incremental import lake

_FIRST = [Event(f"e-{name}", name, "DriverRated", NOW - 3 * DAY, {"rating": "5"}) for name in ("ann", "bob", "cid")]
_FIRST.append(Event("e-dan", "dan", "Unknown", NOW - 2 * DAY))
_SECOND = [Event(f"n-{name}", name, "DriverRated", NOW - DAY // 2, {"rating": "4"}) for name in ("ann", "bob")]


@pytest.mark.parametrize("users", [["ann", "bob", "cid", "dan"], ["ann"], ["bob"], ["dan"]], ids="+".join)
@pytest.mark.parametrize("current", ["bob", "cid"])
def test_what_happened_to_merged_users(tmp_path: Path, users: list[str], current: str) -> None:
    """The histories say what a scan of the lake says, under current user_ids, for any users.

    A former user alone is asked for where the merge changes no row of the current one.
    """
    pairs = [("ann", "bob"), ("dan", current)]
    asked = pl.DataFrame({"user_id": users})
    since = asked.with_columns(lake_version=pl.lit(1), as_of_us=pl.lit(NOW - DAY)).cast(SINCE)
    rules = load_policy("default")
    with open_draft(tmp_path / "warehouse.duckdb") as draft:
        draft.refresh(lake(tmp_path / "lake", [_FIRST]), rules, at(NOW - DAY))
        snapshot = lake(tmp_path / "lake", [_FIRST, _SECOND], pairs=pairs)
        assert draft.refresh(snapshot, rules, at(NOW)).rebuild_reason is None
        found = draft.tables.recent_events(since)
        with open_lake_views(snapshot) as connection:
            scanned = recent_in_warehouse(connection, draft.tables.info, since)
    assert sorted(found.rows()) == sorted(scanned.rows())
    assert [row[0] for row in found.rows()] == (["bob", "bob"] if "bob" in users else [])
