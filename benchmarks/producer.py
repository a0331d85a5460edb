"""Request latency of the example service, with everything up and with each part of karmalake down.

The example service on PostgreSQL writes a business row and an outbox row in one transaction; one rider sends one
request after the other over one connection. Rounds of all conditions alternate, so that a slow minute of the machine
does not affect only one of them.
"""

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.report import save_results
from examples.riders import Rider
from examples.system import System

_ROUNDS, _REQUESTS, _WARM_UP = 3, 400, 100
_COLUMNS = ("circumstances", "requests", "p50 ms", "p95 ms", "p99 ms", "worst ms")
_PERCENTILES = (50, 95, 99, 100)


def run(folder: Path) -> None:
    """Measure every condition in several rounds."""
    seconds: dict[str, list[float]] = {}
    with System(folder) as system:
        rider = Rider(system.port)
        _rate(rider, "warm", _WARM_UP)
        for number in range(_ROUNDS):
            for name, condition in _conditions(system).items():
                with condition():
                    seconds.setdefault(name, []).extend(_rate(rider, f"{number}-{name}".replace(" ", "-"), _REQUESTS))
        rider.close()
    rows = [
        (name, len(taken), *(np.percentile(taken, _PERCENTILES) * 1000).tolist()) for name, taken in seconds.items()
    ]
    save_results("producer", _COLUMNS, rows, "p99 ms", rounds=_ROUNDS)


def _rate(rider: Rider, name: str, requests: int) -> list[float]:
    taken: list[float] = []
    for number in range(requests):
        begun = time.perf_counter()
        if not rider.rate(f"{name}-{number}", f"driver-{number % 40}", "rider", 5):
            raise RuntimeError(f"the service did not store rating {number} with {name}")
        taken.append(time.perf_counter() - begun)
    return taken


def _conditions(system: System) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    parts = system.parts
    return {
        "everything up": lambda: _down(lambda: None, lambda: None),
        "stream and notify down": lambda: _down(
            lambda: [parts[name].kill() for name in ("stream", "notify")],
            lambda: [parts[name].start() for name in ("stream", "notify")],
        ),
        "relay down": lambda: _down(parts["relay"].kill, parts["relay"].start),
        "Redis down": lambda: _down(system.redis.kill, system.redis.start),
        "Kafka down": lambda: _down(lambda: system.kafka.kill(0), lambda: system.kafka.start(0)),
    }


@contextmanager
def _down(stop: Callable[[], object], start: Callable[[], object]) -> Generator[None]:
    """Stop a part for the duration of the block."""
    stop()
    try:
        yield
    finally:
        start()
