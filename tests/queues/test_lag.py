"""The lag of a queue: how many messages wait, and an estimate of how long they have."""

import json
import logging
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import pytest
from typer.testing import CliRunner

from assets.checks import ingest_keeps_up
from assets.resources import Karmalake
from pipelines.cli.app import app
from pipelines.dashboard.health import lag as lag_on_the_page
from pipelines.drain import drain_once, open_ingest
from pipelines.monitoring.monitor import monitor_ingest
from pipelines.operate.doctor import diagnose
from pipelines.operate.lag.history import append, recent
from pipelines.operate.lag.measure import Measurement
from pipelines.operate.lag.observe import measure_lags, observe_lags
from pipelines.settings import Settings
from tests.draining import drain_all, valid_records, with_ingest
from tests.queues.conftest import Queue
from tests.services.waiting import wait_for


def _send(queue: Queue, numbers: range) -> None:
    queue.send([record.value or b"" for record in valid_records(numbers)])


def _earlier(settings: Settings, measured: Measurement, seconds: float, waiting: int, next_offset: int) -> None:
    """Append a measurement of so many seconds before."""
    [lag] = measured.partitions
    end = next_offset + waiting
    lag = replace(lag, begin_offset=next_offset, next_offset=next_offset, end_offset=end, lag_records=waiting)
    moment = measured.measured_at - timedelta(seconds=seconds)
    append(settings.lag_dir, replace(measured, measured_at=moment, partitions=(lag,)), settings.lag.keep_days)


def test_messages_that_wait_are_counted(queue: Queue) -> None:
    """From any process, without reading them; without an earlier measurement their time is unknown, and said to be."""
    _send(queue, range(40))
    [measured] = measure_lags(queue.settings)
    assert (measured.lag_records, measured.lag_seconds, measured.retention_hours) == (40, None, None)
    assert measured.summary == "40 records and an unknown time (no earlier measurement tells it)"
    sentence, rows = lag_on_the_page(queue.settings)
    assert (measured.summary in sentence, rows["lag_records"].to_list()) == (True, [40])
    assert sum(record.total("accepted") for record in drain_all(queue.settings)) == 40
    [measured] = measure_lags(queue.settings)
    assert (measured.lag_records, measured.lag_seconds, measured.partitions[0].next_offset) == (0, 0.0, 40)


@pytest.mark.parametrize("queue", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        ([(100, 0, 40)], 100),  # empty then, so the 30 came later
        ([(10, 30, 20)], 15),  # 20 in 10 s are committed
        ([(300, 0, 0), (10, 30, 20)], 15),
        ([(8, 0, 40), (6, 30, 40)], 8),  # nothing was committed
        ([(6, 30, 40)], None),
    ],
)
def test_how_long_they_wait_is_estimated(
    queue: Queue, earlier: list[tuple[float, int, int]], expected: float | None
) -> None:
    """By when the queue was last empty, and by the rate of commits, whichever is less."""
    _send(queue, range(40))
    drain_all(queue.settings)
    _send(queue, range(40, 70))
    [measured] = measure_lags(queue.settings)
    for seconds, waiting, next_offset in earlier:
        _earlier(queue.settings, measured, seconds, waiting, next_offset)
    [measured] = measure_lags(queue.settings)
    assert measured.lag_seconds == (None if expected is None else pytest.approx(expected, rel=0.5))
    [observed] = observe_lags(queue.settings)
    assert recent(queue.settings.lag_dir, measured.topic_id, measured.measured_at) == [observed.measurement]


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
def test_the_check_of_dagster_and_doctor_judge_it(queue: Queue) -> None:
    """Ingest does not keep up if the queue was last empty longer ago than `lag.max_seconds`, and nothing is read."""

    def check() -> dg.AssetCheckResult:
        result = ingest_keeps_up(karmalake=Karmalake(lambda: queue.settings))
        assert isinstance(result, dg.AssetCheckResult)
        return result

    assert check().passed
    _send(queue, range(30))
    [measured] = measure_lags(queue.settings)
    for path in queue.settings.lag_dir.iterdir():
        path.unlink()
    _earlier(queue.settings, measured, queue.settings.lag.max_seconds + 60, 0, 0)
    _earlier(queue.settings, measured, 60, 30, 0)
    failed = check()
    assert not failed.passed
    assert failed.metadata["lag_records"].value == 30
    finding = next(each for each in diagnose(queue.settings) if each.subject == "lag")
    assert (finding.ok, "run `karmalake stream`" in finding.message) == (False, True)


@pytest.mark.parametrize("queue", ["rabbitmq"], indirect=True)
def test_the_command_prints_it_with_advice(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """More messages than one process commits: no advice that a queue cannot follow."""
    kind, url = queue.settings.queue.kind, queue.settings.queue.url
    assert kind is not None
    assert url is not None
    values = {"DATA_DIR": queue.settings.data_dir, "QUEUE_KIND": kind, "QUEUE_URL": url.get_secret_value()}
    for name, value in (values | {"QUEUE_NAME": queue.settings.queue.name}).items():
        monkeypatch.setenv(f"KARMALAKE_{name}", str(value))
    _send(queue, range(60))
    [measured] = measure_lags(queue.settings)
    _earlier(queue.settings, measured, 60, 2, 0)
    with open_ingest(with_ingest(queue.settings, max_batch_records=10)) as ingest:
        drain_once(ingest)
    done = CliRunner().invoke(app, ["lag", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["paces"][0]["out_per_second"] > 0
    assert any("a queue has one ingester" in advice for advice in document["advice"])


def test_a_running_ingest_measures_it(queue: Queue) -> None:
    """As with a topic: the history and the metrics have it."""
    _send(queue, range(3))
    [measured] = measure_lags(queue.settings)
    with monitor_ingest(queue.settings):
        wait_for("a measurement", lambda: recent(queue.settings.lag_dir, measured.topic_id, measured.measured_at))


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
def test_messages_in_flight_are_not_forgotten(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """A reader has them and has not acknowledged them: they are lag, and `drain` says that they come back later."""
    _send(queue, range(5))
    with open_ingest(queue.settings) as other:
        other.source.poll(other.checkpoint)
        [measured] = measure_lags(queue.settings)
        assert measured.lag_records == 5
        with caplog.at_level(logging.WARNING):
            assert drain_all(queue.settings) == []
        assert "about 5 messages were received by a reader that has not acknowledged them" in caplog.text
    assert sum(record.total("accepted") for record in drain_all(queue.settings)) == 5
