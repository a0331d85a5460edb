"""Diagnosis of an installation: what is wrong, and how to fix it. Reads only, and shows no secret."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from pipelines.boundary.extras import EXTRAS, extra, is_installed
from pipelines.boundary.private_files import explain_denial, is_private, message_of
from pipelines.boundary.text import amount
from pipelines.bus.topics import describe_topic
from pipelines.errors import ConfigurationError, KarmalakeError, RejectedError, exit_status_of
from pipelines.ingest.queue import open_queue
from pipelines.ingest.sources import CONTRACT, explain_missing_topic, selected_files, topic_sources
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.halted import load_halted
from pipelines.lake.stores import is_remote
from pipelines.lake.tables import open_lake
from pipelines.mapping.source_files import required_extras
from pipelines.operate.lag.measure import summarize
from pipelines.operate.lag.observe import measure_lags
from pipelines.refresh import policy_in_force, unknown_seeds_in_force
from pipelines.reputation.uncounted import uncounted_in_warehouse
from pipelines.reputation.warehouse_file import attach, stored_info
from pipelines.serving.read import evicting_policy, published
from pipelines.settings import Settings

_MIN_FREE_BYTES = 2 * 1024**3
_DRIVERS = {"postgres": "postgresql", "postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    ok: bool
    message: str
    code: str | None = None
    """The error code, if something is wrong."""


def diagnose(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each part of the installation, in data flow order; each problem is reported once."""
    reported: set[str] = set()
    for subject, check in _checks(settings).items():
        finding = _run_check(subject, check, settings)
        if finding.ok or finding.message not in reported:
            yield finding
        reported.add(finding.message)


def _checks(settings: Settings) -> dict[str, Callable[[Settings], str]]:
    bus = {"queue": _queue} if settings.queue.kind else {"broker": _broker}
    return {
        "disk": _disk,
        "packages": _packages,
        **({"outbox": _outbox} if settings.relay.database_url else {}),
        **bus,
        "lake": _lake,
        "lag": _lag,
        **({} if settings.queue.kind else {"halted": _halted}),
        **({"notify": _notify} if settings.notify.rules else {}),
        "policy": _policy,
        "warehouse": _warehouse,
        "cache": _cache,
    }


