"""The whole system on real servers: whatever is killed, every rating that the service kept is scored once."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.agreement import disagreements, failed_checks
from examples.riders import ride_on
from examples.system import System
from tests.services.requirements import require
from tests.services.waiting import wait_for

_KILLS = 100
_SEED = 7
_OURS = ("service", "relay", "stream", "notify")
_SERVERS = ("kafka", "redis", "postgres")
_SERVERS_SHARE = 0.15
_LONGEST_LIFE_SECONDS = 1.2
_RIDERS = 2


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """Return the system, running."""
    for service in ("kafka", "redis", "postgres"):
        require(service)
    with System(tmp_path) as system:
        yield system


@pytest.mark.jvm
@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.usefixtures("broken_connections")
def test_a_hundred_kills_change_nothing_in_the_end(system: System) -> None:
    """Service, relay, stream, notify, Kafka, Redis or PostgreSQL, at any moment (`once`, `nothing-lost`).

    Ours come back without being waited for, so they are killed while they start, too.
    """
    rng, over, pause = random.Random(_SEED), threading.Event(), threading.Event()  # noqa: S311 - reproducible
    with ThreadPoolExecutor(_RIDERS) as pool:
        riders = [pool.submit(ride_on, system.port, seed, lambda _kept: over.is_set(), 0.05) for seed in range(_RIDERS)]
        try:
            for _ in range(_KILLS):
                _kill(system, rng.choice(_SERVERS if rng.random() < _SERVERS_SHARE else _OURS))
                pause.wait(rng.uniform(0, _LONGEST_LIFE_SECONDS))
        finally:
            for part in system.parts.values():
                part.kill()
                part.start()
            over.set()
        kept = sum(rider.result() for rider in riders)
    assert kept > _KILLS
    wait_for("everything to agree", lambda: not disagreements(system))
    assert failed_checks(system) == []
    assert len(system.ratings()) == kept


def _kill(system: System, name: str) -> None:
    if name in _OURS:
        system.parts[name].kill()
        system.parts[name].launch()
    elif name == "kafka":
        system.kafka.kill(0)
        system.kafka.start(0)
    else:
        server = system.redis if name == "redis" else system.postgres
        server.kill()
        server.start()
