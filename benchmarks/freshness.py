"""From the producer's clock to the reader's: how old an event is when its user's document in Redis shows it.

`karmalake stream` in a process of its own, 10,000 events a second, a lake of many users; some of the events are
probes, one user each, whom a reader looks up again and again until the event counts. All on one machine, which also
runs the broker, the cache, the producer and the reader.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import redis

from benchmarks.lakes import make_lake
from benchmarks.report import keep
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import Record, produce_records
from pipelines.emit.topics import ensure_topic
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.settings import KafkaSettings, Settings

USERS, EVENTS = 1_000_000, 2_000_000
PER_SECOND, PROBES_PER_SECOND, SECONDS, WARM_UP_SECONDS = 10_000, 40, 60, 15
_SLICES = 20
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
    """Fill a lake, serve it, then stream for a minute and a quarter; the first seconds do not count."""
    bare = Settings(data_dir=folder / "data")
    start(bare)
    try:
        settings = with_local_endpoints(bare)
        ensure_topic(settings.kafka)
        make_lake(settings.lake_dir, EVENTS, USERS)
        refresh_warehouse(settings)
        published = publish_warehouse(settings)
        print(f"{published.written:,} documents served, {EVENTS:,} events in the lake")
        keep("freshness", ("seconds", "probes", "p50", "p90", "p99", "max"), [_measure(folder, settings)],
             users=USERS, events=EVENTS, events_per_second=PER_SECOND)  # fmt: skip
    finally:
        stop(bare)


def _measure(folder: Path, settings: Settings) -> tuple[int, int, float, float, float, float]:
    environment = os.environ | {"KARMALAKE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "stream"]
    with (
        (folder / "stream.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        context = multiprocessing.get_context("spawn")
        sent = context.Queue()
        sender = context.Process(target=_send, args=(settings.kafka, sent))
        sender.start()
        ages = _watch(settings, sent)
        sender.join()
        process.terminate()
    print((folder / "stream.log").read_text()[-1500:])
    ages.sort()
    cuts = statistics.quantiles(ages, n=100)
    return SECONDS, len(ages), cuts[49], cuts[89], cuts[98], ages[-1]


def _send(kafka: KafkaSettings, sent: "multiprocessing.Queue[tuple[str, float] | None]") -> None:
    """Send evenly; tell of each probe when it was handed to the client."""
    produce_records(kafka, _paced(sent))
    sent.put(None)


def _paced(sent: "multiprocessing.Queue[tuple[str, float] | None]"):
    begun = time.time()
    every = PER_SECOND // PROBES_PER_SECOND
    for second in range(SECONDS + WARM_UP_SECONDS):
        with duckdb.connect() as connection:
            values = {"run": f"{begun}-{second}-", "salt": second, "users": USERS, "count": PER_SECOND}
            rows = connection.sql(_EVENTS, params=values).to_arrow_table().cast(EVENT)
        users = rows["user_id"].to_pylist()
        for number in range(0, PER_SECOND, every):
            users[number] = f"probe-{second}-{number}"
        rows = rows.set_column(1, "user_id", pa.array(users))
        for number, (user, value) in enumerate(zip(users, encode(rows).to_pylist(), strict=True)):
            if number % (PER_SECOND // _SLICES) == 0:
                pause = begun + second + number / PER_SECOND - time.time()
                if pause > 0:
                    time.sleep(pause)
            yield Record(user.encode(), value)
            if number % every == 0 and second >= WARM_UP_SECONDS:
                sent.put((user, time.time()))


def _watch(settings: Settings, sent: "multiprocessing.Queue[tuple[str, float] | None]") -> list[float]:
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