def _run_check(subject: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(subject, ok=True, message=check(settings))
    except (KarmalakeError, OSError, duckdb.Error) as error:
        return Finding(subject, ok=False, message=message_of(error), code=exit_status_of(error).code)


def _disk(settings: Settings) -> str:
    if _is_only_read(settings):
        return f"queries work, commands that write do not: {explain_denial(settings.data_dir)}"
    folder = settings.data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{folder} is not writable: {explain_denial(folder)}")
    free = shutil.disk_usage(folder).free
    if free < _MIN_FREE_BYTES:
        raise KarmalakeError(
            f"{free / 1024**3:.1f} GiB free under {folder}: free disk space, or set KARMALAKE_DATA_DIR"
        )
    sentence = f"{free / 1024**3:.0f} GiB free for {settings.data_dir}"
    if is_private(settings.data_dir) or not settings.data_dir.exists():
        return sentence
    return f"{sentence}; other users can read it: `chmod 700 {settings.data_dir}` unless that is intended"


def _is_only_read(settings: Settings) -> bool:
    """Return whether another user lets this one read the warehouse, and write nothing."""
    folder = settings.data_dir
    return (
        os.access(settings.warehouse_path, os.R_OK)
        and not os.access(folder, os.W_OK)
        and folder.stat().st_uid != os.geteuid()
    )


def _packages(settings: Settings) -> str:
    """Require the packages that the settings need; remark on optional ones that are not installed."""
    missing = [name for name in EXTRAS if not is_installed(name)]
    if needed := sorted(_required_extras(settings) & set(missing)):
        raise ConfigurationError(f"the settings need more packages: pip install 'karmalake[{','.join(needed)}]'")
    remarks = [f"not installed: {', '.join(missing)}"] if missing else []
    if "spark" not in missing and not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        remarks.append("`rebuild --engine spark` would need Java 17 or newer in the PATH")
    return "; ".join(["everything the settings need is installed", *remarks])


def _required_extras(settings: Settings) -> set[str]:
    """Return the extras that the settings require."""
    url = settings.relay.database_url
    scheme = url.get_secret_value().partition(":")[0].partition("+")[0] if url else ""
    required = {
        "avro": settings.contract.format == "avro" or (settings.relays_feed and settings.feed.format == "avro"),
        "cassandra": bool(settings.cassandra.hosts),
        str(settings.queue.kind): settings.queue.kind is not None,
        "outbox": url is not None,
        "s3": is_remote(settings.lake_root),
        **dict.fromkeys(_source_extras(settings), True),
        _DRIVERS.get(scheme, scheme): scheme in _DRIVERS,
    }
    return {name for name, needed in required.items() if needed}


def _source_extras(settings: Settings) -> set[str]:
    """Return the extras that the selected sources require."""
    return set[str]().union(*(required_extras(source) for source in selected_files(settings)))


def _outbox(settings: Settings) -> str:
    with extra("outbox", "reading the outbox"):
        from pipelines.emit.outbox.backlog import measure_backlog  # noqa: PLC0415

    assert settings.relay.database_url is not None  # noqa: S101 - narrows the type
    waiting = measure_backlog(settings.relay.database_url.get_secret_value())
    if not waiting.rows:
        return "no event is waiting"
    return (
        f"{amount(waiting.rows, 'event is waiting', 'events are waiting')}, the oldest for "
        f"{waiting.oldest_age_seconds:,.0f} s: "
        "is `karmalake relay` running?"
    )


def _queue(settings: Settings) -> str:
    with open_queue(settings) as queue:
        return f"reading {queue.client.name}"


def _broker(settings: Settings) -> str:
    topics = [part for name, source in topic_sources(settings).items() for part in _topic(settings, name, source)]
    return "; ".join(topics) or "no topic is ingested: sources.only names none"


def _topic(settings: Settings, name: str, source: str) -> list[str]:
    """Describe a topic; of our own, also its differences from the settings that `topics ensure` creates it with."""
    topic = describe_topic(settings.kafka.model_copy(update={"topic": name}))
    if topic is None:
        raise KarmalakeError(explain_missing_topic(settings, name))
    of_source = "" if source == CONTRACT else f" of the source {source}"
    partitions = amount(len(topic.partitions), "partition")
    found = f"topic {name}{of_source} with {partitions} at {settings.kafka.bootstrap_servers}"
    return [found, *(topic.differences if source == CONTRACT else ())]


def _lake(settings: Settings) -> str:
    root = settings.lake_root
    if not is_remote(root):
        _require_access(Path(root), os.R_OK | os.X_OK | (0 if _is_only_read(settings) else os.W_OK))
    snapshot = take_snapshot(open_lake(root))
    return f"version {snapshot.version} in {amount(len(snapshot.files['events']), 'file')}"


def _require_access(root: Path, wanted: int) -> None:
    """Require access to the folder and its tables: Delta reports an unreadable table as missing."""
    for folder in (root, *(root.glob("*/_delta_log") if os.access(root, os.R_OK | os.X_OK) else ())):
        if folder.exists() and not os.access(folder, wanted):
            raise ConfigurationError(f"{folder} is not accessible: {explain_denial(folder)}")


def _lag(settings: Settings) -> str:
    lags = measure_lags(settings)
    sentence = f"{summarize(lags)} behind the bus"
    if any((lag.lag_seconds or 0) > settings.lag.max_seconds for lag in lags):
        raise KarmalakeError(f"{sentence}: run `karmalake stream` or `karmalake drain`; `karmalake lag` has advice")
    return sentence


def _halted(settings: Settings) -> str:
    halted = load_halted(settings)
    if halted:
        raise RejectedError("\n".join(map(str, halted)))
    return "no topic partition is halted by rejected records"


def _notify(settings: Settings) -> str:
    from pipelines.notify.rule_file import load_rules  # noqa: PLC0415 - few hosts need it

    assert settings.notify.rules is not None  # noqa: S101 - narrows the type
    return f"rules for {', '.join(load_rules(settings.notify.rules).destinations)}"


def _policy(settings: Settings) -> str:
    policy = policy_in_force(settings)
    sentence = f"{policy.name}, version {policy.version}"
    return "; ".join([sentence, *unknown_seeds_in_force(settings)])


def _warehouse(settings: Settings) -> str:
    with attach(settings.warehouse_path) as connection:
        info = stored_info(connection)
        uncounted = [f"; {each}" for each in uncounted_in_warehouse(connection)]
    sentence = f"lake version {info.lake_version} as of {info.as_of:%Y-%m-%d %H:%M:%S} UTC{''.join(uncounted)}"
    behind = open_lake(settings.lake_root).table("events").version() - info.lake_version
    if behind <= 0:
        return sentence
    sentence += f", {amount(behind, 'commit')} behind the lake"
    if (datetime.now(UTC) - info.as_of).total_seconds() > settings.reputation.max_staleness_seconds:
        raise KarmalakeError(f"{sentence}: run `karmalake refresh`, or keep `karmalake stream` running")
    return sentence


def _cache(settings: Settings) -> str:
    if policy := evicting_policy(settings):
        raise ConfigurationError(
            f"Redis evicts documents when its memory is full (maxmemory-policy {policy}), and only `karmalake verify` "
            "would notice: set maxmemory-policy noeviction, then run `karmalake publish --full`"
        )
    info = published(settings)
    if info is None:
        raise KarmalakeError("it answers, but holds no publication: run `karmalake publish`")
    age = info.staleness_seconds
    sentence = f"{amount(info.documents, 'document')} of lake version {info.stamp.lake_version}, {age:,.0f} s old"
    if age > settings.reputation.max_staleness_seconds:
        raise KarmalakeError(
            f"{sentence}, more than reputation.max_staleness_seconds: run `karmalake refresh` and `karmalake publish`, "
            "or keep `karmalake stream` running"
        )
    return sentence
