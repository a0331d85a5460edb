"""The world of a chaos run: services, a lake and what was sent to it, and a second lake on an object store."""

import itertools
import logging
import os
import random
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from pipelines.bus.topics import ensure_topic
from pipelines.emit.producer import Record
from pipelines.lake.tables import create_lake, is_lake
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.settings import Settings
from tests.crashes.kills import child, kill_all_after
from tests.draining import query, send, valid_records, with_ingest
from tests.poison import Poisoner, with_writers
from tests.services.kafka_cluster import KafkaCluster
from tests.services.object_store import BUCKET, ObjectStore
from tests.services.proxy import Proxy
from tests.services.waiting import wait_for

MAX_SECONDS = 1.2
"""About the duration of the tasks at first, so that most are killed and some end."""
_PATIENCE_SECONDS = 400.0
"""Allows for four times the load of the machine; an idle one needs less than a tenth."""
_FIRST = 1_000_000_000
"""The number of the first event outside the simulated world: all such ids have equal length."""


@dataclass(slots=True)
class Story:
    """What was sent and what happened, for the report."""

    rounds: int = 0
    done: Counter[str] = field(default_factory=Counter[str])
    """Faults applied, by name."""
    kills: Counter[str] = field(default_factory=Counter[str])
    """Processes killed, by the tasks that ran at the same time."""
    unflushed: Counter[str] = field(default_factory=Counter[str])
    """Unflushed files and names at power cuts, by what became of them."""
    sent: int = 0
    distinct: int = 0
    """Distinct events that were sent and could be read: they must be in the lake."""
    remote: int = 0
    """The same for the lake on the object store."""
    poison: int = 0
    """Records and batches of the hostile producer."""
    letters: set[int] = field(default_factory=set[int])
    """Offsets in their topic partition that must be dead letters."""
    unreadable: int = 0
    """Events that a broker lost before they were read."""
    losses: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Losses that must be in the commits table: the topic, and the number of records never read."""


@dataclass(slots=True)
class World:
    """The lake under test, `settings`, and the services that faults are applied to."""

    folder: Path
    settings: Settings
    """Of the embedded broker and cache."""
    remote: Settings
    """Of a lake on an object store behind `proxy`, fed from a topic of its own."""
    cluster: KafkaCluster
    """A broker whose logs can be cut: its topics feed the lake, too."""
    proxy: Proxy
    environment: dict[str, str]
    """How children find the object store, behind `proxy`; this process goes to it directly."""
    rng: random.Random
    outage_seconds: float
    hostile: Poisoner
    story: Story = field(default_factory=Story)
    buses: list[Settings] = field(default_factory=list[Settings])
    """Of the topics of `cluster` that were drained into the lake."""
    files: list[Path] = field(default_factory=list[Path])
    """Files of history that were loaded, or begun to be."""
    seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of simulated worlds: each has events of its own."""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(_FIRST))

    @property
    def log(self) -> Path:
        """The output of child processes."""
        return self.folder / "children.log"

    def fresh(self, count: int) -> list[Record]:
        """Return records of `count` new events."""
        return valid_records(itertools.islice(self.numbers, count))

    def send(self, records: Sequence[Record]) -> None:
        """Send fresh records to the embedded broker, and count them."""
        self.story.sent, self.story.distinct = self.story.sent + len(records), self.story.distinct + len(records)
        send(self.settings, records)

    def kill_during(self, running: Sequence[Any], settings: Settings | None = None) -> None:
        """Run tasks, and kill all of them at a random moment."""
        seconds = self.rng.uniform(0, MAX_SECONDS)
        killed = kill_all_after(seconds, self.log, running, settings or self.settings)
        self.story.kills[" + ".join(map(_name, running))] += killed

    @contextmanager
    def beside(self, task: Any, *arguments: Any) -> Generator[BaseProcess]:
        """Yield a process that runs a task, and kill it at the end; fail if it ended with an error."""
        with child(self.log, task, *arguments) as process:
            yield process
            assert process.exitcode in {0, None}, self.log.read_text()
        self.story.kills[_name(task)] += process.exitcode != 0

    def await_with(self, process: BaseProcess, what: str, predicate: Any) -> None:
        """Wait for a predicate that a process makes true; fail with its output if it ends with an error."""

        def is_there() -> bool:
            assert process.exitcode in {0, None}, f"{what}: {self.log.read_text()}"
            return bool(predicate())

        wait_for(what, is_there, _PATIENCE_SECONDS)


