"""From the producer's clock to the reader's: how old an event is when its user's document in Redis shows it.

`karmalake stream` in a process of its own, a steady flow of events, a lake of a million users; some of the events are
probes, one user each, whom a reader looks up again and again until the event counts. A notebook asks the warehouse and
the lake a question a second meanwhile, and small files are merged as always. All on one machine, which also runs the
broker, the cache, the producer (librdkafka, so that it takes little of the machine) and the reader.
"""

import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

import duckdb
import pyarrow.parquet as pq
import redis

from benchmarks.lakes import add_events, make_lake
from benchmarks.peers.environment import peers_python
from benchmarks.peers.protocol import REPOSITORY, Job
from benchmarks.report import MeasurementError, demand_count, keep
from pipelines import open_warehouse
from pipelines.bus.topics import ensure_topic
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.lake.tables import Lake, open_lake
from pipelines.lake.upkeep import MAINTENANCE
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings

USERS, EVENTS = 1_000_000, 2_000_000
RATES = (1_000, 3_000, 10_000)
PROBES_PER_SECOND, SECONDS, WARM_UP_SECONDS = 40, 45, 25
_PREPARING_SECONDS = 10
_READ_EVERY_SECONDS = 0.02
_PATIENCE_SECONDS = 30
_COLUMNS = ("events_per_second", "probes", "p50", "p90", "p99", "max", "queries", "query_p50", "compactions")
Sent: TypeAlias = SimpleQueue[tuple[str, float] | int]
# A probe is the only event of its user; times are those at which the events are to be sent.
_EVENTS = """
SELECT
    md5($run || i::VARCHAR) AS event_id,
    CASE
        WHEN i % $every = 0 THEN 'probe-' || $run || i
        ELSE 'user-' || hash(i * 31 + hash($run)) % $users
    END AS user_id,
    'DriverRated' AS action_type,
    to_timestamp($begin + i / $rate) AS event_time,
    MAP {'rating': (1 + hash(i) % 5)::VARCHAR, 'rater_id': 'user-' || hash(i) % $users} AS metadata
FROM range($count) AS numbers(i)
"""
_ACTIONS_OF_TODAY = """
SELECT action_type, count(*) AS events
FROM events
WHERE event_time >= ?
GROUP BY ALL
"""


def run(folder: Path) -> None:
    """Fill a lake, serve it, then stream at each rate for more than a minute, of which the beginning does not count."""
    bare = Settings(data_dir=folder / "data")
    start(bare)
    try:
        settings = with_local_endpoints(bare)
        prepare(settings)
        rows = [measure(folder, settings, rate) for rate in RATES]
        keep("freshness", _COLUMNS, rows, "p50", users=USERS, events=EVENTS)
    finally:
        stop(bare)


def prepare(settings: Settings) -> None:
    """Make the lake, the warehouse and the documents."""
    ensure_topic(settings.kafka)
    lake = make_lake(settings.lake_root, EVENTS, USERS)
    refresh_warehouse(settings)
    add_events(lake, 1_000, USERS, int(datetime.now(UTC).timestamp()) * 1_000_000, 1)
    refresh_warehouse(settings)
    published = publish_warehouse(settings)
    print(f"{published.written:,} documents served, {EVENTS:,} events in the lake")


def measure(folder: Path, settings: Settings, rate: int) -> tuple[int | float, ...]:
    """Return a row of the table: what so many events a second, a notebook and compaction came to."""
    begin = time.time() + _PREPARING_SECONDS
    records = _write_records(folder, rate, begin)
    lake = open_lake(settings.lake_root)
    before = lake.table("events").version()
    assert settings.kafka.bootstrap_servers is not None  # noqa: S101 - tells the type checker
    job = Job(settings.kafka.bootstrap_servers, settings.kafka.topic, records, str(folder))
    with _streaming(folder, settings), _notebook(settings, begin + WARM_UP_SECONDS) as asked:
        ages = _watch(settings, _sending(job))
    print("".join((folder / "stream.log").read_text().splitlines(keepends=True)[-4:]))
    cuts = statistics.quantiles(ages, n=100)
    seconds = asked()
    took = statistics.median(seconds)
    return rate, len(ages), cuts[49], cuts[89], cuts[98], max(ages), len(seconds), took, _compactions(lake, before)


