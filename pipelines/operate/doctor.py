"""What is wrong with a set-up, and how to mend it. Looks at everything, changes nothing, shows no secret."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from pipelines.boundary.private_files import is_private
from pipelines.bus.topics import describe_topic
from pipelines.errors import ConfigurationError, KarmalakeError, RejectedError, ending_of, one_line
from pipelines.ingest.queue import open_queue
from pipelines.lake.halted import recall
from pipelines.lake.history import take_snapshot
from pipelines.lake.stores import is_remote
from pipelines.lake.tables import open_lake
from pipelines.operate.lag.measure import measure_lag
from pipelines.refresh import policy_in_force
from pipelines.reputation.warehouse import attach, stored_info
from pipelines.serving.read import published
from pipelines.settings import Settings

_LOW_DISK_BYTES = 2 * 1024**3
_DRIVERS = {"postgres": "postgresql", "postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
_MODULES = {
    "avro": ("fastavro", "pyruhvro"),
    "cassandra": ("cassandra",),
    "dashboard": ("marimo",),
    "mysql": ("pymysql",),
    "postgresql": ("psycopg",),
    "rabbitmq": ("pika",),
    "spark": ("pyspark", "sqlglot"),
    "sqs": ("boto3",),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    subject: str
    good: bool
    sentence: str
    code: str | None = None
    """Of the error, if something is wrong."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each part of the set-up, in the order of an event's way; what is wrong is said once."""
    said: set[str] = set()
    for subject, look in _parts(settings).items():
        finding = _look(subject, look, settings)
        if finding.good or finding.sentence not in said:
            yield finding
        said.add(finding.sentence)


def _parts(settings: Settings) -> dict[str, Callable[[Settings], str]]:
    bus = {"queue": _queue} if settings.queue.kind else {"broker": _broker}
    return {
        "disk": _disk,
        "packages": _packages,
        **({"outbox": _outbox} if settings.relay.database_url else {}),
        **bus,
        "lake": _lake,
        **({} if settings.queue.kind else {"lag": _lag, "halted": _halted}),
        **({"notify": _notify} if settings.notify.rules else {}),
        "policy": _policy,
        "warehouse": _warehouse,
        "cache": _cache,
    }


def _look(subject: str, look: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(subject, good=True, sentence=look(settings))
    except KarmalakeError as error:
        return Finding(subject, good=False, sentence=str(error), code=error.code)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.strerror else one_line(error)
        said = f"{what}: see who may read and write it"
        return Finding(subject, good=False, sentence=said, code=ending_of(error).code)


def _disk(settings: Settings) -> str:
    folder = settings.data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{folder} cannot be written to: let this user write there, or set KARMALAKE_DATA_DIR")
    free = shutil.disk_usage(folder).free
    if free < _LOW_DISK_BYTES:
        raise KarmalakeError(f"{free / 1024**3:.1f} GiB are free under {folder}: make room or set KARMALAKE_DATA_DIR")
    said = f"{free / 1024**3:.0f} GiB free for {settings.data_dir}"
    if is_private(settings.data_dir) or not settings.data_dir.exists():
        return said
    return f"{said}; other users can enter it: `chmod 700 {settings.data_dir}` unless they are to read it"


def _packages(settings: Settings) -> str:
    """Tell what the settings need and is not installed; what else there would be is a remark."""
    missing = [extra for extra, modules in _MODULES.items() if not all(map(find_spec, modules))]
    if needed := sorted(_needed(settings) & set(missing)):
        raise ConfigurationError(f"the settings need more packages: pip install 'karmalake[{','.join(needed)}]'")
    remarks = [f"not installed: {', '.join(missing)}"] if missing else []
    if "spark" not in missing and not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        remarks.append("`rebuild --engine spark` would need Java 17 or newer in the PATH")
    return "; ".join(["all that the settings need", *remarks])


def _needed(settings: Settings) -> set[str]:
    """Return the extras that the settings ask for."""
    url = settings.relay.database_url
    kind = url.get_secret_value().partition(":")[0].partition("+")[0] if url else ""
    asked = {
        "avro": settings.contract.format == "avro",
        "cassandra": bool(settings.cassandra.hosts),
        str(settings.queue.kind): settings.queue.kind is not None,
        _DRIVERS.get(kind, kind): kind in _DRIVERS,
    }
    return {extra for extra, needed in asked.items() if needed}


def _outbox(settings: Settings) -> str:
    from pipelines.emit.outbox.backlog import measure_backlog  # noqa: PLC0415 - slow, and few hosts have one

    assert settings.relay.database_url is not None  # noqa: S101 - tells the type checker
    waiting = measure_backlog(settings.relay.database_url.get_secret_value())
    if not waiting.rows:
        return "nothing waits in it"
    return (
        f"{waiting.rows:,} events wait in it, the oldest for {waiting.oldest_age_seconds:,.0f} s: "
        "is `karmalake relay` running?"
    )


def _queue(settings: Settings) -> str:
    with open_queue(settings) as queue:
        return f"{queue.client.name}, about {queue.behind():,} messages wait in it"


def _broker(settings: Settings) -> str:
    topic = describe_topic(settings.kafka)
    if topic is None:
        raise KarmalakeError(f"topic {settings.kafka.topic} does not exist: create it with `karmalake topics ensure`")
    found = f"topic {topic.name} with {len(topic.partitions)} partitions at {settings.kafka.bootstrap_servers}"
    return "; ".join([found, *topic.differences])


def _lake(settings: Settings) -> str:
    root = settings.lake_root
    if not is_remote(root):
        _readable(Path(root))
    snapshot = take_snapshot(open_lake(root))
    return f"version {snapshot.version} in {len(snapshot.files['events']):,} files"


def _readable(root: Path) -> None:
    """Look at the folder and the tables in it: Delta calls a table that it may not read one that is not there."""
    for folder in (root, *(root.glob("*/_delta_log") if os.access(root, os.R_OK | os.X_OK) else ())):
        if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"{folder} may not be read and written: run as the user whom it belongs to, or change its permissions"
            )


