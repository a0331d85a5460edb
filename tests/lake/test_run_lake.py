"""The lake of a run: it is created at most once, and is the same one until the run ends."""

import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from pipelines.errors import CorruptionError, LostRecordsError, TransientError
from pipelines.lake.copying import copy_lake
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.log_files import remove_old_entries
from pipelines.lake.run_lake import RunLake, await_lake
from pipelines.lake.tables import Lake, create_lake, is_lake, open_lake, table_id


def commit_empty(root: Path, times: int) -> None:
    """Commit to `events` without rows."""
    handle = Lake(str(root)).table("events")
    for number in range(times):
        commit_actions(handle, [], {"x": number, uuid4().hex: number})
        handle.update_incremental()


def _id(root: Path) -> str:
    return table_id(open_lake(root).table("events"))


def test_a_lake_is_created_at_most_once(tmp_path: Path) -> None:
    """`nothing-lost`: a folder that disappears is an outage, and nothing is created there."""
    root = tmp_path / "lake"
    lake = RunLake(str(root))
    assert lake.open().root == str(root)
    shutil.move(root, tmp_path / "unmounted")
    for _ in range(2):
        with pytest.raises(TransientError, match=f"the lake in {root} is gone: mount its disk"):
            lake.open()
        with pytest.raises(TransientError, match="is gone"):
            lake.check()
    assert not root.exists()
    shutil.move(tmp_path / "unmounted", root)
    lake.check()
    assert is_lake(lake.open().root)


def test_another_lake_in_its_place_is_an_error(tmp_path: Path) -> None:
    """A retry does not help, and the message has both ids; a copy of the same lake is the same lake."""
    root, copy = tmp_path / "lake", tmp_path / "copy"
    lake = RunLake(str(root))
    copy_lake(lake.open(), str(copy))
    began_with = _id(root)
    shutil.rmtree(root)
    create_lake(root)
    with pytest.raises(CorruptionError, match=f"another lake is in {root}: its id is {_id(root)}, .* {began_with}"):
        lake.open()
    with pytest.raises(CorruptionError, match="another lake"):
        lake.check()
    shutil.rmtree(root)
    shutil.move(copy, root)
    assert lake.open().root == str(root)


def test_another_lake_that_comes_while_it_is_opened_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is compared, and not what was there before; the process does not go over to it."""
    root = tmp_path / "lake"
    lake = RunLake(str(root))
    lake.open()

    def replaced_and_opened(place: str) -> Lake:
        shutil.rmtree(root)
        return create_lake(place)

    monkeypatch.setattr("pipelines.lake.run_lake.open_lake", replaced_and_opened)
    for _ in range(2):
        with pytest.raises(CorruptionError, match=f"another lake is in {root}"):
            lake.open()


@pytest.mark.parametrize("later_commits", [0, 1, 2, 5])
def test_another_copy_of_the_lake_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later_commits: int
) -> None:
    """Tables that are open have files which the copy does not name, also once it has as many commits again."""
    monkeypatch.setattr("pipelines.lake.run_lake._CHECK_SECONDS", -1.0)
    root = tmp_path / "lake"
    lake = RunLake(str(root))
    lake.open()
    commit_empty(root, 2)
    copy_lake(Lake(str(root)), str(tmp_path / "copy"))
    commit_empty(root, 2)
    lake.check()
    shutil.rmtree(root)
    shutil.move(tmp_path / "copy", root)
    commit_empty(root, later_commits)
    for look in (lake.check, lake.open):
        with pytest.raises(CorruptionError, match=f"the lake in {root} is another copy of the one .* version 4 of"):
            look()


def test_a_lake_that_continues_is_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others commit, its log is shortened, a checkpoint replaces its first entries, and it comes back as a copy."""
    monkeypatch.setattr("pipelines.lake.run_lake._CHECK_SECONDS", -1.0)
    root = tmp_path / "lake"
    lake = RunLake(str(root))
    lake.open()
    for commits in (0, 1, 25):
        commit_empty(root, commits)
        lake.check()
    commit_empty(root, 25)
    assert remove_old_entries(Lake(str(root)).table("events"), retained=2) > 0
    lake.check()
    copy_lake(Lake(str(root)), str(tmp_path / "copy"))
    shutil.rmtree(root)
    with pytest.raises(TransientError, match="is gone"):
        lake.check()
    shutil.move(tmp_path / "copy", root)
    lake.check()
    lake.open()


def test_a_check_looks_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them it costs nothing, so a loop may call it in each turn."""
    lake = RunLake(str(tmp_path / "lake"))
    opened = lake.open()
    shutil.rmtree(opened.root)
    lake.check()
    monkeypatch.setattr("pipelines.lake.run_lake._CHECK_SECONDS", -1.0)
    create_lake(tmp_path / "other")
    shutil.move(tmp_path / "other", opened.root)
    lake = RunLake(opened.root)
    lake.open()
    shutil.rmtree(opened.root)
    with pytest.raises(TransientError, match="is gone"):
        lake.check()


@pytest.mark.parametrize("look", [RunLake.open, RunLake.check])
def test_a_lake_that_disappears_during_a_look_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[RunLake], object]
) -> None:
    """Also between the question whether it is there and the first read: no permanent error, and nothing is created."""
    root = tmp_path / "lake"
    lake = RunLake(str(root))
    monkeypatch.setattr("pipelines.lake.run_lake._CHECK_SECONDS", -1.0)
    lake.open()

    def found_and_gone(place: str) -> bool:
        found = is_lake(place)
        shutil.rmtree(root, ignore_errors=True)
        return found

    for module in ("run_lake", "tables"):  # the latter opens it
        monkeypatch.setattr(f"pipelines.lake.{module}.is_lake", found_and_gone)
    with pytest.raises(TransientError, match=f"the lake in {root} is gone"):
        look(lake)
    assert not root.exists()


def test_what_a_missing_lake_causes_is_explained(tmp_path: Path) -> None:
    """A permanent error of work on a lake that is gone is the outage; with the lake there, it is what it was."""
    lake = RunLake(str(tmp_path / "lake"))
    opened = lake.open()
    with pytest.raises(LostRecordsError), lake.explained():
        raise LostRecordsError("of the broker")
    shutil.rmtree(opened.root)
    with pytest.raises(TransientError, match="is gone"), lake.explained():
        opened.table("dead_letters")


def test_a_reader_waits_for_a_lake(tmp_path: Path) -> None:
    """It creates none, says who does, and opens the one that another process has created."""
    root = tmp_path / "lake"
    lake = RunLake(str(root), await_lake)
    with pytest.raises(TransientError, match=f"there is no lake in {root} yet: start `karmalake stream`"):
        lake.open()
    assert not root.exists()
    create_lake(root)
    assert lake.open().root == str(root)


def test_opening_never_creates_the_events(tmp_path: Path) -> None:
    """Tables that an older release did not have are created, for a lake that exists."""
    root = Path(create_lake(tmp_path / "lake").root)
    shutil.rmtree(root / "fates")
    open_lake(root)
    assert (root / "fates").exists()
