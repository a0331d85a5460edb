"""A torn last entry of a log was never acknowledged: it is quarantined, and the next commit replaces it."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.boundary import file_lock
from pipelines.boundary.file_lock import exclusive_lock, try_lock
from pipelines.errors import CorruptionError
from pipelines.lake import commit as commit_module
from pipelines.lake import files, tables, torn_writes
from pipelines.lake.commit import append, stage_events
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.delta_commit import _CHECKPOINT_VERSIONS, commit_actions
from pipelines.lake.tables import Lake
from pipelines.settings import Settings
from tests.draining import assert_verified, contents, drain_all, send, valid_records, with_ingest
from tests.lake.builders import commit, make_events, read_rows
from tests.services.waiting import wait_for

# What a disk may have of a file that was written and not flushed when the power failed.
_TEARS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "half of it": lambda whole: whole[: len(whole) // 2],
    "its first line": lambda whole: whole.splitlines()[0],
    "all but its last line": lambda whole: b"\n".join(whole.splitlines()[:-1]),
    "its end in zeros": lambda whole: whole[:-40] + bytes(40),
}


class PowerCutError(Exception):
    """The simulated power cut."""


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a lake with two batches."""
    bus = with_ingest(settings, max_batch_records=1)
    for start in (0, 20):
        send(bus, valid_records(range(start, start + 25)))
    drain_all(bus)
    return bus


@pytest.mark.parametrize("tear", _TEARS)
def test_a_torn_commit_is_repeated(
    bus: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tear: str
) -> None:
    """Its events are committed once, its checkpoint is right, and a warning is logged (`atomic`, `nothing-lost`)."""
    send(bus, valid_records(range(40, 60)))

    def tear_entry(entries: list[str]) -> None:
        (entry,) = map(Path, entries)
        if "/events/" in str(entry):
            entry.write_bytes(_TEARS[tear](entry.read_bytes()))
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "make_durable", tear_entry)
        with pytest.raises(PowerCutError):
            drain_all(bus)
    with caplog.at_level(logging.WARNING):
        assert_verified(bus)
    assert "a power cut tore the last entry of a log" in caplog.text
    assert len(contents(bus)["events"]) == 45
    records = drain_all(bus)
    assert [sum(record.total(count) for record in records) for count in ("accepted", "duplicates")] == [15, 5]
    assert_verified(bus)
    assert len(contents(bus)["events"]) == 60


@pytest.mark.parametrize("tear", _TEARS)
def test_a_torn_append(lake: Lake, tear: str) -> None:
    """A table other than `events` loses only the append that was not acknowledged."""
    rows = make_events(["a"])
    append(lake, "conflicts", rows, "whole")
    append(lake, "conflicts", rows, "torn")
    entry = Path(lake.entry_path("conflicts", 2))
    entry.write_bytes(_TEARS[tear](entry.read_bytes()))
    assert [row["batch_id"] for row in read_rows(lake, "conflicts")] == ["whole"]
    append(lake, "conflicts", rows, "again")
    assert [row["batch_id"] for row in read_rows(lake, "conflicts")] == ["again", "whole"]


