"""The table of faults. After each fault the lake must reconcile in the end."""

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipelines.emit.producer import Record
from pipelines.lake.copying import copy_lake
from pipelines.lake.tables import open_lake
from pipelines.serving.read import published
from pipelines.settings import Settings
from pipelines.simulate.simulator import simulate
from tests.chaos import tasks
from tests.chaos.clock import with_jumping_clock
from tests.chaos.logs import log_is_truncated_and_grows, retention_passes_the_checkpoint
from tests.chaos.power import Disk, recording_flushes
from tests.chaos.world import World, exists_with_all, has_all
from tests.draining import drain_all, send

_EVENTS_A_ROUND = 400
_ROUNDS_BETWEEN_BOMBS = 10
_EVENTS, _FEW = 150, 20
_WAVES = 4
_ROWS, _FIRST_SECOND = 1_500, 1_700_000_000
_POWER_CUTS = 3
_WORKING = (
    [tasks.drain_all],
    [tasks.drain_all, tasks.merge_files],
    [tasks.drain_all, tasks.serve],
    [tasks.drain_all, tasks.merge_files, tasks.serve],
)
Fault = Callable[[World], None]


def kill(world: World) -> None:
    """Send a simulated world, and kill the processes that work on it."""
    events = simulate(next(world.seeds), _EVENTS_A_ROUND)
    send(world.settings, events.records)
    story, planted = world.story, events.planted
    story.sent, story.distinct = story.sent + planted.sent, story.distinct + planted.distinct
    world.kill_during(world.rng.choice(_WORKING))


def poison(world: World) -> None:
    """Send bad records of every kind, in some rounds also ones that cost memory and time."""
    world.hostile.send(bombs=world.story.done["poison"] % _ROUNDS_BETWEEN_BOMBS == 0)
    world.kill_during(world.rng.choice(_WORKING))


def lake_is_restored_from_a_copy(world: World) -> None:
    """Copy the lake beside ingest, continue, and replace the lake by the copy: newer records are read again."""
    copy, lake = world.folder / "copy", Path(world.settings.lake_root)
    world.send(world.fresh(_EVENTS))
    world.kill_during([tasks.drain_all, partial(tasks.copy_to, copy)])
    with world.beside(tasks.drain_all, world.settings) as draining:
        copy_lake(open_lake(lake), str(copy))
        draining.join()
    world.send(world.fresh(_EVENTS))
    world.kill_during([tasks.drain_all, tasks.serve])
    drain_all(world.settings)
    shutil.rmtree(lake)
    copy.rename(lake)
    world.kill_during([tasks.drain_all, tasks.merge_files])
    drain_all(world.settings)


def power_fails(world: World) -> None:
    """Cut the power while two processes commit: unflushed writes are lost, partly or entirely."""
    for _ in range(_POWER_CUTS):
        disk = Disk(world.folder / "shadow", [Path(world.settings.lake_root), world.settings.index_dir])
        disk.record_all()
        world.send(world.fresh(_EVENTS * 2))
        world.kill_during([partial(recording_flushes, disk, task) for task in (tasks.drain_all, tasks.merge_files)])
        world.story.unflushed += disk.cut(world.rng)
        shutil.rmtree(disk.shadow)
        world.kill_during([tasks.drain_all, tasks.merge_files])
    drain_all(world.settings)


def clock_jumps(world: World) -> None:
    """Let the clock of a `stream` jump back and forth: ingest and serving continue."""
    task = partial(with_jumping_clock, world.rng.getrandbits(32), tasks.streaming)
    with world.beside(task, world.settings) as stream:
        for _ in range(_WAVES):
            world.send(records := world.fresh(_EVENTS))
            is_committed = partial(has_all, world.settings, records)
            world.await_with(stream, "a stream whose clock jumps to commit", is_committed)
            _await_served(world, stream, world.settings)


def object_store_goes_away(world: World) -> None:
    """Take the object store from a `stream` for a while: the stream recovers on its own."""
    streaming = partial(tasks.in_environment, world.environment, tasks.streaming)
    with world.beside(streaming, world.remote) as stream:
        _follow(world, stream)
        world.proxy.cut()
        until = time.monotonic() + world.outage_seconds
        while time.monotonic() < until:
            _send_remote(world)
            kill(world)
        world.proxy.heal()
        _follow(world, stream)


def backfill_beside_a_stream(world: World) -> None:
    """Load a file while a `stream` commits continuously: the load ends, after kills of its own."""
    path = _history(world)
    with world.beside(tasks.streaming, world.settings) as stream:
        world.kill_during([partial(tasks.load, path)])
        with world.beside(tasks.load, path, world.settings) as loading:

            def is_loaded() -> bool:
                world.send(world.fresh(_FEW))
                return loading.exitcode == 0

            world.await_with(loading, "a backfill beside a stream to end", is_loaded)
        world.send(records := world.fresh(_FEW))
        world.await_with(stream, "the stream to continue", partial(has_all, world.settings, records))


FAULTS: Mapping[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill,
        poison,
        log_is_truncated_and_grows,
        retention_passes_the_checkpoint,
        lake_is_restored_from_a_copy,
        power_fails,
        clock_jumps,
        object_store_goes_away,
        backfill_beside_a_stream,
    )
}
"""Every run applies each of them."""


def _await_served(world: World, stream: BaseProcess, settings: Settings) -> None:
    """Wait until the served documents reflect the current version of the lake, or a later one."""
    version = open_lake(settings.lake_root).table("events").version()

    def is_served() -> bool:
        found = published(settings)
        return found is not None and found.stamp.lake_version >= version

    world.await_with(stream, f"version {version} to be served", is_served)


def _send_remote(world: World) -> list[Record]:
    """Send to the topic of the lake on the object store, and count."""
    records = world.fresh(_FEW)
    world.story.sent += send(world.remote, records)
    world.story.remote += len(records)
    return records


def _follow(world: World, stream: BaseProcess) -> None:
    """Send to the lake on the object store until its stream has committed and published it."""
    records = _send_remote(world)
    is_committed = partial(exists_with_all, world.remote, records)
    world.await_with(stream, "a stream on an object store to commit", is_committed)
    _await_served(world, stream, world.remote)


def _history(world: World) -> Path:
    """Write a file of events that are in no other source."""
    path = world.folder / f"history-{len(world.files)}.csv"
    rows = (f"{path.stem}-{n},u-{n % 7},{_FIRST_SECOND + n},{n % 5 + 1}\n" for n in range(_ROWS))
    path.write_text("".join(["id,user,time,stars\n", *rows]), "utf-8")
    world.files.append(path)
    world.story.distinct += _ROWS
    return path
