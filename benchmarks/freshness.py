"""End-to-end latency: the age of an event when its user's document in Redis first includes it.

`karmalake stream` runs in its own process on a steady flow of events and a lake of a million users, by policy and rate.
Some events are probes, each for a new user, which a reader polls until the document appears. Meanwhile a notebook
queries the warehouse and the lake once a second, and small files are compacted as usual. One machine runs everything,
including the broker, the cache, the producer (librdkafka, which needs little CPU) and the reader.

Under `ride-hailing-last-50`, the ratings are about one user in fifty, so that each of these has more than 50. The step
of `decayed-karma` is four minutes instead of an hour, and one begins during the measured time: then the documents of
all users change. The earlier events end at `lakes.AS_OF`, so none leaves a window.
"""

import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, Timer
from typing import TypeAlias

import duckdb
import psutil
import pyarrow.parquet as pq
import redis

from benchmarks.lakes import add_events, make_lake
from benchmarks.peers.environment import peers_python
from benchmarks.peers.protocol import REPOSITORY, Job
from benchmarks.report import MeasurementError, require_count, save_results
from karmalake import open_warehouse
from pipelines.bus.topics import ensure_topic
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.lake.tables import Lake, open_lake
from pipelines.lake.upkeep import MAINTENANCE
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.policy_file import locate_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import ReputationSettings, Settings

PROBES_PER_SECOND, SECONDS, WARM_UP_SECONDS = 40, 45, 25
_PREPARING_SECONDS = 10
_START_SECONDS = 600
_READ_EVERY_SECONDS = 0.02
_TIMEOUT_SECONDS = 30
COLUMNS = (
    "policy", "users", "events", "rated_users", "events_per_second", "probes", "p50", "p90", "p99", "max", "queries",
    "query_p50", "compactions", "stream_cores", "machine_cores",
)  # fmt: skip
JEMALLOC = find_library("jemalloc")
"""The allocator of `stream`, as in the image; None if it is not installed, and glibc's is used."""
_DECAYING, _STEP_MINUTES = "decayed-karma", 4
_ACTIONS = {
    "default": ["DriverRated"],
    _DECAYING: ["UserRated"],
    "ride-hailing-last-50": ["DriverRated", "TransactionCompleted"],
}
"""The action types of the flow, in turns; two events in a row have the same ride."""
Sent: TypeAlias = SimpleQueue[tuple[str, float] | int]
# A probe is the only event of its user; event_time is the time at which to send the event.
_EVENTS = """
SELECT
    md5($run || i::VARCHAR) AS event_id,
    CASE
        WHEN i % $every = 0 THEN 'probe-' || $run || i
        ELSE 'user-' || hash(i * 31 + hash($run)) % if($actions[1 + i % len($actions)] = 'DriverRated', $rated, $users)
    END AS user_id,
    $actions[1 + i % len($actions)] AS action_type,
    to_timestamp($begin + i / $rate) AS event_time,
    MAP {
        'rating': (1 + hash(i) % 5)::VARCHAR,
        'rater_id': 'user-' || hash(i) % $users,
        'ride_id': $run || i // 2
    } AS metadata
FROM range($count) AS numbers(i)
"""
_ACTIONS_OF_TODAY = """
SELECT action_type, count(*) AS events
FROM events
WHERE event_time >= ?
GROUP BY ALL
"""


@dataclass(frozen=True)
class Case:
    """A policy, and the lake that the events are added to."""

    policy: str = "default"
    users: int = 1_000_000
    events: int = 2_000_000
    rated: int | None = None
    """How many of the users ratings are about; None: all."""


def run(folder: Path) -> None:
    """Measure the default policy at four rates, and at one those with decay and with ratings of completed rides."""
    rows = measure(folder / "default", Case(), (1_000, 3_000, 5_000, 10_000))
    for case in (Case(_DECAYING), Case("ride-hailing-last-50", rated=20_000)):
        rows += measure(folder / case.policy, case, (1_000,))
    save_results("freshness", COLUMNS, rows, "p50", malloc=JEMALLOC or "glibc")


def measure(folder: Path, case: Case, rates: Iterable[int]) -> list[tuple[object, ...]]:
    """Fill a lake, serve it, then stream at each rate for over a minute; the warm-up is not measured."""
    bare = Settings(data_dir=folder / "data", reputation=ReputationSettings(policy=_policy(folder, case)))
    start(bare)
    try:
        settings = with_local_endpoints(bare)
        _prepare(settings, case)
        return [_measure(folder, settings, case, rate) for rate in rates]
    finally:
        stop(bare)


