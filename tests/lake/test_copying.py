"""A copy made during ingest is a consistent lake: each of its commits has a record, and so has the next one."""

from pathlib import Path

import pytest

from pipelines.lake import copying
from pipelines.lake.commit import append, commit_batch, stage_events
from pipelines.lake.commit_log import complete_commits, take_snapshot
from pipelines.lake.copying import copy_lake
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.tables import TABLES, Lake, create_lake
from pipelines.operate.verify import verify_lake
from tests.lake.builders import commit, make_events, make_record, read_rows


def _ingest(lake: Lake, number: int) -> None:
    """Commit a batch of one event and one conflict, as `drain_once` does."""
    handle = lake.table("events")
    events = make_events([f"e{number}"], first_offset=number)
    append(lake, "conflicts", make_events(["other"], first_offset=number), f"b{number}")
    record = commit_batch(
        lake, handle, stage_events(handle, events, f"b{number}"), make_record(f"b{number}", events, start=number)
    )
    complete_commits(lake, record.version)


@pytest.mark.slow
@pytest.mark.parametrize("paused", TABLES)
def test_ingest_commits_before_any_table_is_opened(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paused: str
) -> None:
    """Wherever the copy pauses, its records match its events, and so do the records of later ingest into it."""
    _ingest(lake, 0)
    real, armed = Lake.table, [True]

    def pausing(self: Lake, name: str) -> object:
        if self.root == lake.root and name == paused and armed:
            armed.clear()
            _ingest(lake, 1)
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "table", pausing)
        copy_lake(lake, str(tmp_path / "copy"))
    copy = create_lake(tmp_path / "copy")
    count = len(read_rows(copy))
    _ingest(copy, count)
    snapshot = take_snapshot(copy)
    failed = [check for check in verify_lake(snapshot) if check.promise == "atomic" and not check.passed]
    assert failed == []
    assert sorted(str(row["batch_id"]) for row in read_rows(copy, "commits")) == [f"b{n}" for n in range(count + 1)]
    copied = {str(row["batch_id"]) for row in read_rows(copy, "conflicts")}
    assert copied >= {f"b{n}" for n in range(count + 1)}


@pytest.mark.slow
def test_a_copy_of_a_shortened_log_opens(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy has the newest checkpoint and the entries from it on, and a second copy updates it."""
    monkeypatch.setattr(copying, "RETAINED_ENTRIES", 20)
    commit(lake, lake.table("events"), "b0", make_events(["a"]))
    handle = lake.table("events")
    for number in range(50):
        commit_actions(handle, [], {"x": number})
        handle.update_incremental()
    copied = copy_lake(lake, str(tmp_path / "copy"))
    log = tmp_path / "copy" / "events" / "_delta_log"
    assert min(int(path.stem) for path in log.glob("[0-9]*.json")) == 40
    _ingest(lake, 1)
    assert copy_lake(lake, str(tmp_path / "copy")).version == copied.version + 1
    assert [row["event_id"] for row in read_rows(create_lake(tmp_path / "copy"))] == ["a", "e1"]
