"""Helpers for end-to-end tests: send records, drain a topic, query the lake."""

import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import duckdb
import pyarrow as pa

from pipelines.bus.clients import admin_client, producer
from pipelines.bus.topics import describe_topic, ensure_topic, topic_exists
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.drain import drain, open_drain
from pipelines.emit.producer import Record, produce_records
from pipelines.lake.commit import CommitRecord
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.verify import verify_lake
from pipelines.reputation.lake_views import create_lake_views
from pipelines.serving.read import read_reputation
from pipelines.settings import KafkaSettings, Settings
from tests.services.waiting import wait_for

_LINGER_MS = 60_000
_SENDING = threading.Lock()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Everything that a reader sees, except what a killed run may change: batch ids and commit times.
LAKE = {
    "events": 'SELECT * EXCLUDE (batch_id) FROM events ORDER BY topic_id, topic_partition, "offset", event_id',
    "dead_letters": 'SELECT * EXCLUDE (batch_id) FROM dead_letters ORDER BY topic_id, topic_partition, "offset"',
    "conflicts": 'SELECT * EXCLUDE (batch_id) FROM conflicts ORDER BY topic_id, topic_partition, "offset"',
    "totals": 'SELECT sum("read"), sum(accepted), sum(duplicates), sum(conflicts), sum(dead_letters) FROM commits',
    "checkpoints": "SELECT * FROM checkpoints ORDER BY ALL",
}
BY_SOURCE = """
SELECT
    source, sum("read")::INT, sum(converted)::INT, sum(filtered)::INT, sum(dead_letters)::INT, sum(made)::INT,
    sum(accepted)::INT, sum(duplicates)::INT
FROM (SELECT unnest(ranges, recursive := true) FROM (SELECT ranges FROM commits))
GROUP BY source
ORDER BY source
"""
"""The account of each source."""


def recreate_topic(kafka: KafkaSettings) -> None:
    """Delete a topic with its records, and create it again: another one of the same name.

    The embedded broker creates it by itself if a consumer happens to ask for it in between.
    """
    old = describe_topic(kafka)
    assert old is not None
    with admin_client(kafka) as admin:
        admin.delete_topics([kafka.topic])
    wait_for("the topic to be gone", lambda: (now := describe_topic(kafka)) is None or now.topic_id != old.topic_id)
    ensure_topic(kafka)


def with_ingest(settings: Settings, **changes: object) -> Settings:
    """Return settings with changed ingest settings; by default a poll waits 0.1 s and nothing lingers."""
    update = {"max_wait_seconds": 0.1, "linger_seconds": 0} | changes
    return settings.model_copy(update={"ingest": settings.ingest.model_copy(update=update)})


def send(settings: Settings, records: Iterable[Record]) -> int:
    """Create the topic if it does not exist, send the records and return their number.

    They form one record batch per topic partition, up to 256 KiB, also on a slow machine.
    """
    if not topic_exists(settings.kafka):
        ensure_topic(settings.kafka)
    with _SENDING, mock.patch("pipelines.emit.producer._LINGER_MS", _LINGER_MS):
        return produce_records(settings.kafka, records).records


def send_to(settings: Settings, topic_partition: int, numbers: range) -> None:
    """Send valid records to one topic partition, each in a record batch of its own, and wait for the broker."""
    with closing(producer(settings.kafka, linger_ms=0)) as sender:
        for record in valid_records(numbers):
            sent = sender.send(settings.kafka.topic, record.value, record.key, partition=topic_partition)
            sent.get(30)


def drain_all(settings: Settings) -> list[CommitRecord]:
    """Drain in a new ingest, as a new process would, until no records remain."""
    records: list[CommitRecord] = []
    with open_drain(settings) as ingest:
        drain(ingest, records.append)
    return records


def elsewhere(settings: Settings) -> Settings:
    """Return the settings of an ingester of the same lake that does not see the locks of this one."""
    lake = settings.lake.model_copy(update={"uri": settings.lake_root})
    return settings.model_copy(update={"data_dir": settings.data_dir / "elsewhere", "lake": lake})


def drained(settings: Settings) -> CommitRecord:
    """Drain as `drain_all` does; return all commits as one record: their number depends on the broker's fetches."""
    *before, last = drain_all(settings)
    ranges = tuple(offsets for record in [*before, last] for offsets in record.ranges)
    return replace(last, ranges=ranges, mis_keyed=sum(record.mis_keyed for record in [*before, last]))


def valid_records(numbers: Iterable[int], action: str = "A") -> list[Record]:
    """Return a record of a valid event e-{n}, of one of seven users, for each number."""
    rows = [
        {
            "event_id": f"e-{n}",
            "user_id": f"u-{n % 7}",
            "action_type": action,
            "event_time": NOON + timedelta(hours=n % 48),
            "metadata": [("n", str(n))],
        }
        for n in numbers
    ]
    values = encode(pa.Table.from_pylist(rows, EVENT)).to_pylist()
    return [Record(row["user_id"].encode(), value) for row, value in zip(rows, values, strict=True)]


def query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query over the views of the lake's newest snapshot."""
    return answers(settings, {"only": sql})["only"]


def answers(settings: Settings, queries: Mapping[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of several queries over the same snapshot."""
    with duckdb.connect() as connection:
        create_lake_views(connection, take_snapshot(open_lake(settings.lake_root)))
        return {name: connection.execute(sql).fetchall() for name, sql in queries.items()}


def score(settings: Settings, user_id: str) -> Any:
    """Return the all-time score that is served of a user; None without a document."""
    document = read_reputation(user_id, settings)
    return document and document["reputation_all_time"]["score"]


def contents(settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything that a reader of the lake sees, by the names of LAKE."""
    return answers(settings, LAKE)


def assert_verified(settings: Settings) -> None:
    """Assert that the lake reconciles."""
    checks = list(verify_lake(take_snapshot(open_lake(settings.lake_root))))
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 5