def _lag(settings: Settings) -> str:
    lag = measure_lag(settings)
    sentence = f"{lag.behind} behind the bus"
    if lag.lag_seconds is not None and lag.lag_seconds > settings.lag.max_seconds:
        raise KarmalakeError(f"{sentence}: run `karmalake stream` or `karmalake drain`; `karmalake lag` has advice")
    return sentence


def _halted(settings: Settings) -> str:
    halted = recall(settings)
    if halted:
        raise RejectedError("\n".join(map(str, halted)))
    return "no topic partition is halted for its rejected records"


def _notify(settings: Settings) -> str:
    from pipelines.notify.rule_file import load_rules  # noqa: PLC0415 - few hosts have one

    assert settings.notify.rules is not None  # noqa: S101 - tells the type checker
    return f"rules for {', '.join(load_rules(settings.notify.rules).destinations)}"


def _policy(settings: Settings) -> str:
    policy = policy_in_force(settings)
    return f"{policy.name}, version {policy.version}"


def _warehouse(settings: Settings) -> str:
    with attach(settings.warehouse_path) as connection:
        info = stored_info(connection)
    sentence = f"lake version {info.lake_version} as of {info.as_of:%Y-%m-%d %H:%M:%S} UTC"
    behind = open_lake(settings.lake_root).table("events").version() - info.lake_version
    if behind <= 0:
        return sentence
    sentence += f", {behind:,} commits behind the lake"
    if (datetime.now(UTC) - info.as_of).total_seconds() > settings.reputation.max_staleness_seconds:
        raise KarmalakeError(f"{sentence}: run `karmalake refresh`, or `karmalake stream` for good")
    return sentence


def _cache(settings: Settings) -> str:
    info = published(settings)
    if info is None:
        raise KarmalakeError("it answers, but nothing is published: run `karmalake publish`")
    age = info.staleness_seconds
    sentence = f"{info.documents:,} documents of lake version {info.stamp.lake_version}, {age:,.0f} s old"
    if age > settings.reputation.max_staleness_seconds:
        raise KarmalakeError(
            f"{sentence}, more than reputation.max_staleness_seconds: run `karmalake refresh` and `karmalake publish`, "
            "or `karmalake stream` for good"
        )
    return sentence
