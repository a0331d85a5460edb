"""A table's log keeps a fixed number of entries, and readers work without the removed ones."""

from pathlib import Path

import pytest

from pipelines.lake import log_files, upkeep
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.log_files import remove_old_entries
from pipelines.lake.tables import Lake
from pipelines.lake.upkeep import compact
from tests.lake.builders import commit, make_events
from tests.lake.log_reads import Reads, count_reads


def _commit_empty(lake: Lake, times: int) -> None:
    handle = lake.table("events")
    for number in range(times):
        commit_actions(handle, [], {"x": number})
        handle.update_incremental()


def _versions(lake: Lake) -> list[int]:
    return sorted(int(path.stem) for path in Path(lake.folder("events"), "_delta_log").glob("[0-9]*.json"))


@pytest.mark.slow
def test_old_entries_are_removed_and_handles_stay_valid(lake: Lake) -> None:
    """Entries below the newest checkpoint and the last `retained` are removed; older handles can still be updated."""
    idle = lake.table("events")
    _commit_empty(lake, 70)
    assert remove_old_entries(lake.table("events"), retained=20) == 52
    assert _versions(lake) == list(range(50, 71))
    for handle in (idle, lake.table("events")):
        handle.update_incremental()
        assert (handle.version(), handle.transaction_version("x")) == (70, 69)
    commit_actions(idle, [], {"x": 70})
    assert lake.table("events").transaction_version("x") == 70


@pytest.mark.slow
@pytest.mark.parametrize(("commits", "retained"), [(19, 10), (30, 40), (30, 30)])
def test_entries_without_a_checkpoint_stay(lake: Lake, commits: int, retained: int) -> None:
    """Without a checkpoint above them, or within the last `retained` versions, no entry is removed."""
    _commit_empty(lake, commits)
    assert remove_old_entries(lake.table("events"), retained) == 0
    assert _versions(lake) == list(range(commits + 1))


@pytest.mark.slow
def test_compaction_shortens_every_log(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction removes old entries of the log, and the rows stay the same."""
    commit(lake, lake.table("events"), "b1", make_events(["a"]))
    _commit_empty(lake, 30)
    monkeypatch.setattr(upkeep, "remove_old_entries", lambda table: log_files.remove_old_entries(table, 5))
    compact(lake, 2)
    assert _versions(lake) == list(range(20, 32))
    assert lake.table("events").to_pyarrow_table()["event_id"].to_pylist() == ["a"]


@pytest.mark.slow
def test_a_commit_costs_the_same_at_any_age(lake: Lake) -> None:
    """It reads the log as often over 50 old entries as over 5, and only as often as the library needs to commit.

    The library's own clean-up lists the log once more, and asks for the age of every entry.
    """
    young, old = _reads_of_a_commit(lake, 5), _reads_of_a_commit(lake, 45)
    assert young == old
    assert young.listings <= 3


def _reads_of_a_commit(lake: Lake, commits_before: int) -> Reads:
    """Count how often a commit reads the log of `events`."""
    _commit_empty(lake, commits_before)
    handle = lake.table("events")
    with count_reads(Path(lake.folder("events"), "_delta_log")) as reads:
        commit_actions(handle, [], {"x": -1})
    return reads


@pytest.mark.slow
def test_a_crash_during_removal_leaves_no_gap(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entries are removed first."""
    _commit_empty(lake, 40)
    store, place = log_files.resolve_store(f"{lake.folder('events')}/_delta_log")

    class Crashing:
        deleted = 0

        def get_file_info(self, selector: object) -> object:
            return store.get_file_info(selector)

        def delete_file(self, path: str) -> None:
            if self.deleted == 7:
                raise KeyboardInterrupt
            self.deleted += 1
            store.delete_file(path)

    monkeypatch.setattr(log_files, "resolve_store", lambda _: (Crashing(), place))
    with pytest.raises(KeyboardInterrupt):
        remove_old_entries(lake.table("events"), 10)
    assert _versions(lake) == list(range(7, 41))
