"""The whole system on real servers: every rating that the service stored is scored once, whatever is killed."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.consistency import disagreements, failed_checks
from examples.riders import rate_rides
from examples.system import System
from tests.services.requirements import require
from tests.services.waiting import wait_for
from tests.share import DAY, count

_KILLS = count(20, 100)
_PARTS = ("service", "relay", "stream", "notify")
_SERVERS = ("kafka", "redis", "postgres")
_SERVER_KILL_SHARE = 0.15
_MAX_LIFE_SECONDS = 1.2
_RIDERS = 2


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """Return the running system."""
    for service in ("kafka", "redis", "postgres"):
        require(service)
    with System(tmp_path) as system:
        yield system


@pytest.mark.jvm
@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.usefixtures("broken_connections")
def test_kills_change_nothing_in_the_end(system: System) -> None:
    """Of service, relay, stream, notify, Kafka, Redis or PostgreSQL, at any moment (`once`, `nothing-lost`).

    The test does not wait for parts to restart, so some are killed while they start. Which are killed depends on the
    day; LONG=1 kills a hundred times.
    """
    rng, over, pause = random.Random(DAY), threading.Event(), threading.Event()  # noqa: S311 - reproducible
    with ThreadPoolExecutor(_RIDERS) as pool:
        riders = [
            pool.submit(rate_rides, system.port, seed, lambda _rated: over.is_set(), 0.05) for seed in range(_RIDERS)
        ]
        try:
            for _ in range(_KILLS):
                _kill(system, rng.choice(_SERVERS if rng.random() < _SERVER_KILL_SHARE else _PARTS))
                pause.wait(rng.uniform(0, _MAX_LIFE_SECONDS))
        finally:
            for part in system.parts.values():
                part.kill()
                part.start()
            over.set()
        rated = sum(rider.result() for rider in riders)
    assert rated > _KILLS
    wait_for("all data to agree", lambda: not disagreements(system))
    assert failed_checks(system) == []
    assert len(system.ratings()) == rated


def _kill(system: System, name: str) -> None:
    if name in _PARTS:
        system.parts[name].kill()
        system.parts[name].launch()
    elif name == "kafka":
        system.kafka.kill(0)
        system.kafka.start(0)
    else:
        server = system.redis if name == "redis" else system.postgres
        server.kill()
        server.start()