def _policy(folder: Path, case: Case) -> str:
    """Return the policy of a case: its name, or the file of the one that decays, with shorter steps."""
    if case.policy != _DECAYING:
        return case.policy
    steps = f"decay_step_minutes = {_STEP_MINUTES}\n"
    folder.mkdir(parents=True)
    file = folder / f"{_DECAYING}.toml"
    file.write_text(steps + locate_policy(_DECAYING).read_text(encoding="utf-8"), encoding="utf-8")
    return str(file)


def _begin(case: Case) -> float:
    """Return when to begin to send, in seconds since 1970: a step of decay then begins amid the measured time."""
    earliest = time.time() + _PREPARING_SECONDS
    if case.policy != _DECAYING:
        return earliest
    return earliest + -(earliest + WARM_UP_SECONDS + SECONDS / 2) % (_STEP_MINUTES * 60)


def _prepare(settings: Settings, case: Case) -> None:
    """Create the lake, the warehouse and the documents."""
    peers_python()  # installs them, the first time
    ensure_topic(settings.kafka)
    with _timed("events written"):
        lake = make_lake(settings.lake_root, case.events, case.users, case.rated)
    with _timed("warehouse built"):
        refresh_warehouse(settings)
    add_events(lake, 1_000, case.users, int(datetime.now(UTC).timestamp()) * 1_000_000, 1, case.rated)
    with _timed("histories built, and a refresh"):
        refresh_warehouse(settings)
    with _timed("documents published"):
        published = publish_warehouse(settings)
    print(f"{case.policy}: {published.written:,} documents served, {case.events:,} events in the lake")


@contextmanager
def _timed(done: str) -> Generator[None]:
    """Print how long a part of the preparation took, and the largest memory of this process until then."""
    begun = time.perf_counter()
    yield
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{done} in {time.perf_counter() - begun:,.0f} s; peak memory so far {peak_mb:,} MiB", flush=True)


def _measure(folder: Path, settings: Settings, case: Case, rate: int) -> tuple[object, ...]:
    """Return a row of the results for a rate of events per second."""
    lake = open_lake(settings.lake_root)
    before = lake.table("events").version()
    with _streaming(folder, settings) as process:
        with _timed("stream started"):
            _wait_until_served(folder, process)
        begin = _begin(case)
        job = _write_records(folder, settings, case, rate, begin)
        measured_from = begin + WARM_UP_SECONDS
        with (
            _notebook(settings, measured_from) as query_seconds,
            _cores(process, measured_from) as cores,
        ):
            ages = _watch(settings, _sending(job))
            used = cores()
        print(f"stream now uses {process.memory_info().rss // 2**20:,} MiB")
    cuts = statistics.quantiles(ages, n=100)
    seconds = query_seconds()
    measured = rate, len(ages), cuts[49], cuts[89], cuts[98], max(ages), len(seconds), statistics.median(seconds)
    row = *astuple(case), *measured, _compactions(lake, before), *used
    print(dict(zip(COLUMNS, row, strict=True)))
    return row


def _wait_until_served(folder: Path, process: psutil.Process) -> None:
    """Return when `stream` has compared the documents of all users, which takes longer the more there are."""
    deadline = time.monotonic() + _START_SECONDS
    while "served version" not in (log := (folder / "stream.log").read_text()):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE or time.monotonic() > deadline:
            raise MeasurementError(f"stream did not start within {_START_SECONDS} s: {log[-300:]}")
        time.sleep(0.1)


def _write_records(folder: Path, settings: Settings, case: Case, rate: int, begin: float) -> Job:
    """Write the records of a run with their send times; return the job of sending them."""
    count, every = rate * (WARM_UP_SECONDS + SECONDS), rate // PROBES_PER_SECOND
    of_case = {"users": case.users, "rated": case.rated or case.users, "actions": _ACTIONS[case.policy]}
    values = {"run": f"{begin:.0f}-", "begin": begin, "rate": rate, "every": every, "count": count, **of_case}
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
    assert settings.kafka.bootstrap_servers is not None  # noqa: S101 - tells the type checker
    return Job(settings.kafka.bootstrap_servers, settings.kafka.topic, count, str(folder))