def _name(task: Any) -> str:
    """Return the name of a task; of a partial, the name of its innermost function."""
    inner = next((argument for argument in getattr(task, "args", ()) if callable(argument)), None)
    return _name(inner) if inner else getattr(task, "func", task).__name__


def has_all(settings: Settings, records: Sequence[Record]) -> bool:
    """Return whether the lake has the events of these fresh records."""
    first, last = (int(_number(record)) for record in (records[0], records[-1]))
    sql = f"SELECT count(*) FROM events WHERE event_id BETWEEN 'e-{first}' AND 'e-{last}'"  # noqa: S608 - numbers
    return query(settings, sql) == [(len(records),)]


def exists_with_all(settings: Settings, records: Sequence[Record]) -> bool:
    """Return whether the lake exists and has these events; a stream creates it at its start."""
    return is_lake(settings.lake_root) and has_all(settings, records)


def _number(record: Record) -> bytes:
    assert record.value is not None
    at = record.value.index(b"e-") + 2
    return record.value[at : at + len(str(_FIRST))]


@contextmanager
def open_world(folder: Path, rng: random.Random, outage_seconds: float) -> Generator[World]:
    """Yield empty lakes, with brokers, a cache and an object store that stop at the end of the block."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    bare = with_ingest(Settings(data_dir=folder), max_batch_records=100)
    start(bare)
    with ExitStack() as opened:
        opened.callback(stop, bare)
        settings = with_writers(with_local_endpoints(bare), folder / "schemas")
        often = settings.reputation.model_copy(update={"derive_interval_seconds": 1.0})
        settings = settings.model_copy(update={"reputation": often})
        (folder / "kafka").mkdir()
        cluster = opened.enter_context(KafkaCluster(folder / "kafka"))
        store = opened.enter_context(ObjectStore(folder))
        port = urlsplit(store.environment["AWS_ENDPOINT_URL"]).port
        assert port is not None
        proxy = opened.enter_context(Proxy(port))
        environment = store.environment | {"AWS_ENDPOINT_URL": f"http://{proxy.address}"}
        opened.enter_context(patch.dict(os.environ, store.environment))  # the proxy's thread waits for this one
        remote = _remote(settings, folder / "remote")
        create_lake(settings.lake_root)
        for bus in (settings, remote):
            ensure_topic(bus.kafka)
        hostile = Poisoner(settings, rng)
        yield World(folder, settings, remote, cluster, proxy, environment, rng, outage_seconds, hostile)


def _remote(settings: Settings, folder: Path) -> Settings:
    """Return settings of the lake on the object store: other topics, keys and folders, the same services."""
    kafka = settings.kafka.model_copy(update={"topic": "remote", "group_id": "remote", "partitions": 1})
    return settings.model_copy(
        update={
            "data_dir": folder,
            "kafka": kafka,
            "redis": settings.redis.model_copy(update={"prefix": "remote"}),
            "lake": settings.lake.model_copy(update={"uri": f"s3://{BUCKET}/remote/lake"}),
            "ingest": settings.ingest.model_copy(update={"max_batch_records": 10_000}),
        }
    )


def new_bus(world: World) -> Settings:
    """Return settings of a topic of one topic partition that does not exist yet, for the same lake."""
    name = f"cut-{len(world.buses)}"
    kafka = world.cluster.settings(topic=name, group_id=name, partitions=1)
    bus = world.settings.model_copy(update={"kafka": kafka})
    world.buses.append(bus)
    return bus
