"""A bit that flips in the log of a lake changes neither a checkpoint nor which files count, without an error."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import CorruptionError
from pipelines.lake import torn_writes
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.log_files import parse_entry, remove_old_entries
from pipelines.lake.tables import Lake, data_files
from pipelines.lake.transactions import transactions
from pipelines.lake.upkeep import compact
from tests.lake.builders import commit, make_events


def _contents(lake: Lake) -> object:
    """Return what a new process finds in the log of a lake."""
    torn_writes._checked.clear()
    torn_writes._compared.clear()
    events = lake.table("events")
    records = [actions[0]["commitInfo"].get("karmalake") for _, actions in lake.read_log(20, events.version())]
    return events.version(), dict(transactions(events)), data_files(events), records


def _fill(lake: Lake) -> None:
    handle = lake.table("events")
    for number in range(3):
        commit(lake, handle, f"b{number}", make_events([f"e{number}"], first_offset=number))
    compact(lake, 2)
    handle = lake.table("events")
    while handle.version() < 22:
        commit_actions(handle, [], {"x": handle.version() + 1})
        handle.update_incremental()
    commit(lake, handle, "b3", make_events(["e3"], first_offset=3))
    commit_actions(handle, [], {"x": 30})


@pytest.mark.parametrize(("name", "is_renewed"), [("*0021.json", False), ("*0023.json", False), ("*.parquet", True)])
def test_no_bit_that_flips_goes_unnoticed(
    lake: Lake, tmp_path: Path, name: str, is_renewed: Callable[[object], object]
) -> None:
    """Of an entry that counts, and of a checkpoint, which is set aside: the entries below it say the same."""
    _fill(lake)
    intact = _contents(lake)
    log, some = Path(lake.folder("events"), "_delta_log"), np.random.default_rng(1)
    shutil.copytree(log, tmp_path / "intact")
    [file] = log.glob(name)
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    outcomes = set[str]()
    for position in some.choice(len(content), 100).tolist():
        changed = bytearray(content)
        changed[position] ^= 1 << int(some.integers(8))
        file.write_bytes(changed)
        os.utime(file, ns=(written, written))
        try:
            assert _contents(lake) == intact
            outcomes.add("set aside" if not file.exists() else "harmless")
        except CorruptionError as error:
            outcomes.add("refused")
            assert "restore" in str(error)  # noqa: PT017 - others have no effect
        shutil.rmtree(log)
        shutil.copytree(tmp_path / "intact", log)
    assert outcomes == ({"set aside"} if is_renewed else {"refused", "harmless"})


def test_a_name_that_changed_is_refused(lake: Lake) -> None:
    """As of the path of a file, which no entry lacks."""
    commit(lake, lake.table("events"), "b", make_events(["e"]))
    entry = lake.entry_path("events", 1)
    changed = Path(entry).read_text(encoding="utf-8").replace('{"path"', '{"patl"')
    with pytest.raises(CorruptionError, match="has changed since it was written"):
        parse_entry(changed, entry)


def _make_again(checkpoint: Path) -> None:
    pq.write_table(pq.read_table(checkpoint), checkpoint, compression="gzip")


def _cut_checksum(checkpoint: Path) -> None:
    checkpoint.with_suffix(".checksum").write_text("")


@pytest.mark.parametrize("change", [_make_again, _cut_checksum])
def test_a_checkpoint_that_has_another_checksum_for_a_reason_is_kept(
    lake: Lake, change: Callable[[Path], object]
) -> None:
    """Another engine made it again, or a process is writing the checksum now, or ended before it was written."""
    _fill(lake)
    [checkpoint] = Path(lake.folder("events"), "_delta_log").glob("*.checkpoint.parquet")
    change(checkpoint)
    _contents(lake)
    assert checkpoint.exists()


def test_a_checksum_is_removed_with_its_checkpoint(lake: Lake) -> None:
    """The log keeps a fixed number of files."""
    _fill(lake)
    handle = lake.table("events")
    for _ in range(20):
        commit_actions(handle, [], {"x": handle.version() + 1})
        handle.update_incremental()
    assert remove_old_entries(handle, 1)
    names = {path.name for path in Path(lake.folder("events"), "_delta_log").iterdir() if path.suffix != ".json"}
    assert names == {"_last_checkpoint", f"{40:020}.checkpoint.parquet", f"{40:020}.checkpoint.checksum"}


def test_paths_of_other_engines_are_no_damage(lake: Lake) -> None:
    """The library writes escapes into an entry in place of some characters of a path."""
    handle = lake.table("events")
    for path in ("a b.parquet", "a%20b.parquet", "é=1/c.parquet"):
        added = AddAction(path, 1, {}, 1, data_change=True, stats=json.dumps({"numRecords": 1}))
        commit_actions(handle, [added], {})
        handle.update_incremental()
        commit_actions(handle, [RemoveAction(path, data_change=True, deletion_timestamp=1, partition_values={})], {})
        handle.update_incremental()
    torn_writes._checked.clear()
    assert lake.table("events").version() == handle.version()
