"""A commit survives a power cut: data is on disk before anything names it, and before Kafka offsets move.

A power cut cannot be simulated here: the tests check the order of the calls on which durability depends. A full disk is
real.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from pipelines.emit.producer import Record
from pipelines.ingest.kafka import KafkaSource
from pipelines.lake import commit, commit_log, files, runs, upkeep
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.tables import TABLES, create_lake
from pipelines.lake.upkeep import compact
from pipelines.refresh import refresh_warehouse
from pipelines.reputation.base import base_folder
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.conftest import REPOSITORY
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.full_disk import STEPS
from tests.test_crashes import environment


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """Return the files and folders flushed so far."""
    paths: set[Path] = set()
    flush = files._fsync

    def remember(path: Path) -> None:
        flush(path)
        paths.add(path)

    monkeypatch.setattr(files, "_fsync", remember)
    return paths


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, flushed: set[Path]) -> list[Path]:
    """Return the log entries written so far; each may name only flushed files."""
    entries: list[Path] = []

    def check(table: DeltaTable, actions: list[Any], *rest: Any, **named: Any) -> None:
        root = Path(urlsplit(table.table_uri).path)
        added = [root / action.path for action in actions if isinstance(action, AddAction)]
        assert {*added, *(path.parent for path in added)} <= flushed
        entries.append(root / "_delta_log" / f"{table.version() + 1:020}.json")
        commit_actions(table, actions, *rest, **named)

    for module in (commit, commit_log, upkeep):
        monkeypatch.setattr(module, "commit_actions", check)
    return entries


def test_offsets_are_acknowledged_after_the_data_is_durable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, flushed: set[Path], published: list[Path]
) -> None:
    """Files, log entries, the index and the folders that name them are flushed before offsets move (`nothing-lost`)."""
    acknowledged: list[int] = []
    monkeypatch.setattr(runs, "_FILTER_ROWS", 1)
    _before(monkeypatch, KafkaSource, "acknowledge", lambda: acknowledged.append(_assert_flushed(published, flushed)))
    bus = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 1})})
    send(bus, [*valid_records([1, 30, 60]), *valid_records([1], action="Other"), Record(b"k", b"\xff")])
    drain_all(with_ingest(bus))
    assert acknowledged == [4], "dead letters, conflicts, events, commits"
    index = settings.index_dir / "slot-0"
    filters = list(index.glob("*.filter"))
    assert len(filters) == 1
    assert {index, index / "manifest.json", *index.glob("*.run"), *filters} <= flushed


def test_a_new_lake_is_durable(tmp_path: Path, flushed: set[Path]) -> None:
    """The tables of a new lake are flushed, down to the folder that contains the lake."""
    root = tmp_path / "data" / "lake"
    create_lake(root)
    assert {root / name / "_delta_log" / f"{0:020}.json" for name in TABLES} <= flushed
    assert {tmp_path, root.parent, root, *(root / name for name in TABLES)} <= flushed
    flushed.clear()
    create_lake(root)
    assert flushed == set()


@pytest.mark.slow
def test_a_checkpoint_of_the_log_is_durable(tmp_path: Path, flushed: set[Path]) -> None:
    """A checkpoint of the log is flushed, and the file that names it: a torn one would stop the table from opening."""
    events, log = create_lake(tmp_path).table("events"), tmp_path / "events" / "_delta_log"
    for version in range(101):
        commit_actions(events, [], {"x": version})
        events.update_incremental()
    assert {log / f"{100:020}.checkpoint.parquet", log / "_last_checkpoint"} <= flushed


def test_a_compaction_is_durable(settings: Settings, flushed: set[Path], published: list[Path]) -> None:
    """Merged files are flushed before the commit that replaces the originals by them."""
    for start in (0, 10):
        send(settings, valid_records(range(start, start + 10)))
        drain_all(with_ingest(settings))
    published.clear()
    assert compact(create_lake(settings.lake_root), 2)
    assert _assert_flushed(published, flushed) > 0


def test_a_published_warehouse_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file and its base are flushed before it replaces the old one, and its folder afterwards (`atomic`)."""
    settings = Settings(data_dir=tmp_path / "data")
    create_lake(settings.lake_root)
    done: list[tuple[str, int, int]] = []
    flush, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        flush(descriptor)
        found = os.fstat(descriptor)
        done.append(("flushed", found.st_ino, found.st_size))

    def replacing(path: Path, target: Path) -> Path:
        if target == settings.warehouse_path:
            found = path.stat()
            done.append(("published", found.st_ino, found.st_size))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replacing)
    refresh_warehouse(settings)
    (published,) = [at for at, (what, *_) in enumerate(done) if what == "published"]
    file, folder = settings.warehouse_path.stat(), settings.warehouse_path.parent.stat()
    assert done[published] == ("published", file.st_ino, file.st_size)
    assert ("flushed", file.st_ino, file.st_size) in done[:published]
    (base,) = base_folder(settings.warehouse_path).glob("*.duckdb")
    assert ("flushed", base.stat().st_ino, base.stat().st_size) in done[:published]
    assert base.parent.stat().st_ino in [inode for what, inode, _ in done[:published] if what == "flushed"]
    assert folder.st_ino in [inode for what, inode, _ in done[published:] if what == "flushed"]


