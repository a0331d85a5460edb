"""A lake whose tables stay open shows what one shows that is opened anew."""

from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import KeptOpen, Lake
from pipelines.lake.upkeep import compact
from tests.lake.making import commit, make_events


def test_snapshots_are_those_of_a_lake_opened_anew(lake: Lake) -> None:
    """After commits of others, and after a compaction, whatever the handles had seen before."""
    kept = KeptOpen(lake.root)
    for number in range(3):
        commit(lake, lake.table("events"), f"b-{number}", make_events([f"e-{number}"]))
        assert take_snapshot(kept) == take_snapshot(lake)
    compact(lake, 2)
    newest = take_snapshot(kept)
    assert newest == take_snapshot(lake)
    assert len(newest.files["events"]) == 1


def test_a_table_is_opened_once(lake: Lake) -> None:
    """Asked for again, it is the same handle, moved on."""
    kept = KeptOpen(lake.root)
    handle = kept.table("events")
    commit(lake, lake.table("events"), "b", make_events(["e"]))
    assert kept.table("events") is handle
    assert handle.version() == lake.table("events").version()
