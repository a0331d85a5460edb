"""The last entry of a log that a power cut tore: what was not acknowledged never was, and the next commit is whole."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.errors import CorruptionError
from pipelines.lake import commit as commit_module
from pipelines.lake import files, torn
from pipelines.lake.commit import append
from pipelines.lake.publish import _CHECKPOINT_VERSIONS, publish
from pipelines.lake.tables import Lake
from pipelines.settings import Settings
from tests.draining import assert_verified, contents, drain_all, send, valid_records, with_ingest
from tests.lake.making import commit, make_events, stored
from tests.services.waiting import wait_for

# What a disk may have of a file that was written, and not flushed, when the power went.
_TEARS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "half of it": lambda whole: whole[: len(whole) // 2],
    "its first line": lambda whole: whole.splitlines()[0],
    "all but its last line": lambda whole: b"\n".join(whole.splitlines()[:-1]),
    "its end in zeros": lambda whole: whole[:-40] + bytes(40),
}


class PowerCutError(Exception):
    """The end of everything."""


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of a lake with two batches."""
    bus = with_ingest(settings, max_batch_records=1)
    for start in (0, 20):
        send(bus, valid_records(range(start, start + 25)))
    drain_all(bus)
    return bus


@pytest.mark.parametrize("tear", _TEARS)
def test_a_torn_commit_is_made_again(
    bus: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tear: str
) -> None:
    """Its events are there once, its checkpoint is where they end, and somebody is told (`atomic`, `nothing-lost`)."""
    send(bus, valid_records(range(40, 60)))

    def tear_it(entries: list[str]) -> None:
        (entry,) = map(Path, entries)
        if "/events/" in str(entry):
            entry.write_bytes(_TEARS[tear](entry.read_bytes()))
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "make_durable", tear_it)
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
    """A table beside `events` loses what did not count."""
    rows = make_events(["a"])
    append(lake, "conflicts", rows, "whole")
    append(lake, "conflicts", rows, "torn")
    entry = Path(lake.entry("conflicts", 2))
    entry.write_bytes(_TEARS[tear](entry.read_bytes()))
    assert [row["batch_id"] for row in stored(lake, "conflicts")] == ["whole"]
    append(lake, "conflicts", rows, "again")
    assert [row["batch_id"] for row in stored(lake, "conflicts")] == ["again", "whole"]


@pytest.mark.parametrize("tear", _TEARS)
def test_damage_within_a_log_is_told(lake: Lake, tear: str) -> None:
    """An entry below the last one counted: the table is not opened without it, and nothing is set aside."""
    handle = lake.table("events")
    for number in range(3):
        commit(lake, handle, f"b{number}", make_events([f"e{number}"], first_offset=number))
    entry = Path(lake.entry("events", 2))
    entry.write_bytes(_TEARS[tear](entry.read_bytes()))
    torn._checked.clear()  # as in a new process
    with pytest.raises(CorruptionError, match=r"events cannot be opened|entry 2 of the log .* is torn, and 1 later"):
        lake.table("events")
    assert entry.exists()


def test_each_entry_is_looked_at_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a table again costs by the entries that are new, not by the age of its log."""
    looked_at: list[str] = []
    is_whole = torn._is_whole

    def look(entry: Path) -> bool:
        looked_at.append(entry.stem.lstrip("0"))
        return is_whole(entry)

    handle = lake.table("events")
    for number in range(5):
        commit(lake, handle, f"b{number}", make_events([f"e{number}"], first_offset=number))
    lake.table("events")
    monkeypatch.setattr(torn, "_is_whole", look)
    commit(lake, handle, "b5", make_events(["e5"], first_offset=5))
    lake.table("events")
    assert looked_at == ["6"]


@pytest.mark.parametrize("tear", ["nothing", "zeros", "half of it"])
def test_a_torn_checkpoint_is_set_aside(lake: Lake, tear: str) -> None:
    """A checkpoint is a copy of entries that are there: without it the table opens at the same version."""
    handle = lake.table("events")
    for number in range(_CHECKPOINT_VERSIONS):
        publish(handle, [], {"x": number})
        handle.update_incremental()
    checkpoint = Path(lake.folder("events"), "_delta_log", f"{_CHECKPOINT_VERSIONS:020}.checkpoint.parquet")
    checkpoint.write_bytes(_TEARS[tear](checkpoint.read_bytes()))
    opened = lake.table("events")
    assert (opened.version(), opened.transaction_version("x")) == (_CHECKPOINT_VERSIONS, _CHECKPOINT_VERSIONS - 1)
    assert not checkpoint.exists()


def test_a_commit_flushes_the_entry_that_it_builds_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two committers one builds on what the other has not flushed: power may fail after its own commit."""
    other = lake.table("events")
    publish(other, [], {"ingest": 1})
    flushed: list[Path] = []
    monkeypatch.setattr(files, "_fsync", flushed.append)
    committer = lake.table("events")
    publish(committer, [], {"maintenance": 1})
    entry = Path(lake.entry("events", 1))
    assert {entry, entry.parent} <= set(flushed)


def test_an_entry_is_set_aside_by_one_process(lake: Lake) -> None:
    """Who waited for the lock looks again: what another process has committed since in its place stays."""
    append(lake, "conflicts", make_events(["a"]), "whole")
    entry = Path(lake.entry("conflicts", 1))
    whole = entry.read_bytes()
    entry.write_bytes(b"")
    with ThreadPoolExecutor(1) as pool, torn._alone(entry.parent):
        waiting = pool.submit(torn.set_torn_aside, lake.folder("conflicts"))
        wait_for("the other one to wait for the lock", lambda: _waits_for_a_lock(entry.parent))
        entry.write_bytes(whole)
    assert waiting.result()
    assert entry.read_bytes() == whole
    assert not list(entry.parent.glob("*.torn"))


def _waits_for_a_lock(folder: Path) -> bool:
    """Return whether the kernel knows of a lock of `folder` that is waited for."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{folder.stat().st_ino} " in line for line in lines)
