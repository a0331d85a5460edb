"""What is wrong with a set-up, and how to mend it. Looks at everything, changes nothing, shows no secret."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.emit.topics import describe_topic
from pipelines.errors import KarmalakeError
from pipelines.lag.measure import measure_lag
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.refresh import policy_in_force
from pipelines.reputation.warehouse import attach, stored_info
from pipelines.serving.read import published
from pipelines.settings import Settings

_LOW_DISK_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    subject: str
    good: bool
    sentence: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each part of the set-up, in the order of an event's way."""
    parts: dict[str, Callable[[Settings], str]] = {
        "disk": _disk,
        "broker": _broker,
        "lake": _lake,
        "policy": _policy,
        "warehouse": _warehouse,
        "cache": _cache,
    }
    for subject, look in parts.items():
        try:
            yield Finding(subject, good=True, sentence=look(settings))
        except KarmalakeError as error:
            yield Finding(subject, good=False, sentence=str(error))


def _disk(settings: Settings) -> str:
    folder = settings.data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < _LOW_DISK_BYTES:
        raise KarmalakeError(f"{free / 1024**3:.1f} GiB are free under {folder}: make room or set KARMALAKE_DATA_DIR")
    return f"{free / 1024**3:.0f} GiB free for {settings.data_dir}"


def _broker(settings: Settings) -> str:
    topic = describe_topic(settings.kafka)
    if topic is None:
        raise KarmalakeError(f"topic {settings.kafka.topic} does not exist: create it with `karmalake topics ensure`")
    found = f"topic {topic.name} with {len(topic.partitions)} partitions at {settings.kafka.bootstrap_servers}"
    return "; ".join([found, *topic.differences])


def _lake(settings: Settings) -> str:
    snapshot = take_snapshot(open_lake(settings.lake_root))
    behind = measure_lag(settings).lag_records
    return f"version {snapshot.version} in {len(snapshot.files['events'])} files; {behind:,} records behind the bus"


def _policy(settings: Settings) -> str:
    policy = policy_in_force(settings)
    return f"{policy.name}, version {policy.version}"


def _warehouse(settings: Settings) -> str:
    with attach(settings.warehouse_path) as connection:
        info = stored_info(connection)
    newest = open_lake(settings.lake_root).table("events").version()
    behind = f", {newest - info.lake_version} commits behind the lake" if newest > info.lake_version else ""
    return f"lake version {info.lake_version} as of {info.as_of:%Y-%m-%d %H:%M:%S} UTC{behind}"


def _cache(settings: Settings) -> str:
    info = published(settings)
    if info is None:
        raise KarmalakeError("Redis answers, but nothing is published: run `karmalake publish`")
    age = f"{info.staleness_seconds:,.0f} s"
    return f"{info.documents:,} documents of lake version {info.stamp.lake_version}, {age} old"