def _write_records(folder: Path, rate: int, begin: float) -> int:
    """Write the records of a run and the times at which they are to be sent; return how many there are."""
    count, every = rate * (WARM_UP_SECONDS + SECONDS), rate // PROBES_PER_SECOND
    values = {"run": f"{begin:.0f}-", "begin": begin, "rate": rate, "every": every, "users": USERS, "count": count}
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.sql(_EVENTS, params=values).to_arrow_table().cast(EVENT)
        connection.register("sent", rows.select(["user_id", "event_time"]).append_column("value", encode(rows)))
        query = """
            SELECT
                CAST(user_id AS BLOB) AS key,
                value,
                epoch_us(event_time) / 1e6 AS due,
                user_id LIKE 'probe-%' AND due >= $from_then_on AS is_probe
            FROM sent
        """
        records = connection.sql(query, params={"from_then_on": begin + WARM_UP_SECONDS}).to_arrow_table()
    pq.write_table(records, folder / "paced.parquet")
    return count


@contextmanager
def _streaming(folder: Path, settings: Settings) -> Generator[None]:
    environment = os.environ | {"KARMALAKE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "stream"]
    with (
        (folder / "stream.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


def _sending(job: Job) -> Sent:
    """Begin to send, and return where probes are told of when they are sent; the exit code follows."""
    sent: Sent = SimpleQueue()
    command = [peers_python(), "-m", "benchmarks.peers.pacing"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - tells the type checker
    process.stdin.write(json.dumps(asdict(job)) + "\n")
    process.stdin.close()

    def tell() -> None:
        with process:
            for line in process.stdout or ():
                user, moment = line.split()
                sent.put((user, float(moment)))
        sent.put(process.returncode)

    Thread(target=tell, daemon=True).start()
    return sent


def _watch(settings: Settings, sent: Sent) -> list[float]:
    """Return the age of each probe when its document was first there."""
    assert settings.redis.url is not None  # noqa: S101 - tells the type checker
    client = redis.Redis.from_url(settings.redis.url.get_secret_value())
    waiting: dict[str, float] = {}
    ages: list[float] = []
    deadline = None
    while deadline is None or waiting:
        while not sent.empty():
            item = sent.get()
            if isinstance(item, int):
                demand_count("exit code of the producer", item, 0)
                deadline = time.time() + _PATIENCE_SECONDS
            else:
                waiting[item[0]] = item[1]
        if deadline and time.time() > deadline:
            raise MeasurementError(f"{len(waiting)} probes never came")
        users = list(waiting)
        found = client.mget([f"{settings.redis.prefix}:{user}" for user in users]) if users else []
        now = time.time()
        for user, document in zip(users, found, strict=True):
            if document is not None:
                ages.append(now - waiting.pop(user))
        time.sleep(_READ_EVERY_SECONDS)
    return ages


@contextmanager
def _notebook(settings: Settings, begin: float) -> Generator[Callable[[], list[float]]]:
    """Query from a process of its own meanwhile; yield what returns, afterwards, the seconds of each query."""
    context = multiprocessing.get_context("spawn")
    ending, told = context.Event(), context.SimpleQueue()
    process = context.Process(target=_ask, args=(settings.data_dir, begin, ending, told))
    process.start()
    try:
        yield told.get
    finally:
        ending.set()


def _ask(data_dir: Path, begin: float, ending: Event, told: "multiprocessing.SimpleQueue[list[float]]") -> None:
    """Ask one question after the other, one a second, each of the warehouse that is published by then."""
    questions: list[Callable[[Warehouse], object]] = [
        lambda warehouse: warehouse.trend("daily"),
        lambda warehouse: warehouse.explain(f"user-{random.randrange(USERS)}"),  # noqa: S311 - anybody will do
        lambda warehouse: warehouse.sql(_ACTIONS_OF_TODAY, [warehouse.info.as_of - timedelta(days=1)]),
        lambda warehouse: warehouse.trend("activity"),
    ]
    seconds: list[float] = []
    ending.wait(begin - time.time())
    with open_warehouse(data_dir) as warehouse:
        while not ending.wait(1.0):
            begun = time.perf_counter()
            warehouse.refresh()
            questions[len(seconds) % len(questions)](warehouse)
            seconds.append(time.perf_counter() - begun)
    told.put(seconds)


def _compactions(lake: Lake, since: int) -> int:
    """Return how often files of `events` were merged since a version."""
    commits = lake.log(since, lake.table("events").version())
    marks = (action.get("txn", {}).get("appId") for _, actions in commits for action in actions)
    return sum(mark == MAINTENANCE for mark in marks)
