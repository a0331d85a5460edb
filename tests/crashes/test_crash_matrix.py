"""A kill before or after any step is harmless: the same work, started again, ends like an uninterrupted run.

Every kill is a test case. CRASH_EVERY=1, the default in CI, tries all of them; 3, the default elsewhere, every third.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.lake.tables import TABLES, data_files, is_lake, open_lake
from pipelines.lake.upkeep import vacuum
from pipelines.reputation.base import base_folder, published_base
from pipelines.settings import Settings
from tests.crashes import dlq_flows, ingest_flows, publish_flows, relay_flows, upkeep_flows, view_flows
from tests.crashes.flows import Flow, parts
from tests.crashes.kills import kill, moments
from tests.draining import send, with_ingest
from tests.rides import rides, to_rides

FLOWS: dict[str, Flow] = (
    ingest_flows.FLOWS
    | dlq_flows.FLOWS
    | upkeep_flows.FLOWS
    | view_flows.FLOWS
    | publish_flows.FLOWS
    | relay_flows.FLOWS
)
ALL_KILLS = [(name, moment) for name, flow in FLOWS.items() for moment in moments(flow.steps)]
EVERY = int(os.environ.get("CRASH_EVERY", "1" if "CI" in os.environ else "3"))
KILLS = ALL_KILLS[::EVERY]


@dataclass(frozen=True, slots=True)
class KilledRun:
    """The state after a kill, and what must be seen after the recovery."""

    settings: Settings
    expected: Any


@dataclass(slots=True)
class Stage:
    """The topic, and a folder for each kill. A thread runs the next kill while the test checks the last one."""

    bus: Settings
    folder: Path
    thread: ThreadPoolExecutor
    uninterrupted: dict[str, Any] = field(default_factory=dict)
    next_runs: "dict[int, Future[KilledRun]]" = field(default_factory=dict)

    def killed_run(self, number: int) -> KilledRun:
        """Return the state after the kill of this number."""
        running = self.next_runs.pop(number, None) or self.thread.submit(self._run, number)
        if number + 1 < len(KILLS):
            self.next_runs = {number + 1: self.thread.submit(self._run, number + 1)}
        return running.result()

    def _run(self, number: int) -> KilledRun:
        name, moment = KILLS[number]
        expected = self._expected(name)
        settings = self._begin(name, self.folder / str(number))
        kill(moment, settings.data_dir.with_suffix(".log"), FLOWS[name].work, settings)
        return KilledRun(settings, expected)

    def _expected(self, name: str) -> Any:
        """Return what is seen after an uninterrupted run of the flow."""
        if name not in self.uninterrupted:
            FLOWS[name].prepare(self._settings(self._prepared(name)))
            settings = self._begin(name, self.folder / f"{name} uninterrupted")
            FLOWS[name].work(settings)
            self.uninterrupted[name] = FLOWS[name].seen(settings)
        return self.uninterrupted[name]

    def _begin(self, name: str, data_dir: Path) -> Settings:
        """Return settings of a folder in the initial state of the flow, with a key prefix of its own."""
        shutil.copytree(self._prepared(name), data_dir)
        return self._settings(data_dir)

    def _prepared(self, name: str) -> Path:
        folder = self.folder / f"{name} prepared"
        folder.mkdir(exist_ok=True)
        return folder

    def _settings(self, data_dir: Path) -> Settings:
        redis = self.bus.redis.model_copy(update={"prefix": f"crashes-{uuid.uuid4().hex[:12]}"})
        return self.bus.model_copy(update={"data_dir": data_dir, "redis": redis})


@pytest.fixture(scope="module")
def stage(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    kafka = local_settings.kafka.model_copy(update={"topic": "matrix", "group_id": "matrix", "partitions": 1})
    bus = with_ingest(local_settings.model_copy(update={"kafka": kafka}), max_batch_records=1)
    for part in parts():
        send(bus, part)
    send(to_rides(bus), rides(range(60)))
    with ThreadPoolExecutor(1) as thread:
        yield Stage(bus, tmp_path_factory.mktemp("kills"), thread)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KILLS)), ids=lambda n: f"{KILLS[n][0]}: {KILLS[n][1]}".replace(" ", "-"))
def test_a_kill_is_harmless(stage: Stage, number: int) -> None:
    """Readers see whole commits, and a restart ends like an uninterrupted run (`once`, `nothing-lost`, `atomic`)."""
    flow = FLOWS[KILLS[number][0]]
    run = stage.killed_run(number)
    flow.sound(run.settings)
    flow.resume(run.settings)
    assert _left_over(run.settings) == set()
    assert flow.seen(run.settings) == run.expected
    shutil.rmtree(run.settings.data_dir)


def test_the_matrix_is_large() -> None:
    """CI has at least 300 kills, each at another moment; a moment that never comes fails its test."""
    assert len(set(ALL_KILLS)) == len(ALL_KILLS) >= 300
    assert EVERY == 1 or "CI" not in os.environ


def _left_over(settings: Settings) -> set[Path]:
    """Return the unreferenced files of a lake after a vacuum, other bases of the warehouse, and all temporary files."""
    temporary = {path for end in ("tmp", "draft", "next", "wal") for path in settings.data_dir.rglob(f"*.{end}")}
    base = str(published_base(settings.warehouse_path)).removesuffix(".duckdb")
    temporary |= {path for path in base_folder(settings.warehouse_path).glob("*") if not path.name.startswith(base)}
    if not is_lake(settings.lake_root):
        return temporary
    lake = open_lake(settings.lake_root)
    vacuum(lake, 0)
    named = {Path(path) for name in TABLES for path in data_files(lake.table(name))}
    return temporary | {path for path in Path(settings.lake_root).rglob("*.parquet") if path not in named}
