"""After a commit power may fail: everything is on the disk before anything names it, and before Kafka is told.

A power cut cannot be had here. What is tested is the order of the calls that a power cut depends on. A full disk can.
"""

import json
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
from pipelines.emit.simulator import Rates, simulate
from pipelines.ingest.source import KafkaSource
from pipelines.lake import commit, files, history, upkeep
from pipelines.lake.publish import publish
from pipelines.lake.tables import TABLES, create_lake
from pipelines.lake.upkeep import compact
from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.test_crashes import environment


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """Return the files and folders that were flushed until now."""
    paths: set[Path] = set()
    flush = files._fsync

    def remember(path: Path) -> None:
        flush(path)
        paths.add(path)

    monkeypatch.setattr(files, "_fsync", remember)
    return paths


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, flushed: set[Path]) -> list[Path]:
    """Return the log entries that were made until now; each may name only what is flushed."""
    entries: list[Path] = []

    def check(table: DeltaTable, actions: list[Any], *rest: Any, **named: Any) -> None:
        root = Path(urlsplit(table.table_uri).path)
        added = [root / action.path for action in actions if isinstance(action, AddAction)]
        assert {*added, *(path.parent for path in added)} <= flushed
        entries.append(root / "_delta_log" / f"{table.version() + 1:020}.json")
        publish(table, actions, *rest, **named)

    for module in (commit, history, upkeep):
        monkeypatch.setattr(module, "publish", check)
    return entries


def test_kafka_is_told_what_is_on_the_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, flushed: set[Path], published: list[Path]
) -> None:
    """Before offsets move, files, log entries, index and the folders naming them are flushed (`nothing-lost`)."""
    told: list[int] = []
    _before(monkeypatch, KafkaSource, "acknowledge", lambda: told.append(_assert_flushed(published, flushed)))
    bus = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 1})})
    send(bus, [*valid_records([1, 30, 60]), *valid_records([1], action="Other"), Record(b"k", b"\xff")])
    drain_all(with_ingest(bus))
    assert told == [4], "dead letters, conflicts, events, commits"
    index = settings.index_dir / "slot-0"
    assert {index, index / "manifest.json", *index.glob("*.run")} <= flushed


def test_a_new_lake_is_on_the_disk(tmp_path: Path, flushed: set[Path]) -> None:
    """So are the tables themselves, down to the folder that the lake was made in."""
    root = tmp_path / "data" / "lake"
    create_lake(root)
    assert {root / name / "_delta_log" / f"{0:020}.json" for name in TABLES} <= flushed
    assert {tmp_path, root.parent, root, *(root / name for name in TABLES)} <= flushed
    flushed.clear()
    create_lake(root)
    assert flushed == set()


def test_a_compaction_is_on_the_disk(settings: Settings, flushed: set[Path], published: list[Path]) -> None:
    """Merged files are flushed before the commit that replaces others by them."""
    for start in (0, 10):
        send(settings, valid_records(range(start, start + 10)))
        drain_all(with_ingest(settings))
    published.clear()
    assert compact(create_lake(settings.lake_root), 2)
    assert _assert_flushed(published, flushed) > 0


_STEPS = {"_write", "publish", "commit_batch", "_save"}
"""Of a drain, all that write: each has to meet the full disk."""


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_step(settings: Settings, tmp_path: Path) -> None:
    """With room for none, one, two blocks and so on: readers see whole commits, and with room again it goes on.

    Every step of the protocol meets the full disk, and says so in one line (`atomic`, `nothing-lost`).
    """
    ways = (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"])
    alone = [way for way in ways if subprocess.run([*way, "true"], check=False, capture_output=True).returncode == 0]
    if not alone:
        pytest.skip("nobody may mount a file system here")
    records = list(simulate(11, 200, days=2, rates=Rates(duplicates=0.1, conflicts=0.05, malformed=0.05)).records)
    tried: list[dict[str, Any]] = []
    for attempt in range(8):  # which step meets the last free block depends on sizes near a block's edge
        topic = {"partitions": 1, "topic": f"{settings.kafka.topic}-{attempt}"}
        bus = with_ingest(
            settings.model_copy(update={"kafka": settings.kafka.model_copy(update=topic)}), max_batch_records=1
        )
        for part in (records[:100], records[100:]):
            send(bus, part)
        disk = tmp_path / f"disk-{attempt}"
        disk.mkdir()
        command = [*alone[0], sys.executable, "-m", "tests.full_disk", str(disk)]
        done = subprocess.run(
            command, env=environment(bus), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
        )
        *failed, last = map(json.loads, done.stdout.splitlines())
        assert last["error"] is None
        assert [each for each in [*failed, last] if not (each["sound"] and each["whole"])] == []
        tried += failed
        met = {each["step"] for each in tried}
        if met >= _STEPS:
            break
    assert met >= _STEPS
    assert {each["error"] for each in tried} == {"OSError", "TransientError"}
    commits = [each["said"] for each in tried if each["error"] == "TransientError"]
    assert all("the commit of" in said and said.isprintable() for said in commits)


def _before(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None]) -> None:
    real = getattr(owner, name)

    def acting_first(*arguments: object) -> object:
        act()
        return real(*arguments)

    monkeypatch.setattr(owner, name, acting_first)


def _assert_flushed(entries: list[Path], flushed: set[Path]) -> int:
    assert {*entries, *(path.parent for path in entries)} <= flushed
    return len(entries)
