"""The cost of a hanging webhook for the other branches, which should be zero (`isolated`).

One notifier on Apache Kafka has three destinations: a webhook that may hang, another webhook and a Redis stream. After
100 events are sent, the first time is when both other destinations have committed their delivery, the second when the
lake has the events. Rounds with and without the hanging webhook alternate.
"""

import os
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
from pydantic import SecretStr

from benchmarks.report import save_results
from pipelines.bus.topics import ensure_topic
from pipelines.settings import NotifySettings, RedisSettings, Settings
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.notify.notifiers import lag, notifying, stream, webhook
from tests.notify.receiver import SECRET, Receiver
from tests.services.kafka_cluster import KafkaCluster
from tests.services.redis_server import RedisServer
from tests.services.waiting import wait_for

_ROUNDS, _ROUND_SECONDS, _EVENTS = 2, 25.0, 100
_COLUMNS = ("circumstances", "times", "told p50 s", "told p95 s", "told worst s", "stored p50 s", "stored worst s")


def run(folder: Path) -> None:
    """Measure both conditions in several rounds."""
    os.environ["NOTIFY_TEST_SECRET"] = SECRET
    seconds: dict[str, list[tuple[float, float]]] = {"nothing hangs": [], "a webhook hangs": []}
    with _services(folder) as (kafka, redis):
        for number in range(_ROUNDS):
            for name in seconds:
                place = folder / f"{number}-{name.replace(' ', '-')}"
                place.mkdir()
                seconds[name] += _measure(place, kafka, redis, hangs=name == "a webhook hangs")
    rows = []
    for name, measured in seconds.items():
        delivered, stored = np.array(measured).T
        percentiles = [*np.percentile(delivered, (50, 95, 100)), *np.percentile(stored, (50, 100))]
        rows.append((name, len(measured), *map(float, percentiles)))
    save_results("isolation", _COLUMNS, rows, "told p50 s", events_at_a_time=_EVENTS, seconds_a_round=_ROUND_SECONDS)


@contextmanager
def _services(folder: Path) -> Generator[tuple[KafkaCluster, RedisServer]]:
    for name in ("kafka", "redis"):
        (folder / name).mkdir()
    with KafkaCluster(folder / "kafka") as kafka, RedisServer(folder / "redis") as redis:
        yield kafka, redis


def _measure(folder: Path, kafka: KafkaCluster, redis: RedisServer, *, hangs: bool) -> list[tuple[float, float]]:
    topic = f"events-{uuid4().hex[:8]}"
    settings = with_ingest(
        Settings(
            data_dir=folder / "data",
            kafka=kafka.settings(topic=topic, group_id=topic, partitions=4),
            redis=RedisSettings(url=SecretStr(redis.url())),
            notify=NotifySettings(group_id=f"notify-{topic}", max_in_flight=60, stop_seconds=1.0),
        )
    )
    ensure_topic(settings.kafka)
    measured: list[tuple[float, float]] = []
    with ExitStack() as stack:
        hanging, healthy = (stack.enter_context(Receiver()) for _ in range(2))
        if hangs:
            hanging.answer = hanging.hang
        rules = folder / "notify.toml"
        destinations = [webhook("trouble", hanging.url, "request_seconds = 600"), webhook("ops", healthy.url)]
        rules.write_text("\n".join([*destinations, stream("app", f"{topic}.told")]))
        stack.enter_context(notifying(settings, rules))
        _measure_delivery(settings, 0)  # the first waits for the consumer groups to form
        until = time.monotonic() + _ROUND_SECONDS
        while time.monotonic() < until:
            measured.append(_measure_delivery(settings, 1 + len(measured)))
    return measured


def _measure_delivery(settings: Settings, number: int) -> tuple[float, float]:
    """Send some events; return the seconds until the other destinations, and until the lake, had them."""
    send(settings, valid_records(range(number * _EVENTS, (number + 1) * _EVENTS)))
    begun = time.monotonic()
    wait_for("delivery to the other destinations", lambda: lag(settings, "ops") + lag(settings, "app") == 0, 60)
    delivered = time.monotonic()
    drain_all(settings)
    return delivered - begun, time.monotonic() - delivered