@pytest.fixture
def mounting() -> list[str]:
    """Return the beginning of a command that may mount a file system of its own."""
    for way in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if subprocess.run([*way, "true"], check=False, capture_output=True).returncode == 0:
            return way
    pytest.skip("mounting a file system is not permitted here")


@pytest.mark.slow
def test_a_full_disk_at_any_step_of_a_refresh(mounting: list[str], tmp_path: Path) -> None:
    """With more and more free space readers see whole warehouses, and with space again a refresh completes (`atomic`).

    Every error is temporary, so `karmalake stream` tries again; files that could not be completed do not remain.
    """
    command = [*mounting, sys.executable, "-m", "tests.full_disk_refresh", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    *failed, last = map(json.loads, done.stdout.splitlines())
    assert last["error"] is None
    assert [each for each in [*failed, last] if not (each["sound"] and each["whole"] and each["temporary"])] == []
    messages = " ".join(each["message"] for each in failed)
    for file in ("warehouse.duckdb.draft'", ".next'", "/base/"):
        assert file in messages


@pytest.mark.slow
def test_a_full_disk_at_any_step(settings: Settings, tmp_path: Path, mounting: list[str]) -> None:
    """With 0, 1, 2, ... free blocks readers see whole commits, and with space again the drain completes.

    So they do with a disk that is full from each step of the protocol on; the step reports it in one line (`atomic`,
    `nothing-lost`).
    """
    records = list(simulate(11, 200, days=2, rates=FaultRates(duplicates=0.1, conflicts=0.05, malformed=0.05)).records)
    topic = settings.kafka.model_copy(update={"partitions": 1})
    bus = with_ingest(settings.model_copy(update={"kafka": topic}), max_batch_records=1)
    for part in (records[:100], records[100:]):
        send(bus, part)
    command = [*mounting, sys.executable, "-m", "tests.full_disk", str(tmp_path)]
    done = subprocess.run(command, env=environment(bus), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each for each in tried if not (each["sound"] and each["whole"])] == []
    *failed, last = tried[: -len(STEPS)]
    assert failed
    assert last["error"] is None
    at_steps = tried[-len(STEPS) :]
    assert [each["step"] for each in at_steps] == list(STEPS)
    assert {each["error"] for each in [*failed, *at_steps]} == {"OSError", "TransientError"}
    commits = [each["message"] for each in [*failed, *at_steps] if each["error"] == "TransientError"]
    assert all("the commit of" in message and message.isprintable() for message in commits)


def _before(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None]) -> None:
    real = getattr(owner, name)

    def acting_first(*arguments: object) -> object:
        act()
        return real(*arguments)

    monkeypatch.setattr(owner, name, acting_first)


def _assert_flushed(entries: list[Path], flushed: set[Path]) -> int:
    assert {*entries, *(path.parent for path in entries)} <= flushed
    return len(entries)
