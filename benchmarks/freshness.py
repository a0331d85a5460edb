"""From the producer's clock to the reader's: how old an event is when its user's document in Redis shows it.

`karmalake stream` in a process of its own, a steady flow of events, a lake of a million users; some of the events are
probes, one user each, whom a reader looks up again and again until the event counts. All on one machine, which also
runs the broker, the cache, the producer and the reader.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import duckdb
import pyarrow as pa
import redis

from benchmarks.lakes import add_events, make_lake
from benchmarks.report import keep
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import Record, produce_records
from pipelines.emit.topics import ensure_topic
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.settings import KafkaSettings, Settings

USERS, EVENTS = 1_000_000, 2_000_000
RATES = (1_000, 3_000, 10_000)
PROBES_PER_SECOND, SECONDS, WARM_UP_SECONDS = 40, 45, 25
_SLICES = 20
Sent: TypeAlias = "multiprocessing.Queue[tuple[str, float] | None]"
_EVENTS = """
SELECT
    md5($run || i::VARCHAR) AS event_id,
    'user-' || hash(i * 31 + $salt) % $users AS user_id,
    'DriverRated' AS action_type,
    now() AS event_time,
    MAP {'rating': (1 + hash(i) % 5)::VARCHAR, 'rater_id': 'user-' || hash(i) % $users} AS metadata
FROM range($count) AS numbers(i)
"""


def run(folder: Path) -> None:
    """Fill a lake, serve it, then stream at each rate for more than a minute, of which the beginning does not count."""
    bare = Settings(data_dir=folder / "data")
    start(bare)
    try:
        settings = with_local_endpoints(bare)
        ensure_topic(settings.kafka)
        lake = make_lake(settings.lake_root, EVENTS, USERS)
        refresh_warehouse(settings)
        add_events(lake, 1_000, USERS, int(datetime.now(UTC).timestamp()) * 1_000_000, 1)
        refresh_warehouse(settings)
        published = publish_warehouse(settings)
        print(f"{published.written:,} documents served, {EVENTS:,} events in the lake")
        rows = [_measure(folder, settings, rate) for rate in RATES]
        keep(
            "freshness",
            ("events_per_second", "probes", "p50", "p90", "p99", "max"),
            rows,
            "p50",
            users=USERS,
            events=EVENTS,
        )
    finally:
        stop(bare)


def _measure(folder: Path, settings: Settings, rate: int) -> tuple[int, int, float, float, float, float]:
    environment = os.environ | {"KARMALAKE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "stream"]
    with (
        (folder / "stream.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        context = multiprocessing.get_context("spawn")
        sent = context.Queue()
        sender = context.Process(target=_send, args=(settings.kafka, sent, rate))
        sender.start()
        ages = _watch(settings, sent)
        sender.join()
        process.terminate()
    print("".join((folder / "stream.log").read_text().splitlines(keepends=True)[-4:]))
    ages.sort()
    cuts = statistics.quantiles(ages, n=100)
    return rate, len(ages), cuts[49], cuts[89], cuts[98], ages[-1]


def _send(kafka: KafkaSettings, sent: "Sent", rate: int) -> None:
    """Send evenly; tell of each probe when it was handed to the client."""
    produce_records(kafka, _paced(sent, rate))
    sent.put(None)


def _paced(sent: "Sent", rate: int) -> Iterator[Record]:
    begun = time.time()
    every = rate // PROBES_PER_SECOND
    for second in range(SECONDS + WARM_UP_SECONDS):
        with duckdb.connect() as connection:
            values = {"run": f"{begun}-{second}-", "salt": second, "users": USERS, "count": rate}
            rows = connection.sql(_EVENTS, params=values).to_arrow_table().cast(EVENT)
        users = rows["user_id"].to_pylist()
        for number in range(0, rate, every):
            users[number] = f"probe-{rate}-{second}-{number}"
        rows = rows.set_column(1, "user_id", pa.array(users))
        for number, (user, value) in enumerate(zip(users, encode(rows).to_pylist(), strict=True)):
            if number % (rate // _SLICES) == 0:
                pause = begun + second + number / rate - time.time()
                if pause > 0:
                    time.sleep(pause)
            yield Record(user.encode(), value)
            if number % every == 0 and second >= WARM_UP_SECONDS:
                sent.put((user, time.time()))


def _watch(settings: Settings, sent: "Sent") -> list[float]:
    """Return the age of each probe when its document was first there."""
    assert settings.redis.url is not None  # noqa: S101 - tells the type checker
    client = redis.Redis.from_url(settings.redis.url.get_secret_value())
    waiting: dict[str, float] = {}
    ages: list[float] = []
    ended, deadline = False, None
    while not ended or waiting:
        while not sent.empty():
            item = sent.get()
            ended, deadline = (True, time.time() + 30) if item is None else (ended, deadline)
            if item is not None:
                waiting[item[0]] = item[1]
        if deadline and time.time() > deadline:
            print(f"{len(waiting)} probes never came")
            break
        users = list(waiting)
        found = client.mget([f"{settings.redis.prefix}:{user}" for user in users]) if users else []
        now = time.time()
        for user, document in zip(users, found, strict=True):
            if document is not None:
                ages.append(now - waiting.pop(user))
        time.sleep(0.02)
    return ages
