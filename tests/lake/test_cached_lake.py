"""A lake that keeps its tables open returns the same snapshots as a reopened one."""

from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import CachedLake, Lake
from pipelines.lake.upkeep import compact
from tests.lake.builders import commit, make_events


def test_snapshots_equal_those_of_a_reopened_lake(lake: Lake) -> None:
    """They are equal after commits of other processes and after a compaction."""
    cached = CachedLake(lake.root)
    for number in range(3):
        commit(lake, lake.table("events"), f"b-{number}", make_events([f"e-{number}"]))
        assert take_snapshot(cached) == take_snapshot(lake)
    compact(lake, 2)
    newest = take_snapshot(cached)
    assert newest == take_snapshot(lake)
    assert len(newest.files["events"]) == 1


def test_a_table_is_opened_once(lake: Lake) -> None:
    """The second call returns the same handle, at the newest version."""
    cached = CachedLake(lake.root)
    handle = cached.table("events")
    commit(lake, lake.table("events"), "b", make_events(["e"]))
    assert cached.table("events") is handle
    assert handle.version() == lake.table("events").version()
