"""The commands serve the metrics of their loops: real processes, real services, over HTTP."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.emit import outbox
from pipelines.emit.producer import Record
from pipelines.operate.lag.history import recent
from pipelines.serving.read import published
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started
from tests.draining import send, valid_records
from tests.emit.outboxes import create_outbox, disposed, event, sqlite_url
from tests.monitoring.scraping import becomes, metrics_address, scrape, status
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for


@contextmanager
def running(settings: Settings, *command: str, printed: list[str] | None = None, **variables: str) -> Iterator[str]:
    """Run a command that serves its metrics, and yield the address; on exit it must terminate on SIGTERM.

    printed: takes what it printed after the address.
    """
    assert settings.redis.url is not None
    environment = os.environ | {
        "KARMALAKE_DATA_DIR": str(settings.data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
        "KARMALAKE_REDIS_URL": settings.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": settings.redis.prefix,
        "KARMALAKE_LAG_INTERVAL_SECONDS": "0.2",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    program = [*KARMALAKE, *command, "--metrics-port", "0"]
    with ended(Started(program, env=environment, stdout=subprocess.PIPE)) as process:
        try:
            yield metrics_address(process)
        finally:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
            if printed is not None:
                printed += output.splitlines()
    assert process.returncode == 0


@pytest.mark.slow
def test_stream_exposes_records_lag_and_staleness(settings: Settings) -> None:
    """Records by outcome, no lag once all are read, documents written, and fresh scores; lag history is recorded."""
    send(settings, [*valid_records(range(40)), *valid_records(range(5)), Record(b"k", b"\xff")])
    with running(settings, "stream", KARMALAKE_REPUTATION_DERIVE_INTERVAL_SECONDS="0.2") as address:
        wait_for("readiness", lambda: status(address, "/readyz")[0] == 200)
        assert status(address, "/healthz") == (200, "ok\n")
        becomes(address, 40, "karmalake_ingest_records_total", outcome="accepted")
        becomes(address, 0, "karmalake_lag_catch_up_seconds", topic=settings.kafka.topic)
        wait_for(
            "all documents", lambda: scrape(address).value("karmalake_published_documents_total", change="written")
        )
        scraped = scrape(address)
    assert scraped.value("karmalake_ingest_records_total", outcome="duplicate") == 5
    assert scraped.value("karmalake_ingest_records_total", outcome="dead_letter") == 1
    assert scraped.total("karmalake_lag_records") == 0
    assert scraped.total("karmalake_topic_end_offset") == scraped.total("karmalake_checkpoint_next_offset") == 46
    assert 0 <= (scraped.value("karmalake_staleness_seconds") or -1) < 60
    assert (scraped.value("process_resident_memory_bytes") or 0) > 0
    topic = describe_topic(settings.kafka)
    assert topic is not None
    history = recent(settings.lag_dir, topic.topic_id, datetime.now(UTC) - timedelta(hours=1))
    assert history[-1].lag_records == 0
    assert sum(one.work.records for one in history if one.work) == 46


@pytest.mark.slow
def test_stream_says_how_many_changes_it_records(settings: Settings) -> None:
    """In the line of a publication and as a metric, where the feed is on; `valid_records` are of seven users."""
    feed = {"KARMALAKE_FEED_ENABLED": "true", "KARMALAKE_FEED_TOPIC": f"{settings.redis.prefix}-scores"}
    printed = list[str]()
    send(settings, valid_records(range(40)))
    with running(settings, "stream", printed=printed, **feed) as address:
        becomes(address, 7, "karmalake_feed_recorded_changes_total")
        becomes(address, 7, "karmalake_feed_relayed_changes_total")
    recorded = re.findall(r", (\d+) changes? of the feed recorded", "\n".join(printed))
    assert sum(map(int, recorded)) == 7, printed


@pytest.mark.slow
def test_ingest_exposes_what_it_ingests(settings: Settings) -> None:
    """The probes, records and lag of `stream`, without the metrics of serving: it derives and publishes nothing."""
    send(settings, [*valid_records(range(40)), *valid_records(range(5)), Record(b"k", b"\xff")])
    with running(settings, "ingest") as address:
        wait_for("readiness", lambda: status(address, "/readyz")[0] == 200)
        assert status(address, "/healthz") == (200, "ok\n")
        becomes(address, 40, "karmalake_ingest_records_total", outcome="accepted")
        becomes(address, 0, "karmalake_lag_catch_up_seconds", topic=settings.kafka.topic)
        scraped = scrape(address)
    assert scraped.value("karmalake_ingest_records_total", outcome="duplicate") == 5
    assert scraped.value("karmalake_ingest_records_total", outcome="dead_letter") == 1
    assert scraped.total("karmalake_topic_end_offset") == scraped.total("karmalake_checkpoint_next_offset") == 46
    assert {
        name for name, _ in scraped.samples if "served" in name or "staleness" in name or "refresh" in name
    } == set()
    assert published(settings) is None
    assert not settings.warehouse_path.exists()


@pytest.mark.slow
def test_stream_exposes_copies_of_dead_letters(settings: Settings) -> None:
    """Copies by outcome, and none left waiting; health includes the loop."""
    cut = Record(b"k", b"\xff", [("h", b"")] * 1_001)
    send(settings, [*valid_records(range(5)), Record(b"k", b"\xff"), cut])
    with running(settings, "stream", KARMALAKE_INGEST_PUBLISH_DEAD_LETTERS="true") as address:
        becomes(address, 1, "karmalake_dlq_records_total", outcome="whole")
        becomes(address, 1, "karmalake_dlq_records_total", outcome="truncated")
        becomes(address, 0, "karmalake_dlq_waiting_records")
        scraped = scrape(address)
        assert status(address, "/healthz") == (200, "ok\n")
    assert scraped.value("karmalake_dlq_records_total", outcome="refused") == 0
    assert scraped.value("karmalake_dlq_waiting_seconds") == 0
    assert (scraped.value("karmalake_loop_last_turn_timestamp_seconds", loop="dlq") or 0) > 0


def test_relay_exposes_the_outbox(settings: Settings, tmp_path: Path) -> None:
    """Rows sent, and none left waiting."""
    ensure_topic(settings.kafka)
    url = sqlite_url(tmp_path)
    with disposed(url) as service:
        create_outbox(service)
        with service.begin() as connection:
            for number in range(30):
                outbox.add(connection, event(number))
    with running(settings, "relay", KARMALAKE_RELAY_DATABASE_URL=url.render_as_string()) as address:
        wait_for("readiness", lambda: status(address, "/readyz")[0] == 200)
        becomes(address, 30, "karmalake_relay_rows_total")
        becomes(address, 0, "karmalake_outbox_backlog_rows")
        scraped = scrape(address)
    assert (scraped.value("karmalake_relay_bytes_total") or 0) > 30 * len(b"ann")
    assert scraped.value("karmalake_outbox_oldest_age_seconds") == 0
    assert (scraped.value("karmalake_relay_batch_duration_seconds_count") or 0) >= 1