@contextmanager
def _streaming(folder: Path, settings: Settings) -> Generator[psutil.Process]:
    environment = os.environ | {
        "KARMALAKE_DATA_DIR": str(settings.data_dir),
        "KARMALAKE_REPUTATION_POLICY": settings.reputation.policy,
        "LD_PRELOAD": JEMALLOC or "",
    }
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "stream"]
    with (
        (folder / "stream.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()
            print("".join((folder / "stream.log").read_text().splitlines(keepends=True)[-4:]))


@contextmanager
def _cores(process: psutil.Process, begin: float) -> Generator[Callable[[], tuple[float, float]]]:
    """Yield a function that returns the cores used since `begin`, by the process and by the machine."""

    def now() -> tuple[float, float, float]:
        own, all_cpus = process.cpu_times(), psutil.cpu_times()
        busy = sum(all_cpus) - all_cpus.idle - getattr(all_cpus, "iowait", 0.0)
        return time.time(), own.user + own.system, busy

    first: list[tuple[float, float, float]] = []
    timer = Timer(begin - time.time(), lambda: first.append(now()))
    timer.start()

    def since() -> tuple[float, float]:
        seconds, own, machine = (after - before for before, after in zip(first[0], now(), strict=True))
        return own / seconds, machine / seconds

    try:
        yield since
    finally:
        timer.cancel()


def _sending(job: Job) -> Sent:
    """Start sending; return a queue of (user, send time) of each probe, with the exit code at the end."""
    sent: Sent = SimpleQueue()
    command = [peers_python(), "-m", "benchmarks.peers.paced_producer"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - tells the type checker
    process.stdin.write(json.dumps(asdict(job)) + "\n")
    process.stdin.close()

    def forward() -> None:
        with process:
            for line in process.stdout or ():
                user, moment = line.split()
                sent.put((user, float(moment)))
        sent.put(process.returncode)

    Thread(target=forward, daemon=True).start()
    return sent


def _watch(settings: Settings, sent: Sent) -> list[float]:
    """Return the age of each probe, in seconds, when its document first appeared."""
    assert settings.redis.url is not None  # noqa: S101 - tells the type checker
    client = redis.Redis.from_url(settings.redis.url.get_secret_value())
    waiting: dict[str, float] = {}
    ages: list[float] = []
    deadline = None
    while deadline is None or waiting:
        while not sent.empty():
            item = sent.get()
            if isinstance(item, int):
                require_count("exit code of the producer", item, 0)
                deadline = time.time() + _TIMEOUT_SECONDS
            else:
                waiting[item[0]] = item[1]
        if deadline and time.time() > deadline:
            raise MeasurementError(f"{len(waiting)} probes never appeared")
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
    """Run queries in another process; yield a function that returns the seconds of each query after the block."""
    context = multiprocessing.get_context("spawn")
    ending, results = context.Event(), context.SimpleQueue()
    process = context.Process(target=_run_queries, args=(settings.data_dir, begin, ending, results))
    process.start()
    try:
        yield results.get
    finally:
        ending.set()


def _run_queries(
    data_dir: Path, begin: float, ending: Event, results: "multiprocessing.SimpleQueue[list[float]]"
) -> None:
    """Run one query a second, each on the warehouse published last."""
    users: list[str] = []
    queries: list[Callable[[Warehouse], object]] = [
        lambda warehouse: warehouse.trend("daily"),
        lambda warehouse: warehouse.explain(random.choice(users)),  # noqa: S311 - any user
        lambda warehouse: warehouse.sql(_ACTIONS_OF_TODAY, [warehouse.info.as_of - timedelta(days=1)]),
        lambda warehouse: warehouse.trend("activity"),
    ]
    seconds: list[float] = []
    ending.wait(begin - time.time())
    with open_warehouse(data_dir) as warehouse:
        users += warehouse.sql("SELECT user_id FROM reputation USING SAMPLE 1000 ROWS")["user_id"].to_list()
        while not ending.wait(1.0):
            begun = time.perf_counter()
            warehouse.refresh()
            queries[len(seconds) % len(queries)](warehouse)
            seconds.append(time.perf_counter() - begun)
    results.put(seconds)


def _compactions(lake: Lake, since: int) -> int:
    """Return the number of compactions of `events` since a version."""
    commits = lake.read_log(since, lake.table("events").version())
    marks = (action.get("txn", {}).get("appId") for _, actions in commits for action in actions)
    return sum(mark == MAINTENANCE for mark in marks)