def test_another_process_sets_a_torn_entry_aside(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between an opening that failed and its look at the log, where then nothing is torn: the table is opened again."""
    rows = make_events(["a"])
    append(lake, "conflicts", rows, "whole")
    append(lake, "conflicts", rows, "torn")
    entry = Path(lake.entry_path("conflicts", 2))
    entry.write_bytes(_TEARS["half of it"](entry.read_bytes()))
    quarantine = tables.quarantine_torn_entry

    def look_after_another(folder: str, version: int | None = None) -> bool:
        quarantine(folder)
        return quarantine(folder, version)

    monkeypatch.setattr(tables, "quarantine_torn_entry", look_after_another)
    assert [row["batch_id"] for row in read_rows(lake, "conflicts")] == ["whole"]
    assert not entry.exists()


@pytest.mark.parametrize("tear", _TEARS)
def test_a_torn_entry_below_the_last_is_reported(lake: Lake, tear: str) -> None:
    """A torn entry below the last one did count: the table is not opened, and nothing is quarantined."""
    handle = lake.table("events")
    for number in range(3):
        commit(lake, handle, f"b{number}", make_events([f"e{number}"], first_offset=number))
    entry = Path(lake.entry_path("events", 2))
    entry.write_bytes(_TEARS[tear](entry.read_bytes()))
    torn_writes._checked.clear()  # as in a new process
    with pytest.raises(CorruptionError, match=r"events cannot be opened|entry 2 of the log .* is torn, and 1 later"):
        lake.table("events")
    assert entry.exists()


def test_other_tables_than_events_are_not_drained_again(lake: Lake) -> None:
    """The checkpoints are in `events`: what another table loses is read again only from the start."""
    handle = lake.table("events")
    for number in range(3):
        commit(lake, handle, f"b{number}", make_events([f"e{number}"], first_offset=number))
        take_snapshot(lake)  # completes `commits`
    entry = Path(lake.folder("commits"), "_delta_log", f"{2:020}.json")
    entry.write_bytes(b"".join(entry.read_bytes().splitlines(keepends=True)[:-1]))
    torn_writes._checked.clear()  # as in a new process
    with pytest.raises(CorruptionError, match="or drain the topic from its start into a new data_dir"):
        lake.table("commits")


def test_each_entry_is_checked_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reopening a table checks the new entries only, whatever the age of its log."""
    checked: list[str] = []
    is_intact = torn_writes._is_intact

    def check(entry: Path) -> bool:
        checked.append(entry.stem.lstrip("0"))
        return is_intact(entry)

    handle = lake.table("events")
    for number in range(5):
        commit(lake, handle, f"b{number}", make_events([f"e{number}"], first_offset=number))
    lake.table("events")
    monkeypatch.setattr(torn_writes, "_is_intact", check)
    commit(lake, handle, "b5", make_events(["e5"], first_offset=5))
    lake.table("events")
    assert checked == ["6"]


@pytest.mark.slow
@pytest.mark.parametrize("tear", ["nothing", "zeros", "half of it"])
def test_a_torn_checkpoint_is_quarantined(lake: Lake, tear: str) -> None:
    """A checkpoint is a copy of existing entries: without it the table opens at the same version."""
    handle = lake.table("events")
    for number in range(_CHECKPOINT_VERSIONS + 1):  # the last one writes the checkpoint of what it builds on
        commit_actions(handle, [], {"x": number})
        handle.update_incremental()
    checkpoint = Path(lake.folder("events"), "_delta_log", f"{_CHECKPOINT_VERSIONS:020}.checkpoint.parquet")
    checkpoint.write_bytes(_TEARS[tear](checkpoint.read_bytes()))
    opened = lake.table("events")
    assert (opened.version(), opened.transaction_version("x")) == (_CHECKPOINT_VERSIONS + 1, _CHECKPOINT_VERSIONS)
    assert not checkpoint.exists()


def test_a_commit_flushes_the_entry_that_it_builds_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A committer flushes the entry of another that it builds on, so that its own commit survives a power cut."""
    other = lake.table("events")
    commit_actions(other, [], {"ingest": 1})
    flushed: list[Path] = []
    monkeypatch.setattr(files, "_fsync", flushed.append)
    committer = lake.table("events")
    commit_actions(committer, [], {"maintenance": 1})
    entry = Path(lake.entry_path("events", 1))
    assert {entry, entry.parent} <= set(flushed)


@pytest.mark.parametrize("tear", _TEARS)
def test_a_power_cut_beside_two_committers(lake: Lake, monkeypatch: pytest.MonkeyPatch, tear: str) -> None:
    """What one acknowledged stays, though the entry below was not flushed by its committer (`nothing-lost`)."""
    flushed: set[Path] = set()
    monkeypatch.setattr(files, "_fsync", flushed.add)
    first, second = lake.table("events"), lake.table("events")
    staged = stage_events(lake.table("events"), make_events(["compacted"]), "compaction")
    commit_actions(first, staged, {"maintenance": 1})  # the power fails before this committer flushes its entry
    second.update_incremental()
    commit(lake, second, "ingest", make_events(["acknowledged"], first_offset=1))
    for entry in Path(lake.folder("events"), "_delta_log").glob("[0-9]*.json"):
        if entry not in flushed and int(entry.stem) > 0:
            entry.write_bytes(_TEARS[tear](entry.read_bytes()))
    torn_writes._checked.clear()  # as in a new process
    assert {row["event_id"] for row in read_rows(lake)} == {"compacted", "acknowledged"}
    assert lake.table("events").version() == 2


def test_an_entry_is_quarantined_by_one_process(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waited for the lock checks again: an entry that another has committed in its place stays."""
    append(lake, "conflicts", make_events(["a"]), "whole")
    entry = Path(lake.entry_path("conflicts", 1))
    content = entry.read_bytes()
    entry.write_bytes(b"")
    with ThreadPoolExecutor(1) as pool, exclusive_lock(entry.parent):
        attempts: list[int | None] = []
        monkeypatch.setattr(file_lock, "try_lock", lambda path: attempts.append(try_lock(path)) or attempts[-1])
        waiting = pool.submit(torn_writes.quarantine_torn_entry, lake.folder("conflicts"))
        wait_for("the other process to wait for the lock", lambda: None in attempts)
        entry.write_bytes(content)
    assert waiting.result()
    assert entry.read_bytes() == content
    assert not list(entry.parent.glob("*.torn"))
