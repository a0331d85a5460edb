"""A drain that is killed at any time is harmless: the next one ends with the lake of an uninterrupted run.

`tests/crashes` kills at each step; here the time is random, and other processes read and compact the lake.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import Record
from pipelines.lake.tables import create_lake
from pipelines.lake.upkeep import compact
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.commands import KARMALAKE, Started
from tests.conftest import REPOSITORY
from tests.draining import assert_verified, contents, drain_all, query, send, with_ingest
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.share import count

_FAULTS = FaultRates(duplicates=0.1, conflicts=0.02, mis_keyed=0.005, malformed=0.02)
_KILLS = count(6, 12)
_SOONER = 0.8
_PARTS = 15
_SENT_FIRST = 9
_SEED = 20260301


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings of small batches: one record batch of the producer each."""
    return with_ingest(settings, max_batch_records=1)


@pytest.mark.slow
def test_kills_at_random_times(bus: Settings, tmp_path: Path) -> None:
    """SIGKILL at random times of start-up and work: the same lake in the end (`once`, `nothing-lost`, `atomic`).

    A concurrent reader sees whole commits only; in some rounds files are compacted beside the drain.
    """
    reference = bus.model_copy(update={"data_dir": tmp_path / "reference"})
    parts, rng = _parts(_PARTS, 1_500), random.Random(_SEED)  # noqa: S311 - reproducible, not secret
    for part in parts[:_SENT_FIRST]:
        send(bus, part)
    start_seconds = _seconds_to_first_commit(reference, tmp_path)
    later = iter(parts[_SENT_FIRST:])
    create_lake(bus.lake_root)
    kills = 0
    with _reader(bus, tmp_path) as versions_read:
        while kills < _KILLS:
            if _survives(bus, tmp_path, start_seconds * rng.uniform(0.3, 1.3), compacting=kills % 4 == 3):
                start_seconds *= _SOONER  # the machine is faster than when this was measured
                send(bus, next(later, []))
            else:
                kills += 1
            assert_verified(bus)
        for part in later:
            send(bus, part)
        drain_all(bus)
    drain_all(reference)
    assert_verified(bus)
    assert contents(bus) == contents(reference)
    assert versions_read[0] >= 5
    assert len(query(bus, "SELECT * FROM commits")) >= 12


def test_an_unfinished_commit_record_is_completed_for_readers(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash right after the commit leaves no commit record; readers see the commit all the same (`nothing-lost`)."""
    send(bus, next(iter(_parts(1, 300))))

    class PowerCutError(Exception):
        pass

    def cut(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch, open_ingest(bus) as ingest:
        patch.setattr("pipelines.drain.complete_commits", cut)
        with pytest.raises(PowerCutError):
            drain(ingest, lambda _: None)
    assert query(bus, "SELECT count(*) FROM commits") == [(1,)]
    assert_verified(bus)


def _parts(count: int, events: int) -> list[list[Record]]:
    """Return a simulated world in consecutive parts; each is sent as record batches of its own."""
    records = list(simulate(_SEED, events, days=5, rates=_FAULTS).records)
    size = -(-len(records) // count)
    return [records[start : start + size] for start in range(0, len(records), size)]


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment that gives a child these settings."""
    assert settings.redis.url is not None
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "KARMALAKE_DATA_DIR": str(settings.data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
        "KARMALAKE_KAFKA_GROUP_ID": settings.kafka.group_id,
        "KARMALAKE_INGEST_MAX_BATCH_RECORDS": str(settings.ingest.max_batch_records),
        "KARMALAKE_INGEST_MAX_WAIT_SECONDS": str(settings.ingest.max_wait_seconds),
        "KARMALAKE_REDIS_URL": settings.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": settings.redis.prefix,
    }


@contextmanager
def _draining(settings: Settings, folder: Path) -> Iterator[Started]:
    """Yield a process that runs `karmalake drain`, and end it on exit."""
    output, errors = subprocess.DEVNULL, subprocess.PIPE
    started = Started([*KARMALAKE, "drain"], env=environment(settings), cwd=folder, stdout=output, stderr=errors)
    with ended(started) as process:
        yield process


def _seconds_to_first_commit(settings: Settings, folder: Path) -> float:
    """Drain without interruption; return the seconds until the first commit."""
    started = time.monotonic()
    log = Path(settings.lake_root) / "events" / "_delta_log" / f"{1:020}.json"
    with _draining(settings, folder) as process:
        wait_for("the first commit", log.exists)
        seconds = time.monotonic() - started
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return seconds


def _survives(settings: Settings, folder: Path, seconds: float, *, compacting: bool) -> bool:
    """Start a drain and kill it after `seconds`; return whether it had ended before."""
    with _draining(settings, folder) as process:
        deadline = time.monotonic() + seconds
        if compacting:
            compact(create_lake(settings.lake_root), 4)
        try:
            _, errors = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
    assert process.returncode == 0, errors
    return True


@contextmanager
def _reader(settings: Settings, folder: Path) -> Iterator[list[int]]:
    """Read the lake in another process during the block; on exit, append the number of versions read to the list."""
    stop, versions_read = folder / "stop", list[int]()
    command = ["-m", "tests.reader", str(Path(settings.lake_root) / "events"), str(stop)]
    started = Started(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with ended(started) as process:
        try:
            yield versions_read
        finally:
            stop.touch()
            answer, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    versions_read.append(int(answer))
