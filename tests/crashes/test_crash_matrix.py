"""A kill before or after any step is harmless: the same work, started again, ends like an uninterrupted run.

Every moment is a test case. A kill leaves only what is stored, so of moments between which nothing is stored the first
is killed. A run tries a seventh of the moments of half of the flows, others each day (`tests/share.py`): an
uninterrupted run of each flow takes longer than its kills. Fourteen days try all.
"""

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
from tests.crashes.kills import Moment, find_function, kill, moments, trace
from tests.draining import send, with_ingest
from tests.rides import rides, to_rides
from tests.share import share

FLOWS: dict[str, Flow] = (
    ingest_flows.FLOWS
    | dlq_flows.FLOWS
    | upkeep_flows.FLOWS
    | view_flows.FLOWS
    | publish_flows.FLOWS
    | relay_flows.FLOWS
)
ALL_KILLS = [(name, moment) for name, flow in FLOWS.items() for moment in moments(flow.steps)]
_SOME_FLOWS = share([*FLOWS], 2)
KILLS = share([(name, moment) for name, moment in ALL_KILLS if name in _SOME_FLOWS], 7)
_AHEAD = 3
"""Kills that the thread runs before their tests."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An uninterrupted run of a flow: what must be seen, and what was stored at each moment."""

    expected: Any
    stored: dict[Moment, str]

    def is_first(self, moment: Moment) -> bool:
        """Return whether no earlier moment that is tested leaves the same files and keys."""
        assert moment in self.stored, f"{moment} never comes"
        return next(each for each, stored in self.stored.items() if stored == self.stored[moment]) == moment


@dataclass(frozen=True, slots=True)
class KilledRun:
    """The state after a kill, and what must be seen after the recovery."""

    settings: Settings
    expected: Any


@dataclass(slots=True)
class Stage:
    """The topic, and a folder for each kill. A thread runs the next kills while the test checks the last one."""

    bus: Settings
    folder: Path
    thread: ThreadPoolExecutor
    references: dict[str, Reference] = field(default_factory=dict)
    runs: "dict[int, Future[KilledRun | None]]" = field(default_factory=dict)

    def killed_run(self, number: int) -> KilledRun | None:
        """Return the state after the kill of this number; None if an earlier kill of the flow leaves the same one."""
        for each in range(number, min(number + 1 + _AHEAD, len(KILLS))):
            if each not in self.runs:
                self.runs[each] = self.thread.submit(self._run, each)
        return self.runs.pop(number).result()

    def _run(self, number: int) -> KilledRun | None:
        name, moment = KILLS[number]
        reference = self._reference(name)
        if not reference.is_first(moment):
            return None
        settings = self._begin(name, self.folder / str(number))
        kill(moment, settings.data_dir.with_suffix(".log"), FLOWS[name].work, settings)
        return KilledRun(settings, reference.expected)

    def _reference(self, name: str) -> Reference:
        if name not in self.references:
            flow = FLOWS[name]
            flow.prepare(self._settings(self._prepared(name)))
            settings = self._begin(name, self.folder / f"{name} uninterrupted")
            tested = [moment for each, moment in KILLS if each == name]
            stored = trace(tested, flow.stored, self.folder / f"{name}.log", flow.work, settings)
            self.references[name] = Reference(flow.seen(settings), stored)
        return self.references[name]

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
    if run is None:
        return  # nothing was stored since a moment at which the flow was killed
    flow.sound(run.settings)
    flow.resume(run.settings)
    assert _left_over(run.settings) == set()
    assert flow.seen(run.settings) == run.expected
    shutil.rmtree(run.settings.data_dir)


def test_the_matrix_is_large() -> None:
    """There are at least 300 moments, each at a function that exists; one that never comes fails its test."""
    assert len(set(ALL_KILLS)) == len(ALL_KILLS) >= 300
    for place in {moment.place for _, moment in ALL_KILLS}:
        owner, name = find_function(place)
        assert hasattr(owner, name), place


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
