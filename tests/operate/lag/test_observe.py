"""Lag observations: the measurement, the pace since the previous one, and the command's output."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.operate.lag.history import append, recent
from pipelines.operate.lag.measure import Work
from pipelines.operate.lag.observe import observe_lags
from pipelines.settings import Settings
from tests.draining import drain_all, send, valid_records, with_ingest

Lag = Callable[..., str]


@pytest.fixture
def lag(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Lag:
    """Return a function that runs `karmalake lag` and returns its output."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("KARMALAKE_KAFKA_BOOTSTRAP_SERVERS", str(settings.kafka.bootstrap_servers))
    monkeypatch.setenv("KARMALAKE_KAFKA_TOPIC", settings.kafka.topic)

    def run(*options: str) -> str:
        done = CliRunner().invoke(app, ["lag", *options])
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_an_observation_uses_the_previous_one(settings: Settings) -> None:
    """Each is stored, and the next computes the pace and the time to catch up from it."""
    send(settings, valid_records(range(40)))
    [first] = observe_lags(settings)
    assert (first.paces, first.catch_up_seconds) == ({}, None)
    drain_all(with_ingest(settings))
    work = Work(1, 40, 40, 0.5, 0.25)
    [second] = observe_lags(settings, work)
    assert sum(pace.out_per_second for pace in second.paces.values()) > 0
    assert (second.measurement.work, second.catch_up_seconds) == (work, 0.0)
    recorded = recent(settings.lag_dir, first.measurement.topic_id, first.measurement.measured_at)
    assert recorded == [first.measurement, second.measurement]


def test_the_pace_spans_several_seconds(settings: Settings) -> None:
    """It is relative to the newest measurement that is at least five seconds old."""
    send(settings, valid_records(range(40)))
    [first] = observe_lags(settings)
    now = first.measurement
    for seconds_ago in (60, 20, 2):
        parts = tuple(replace(lag, end_offset=0) for lag in now.partitions)
        before = replace(now, measured_at=now.measured_at - timedelta(seconds=seconds_ago), partitions=parts)
        append(settings.lag_dir, before, 1)
    [second] = observe_lags(settings)
    paces = second.paces.values()
    assert 40 / 30 < sum(pace.in_per_second for pace in paces) <= 40 / 20


def test_the_command_prints_the_lag(settings: Settings, lag: Lag) -> None:
    """A table, with rates from the second call on."""
    send(settings, valid_records(range(40)))
    output = lag()
    assert "40 records and " in output
    assert "catch-up s" in output
    drain_all(with_ingest(settings))
    assert "0 records and 0.0 s behind" in lag()


def test_the_command_prints_json(settings: Settings, lag: Lag) -> None:
    """One document with everything in the table."""
    send(settings, valid_records(range(40)))
    lag()
    document = json.loads(lag("--json"))
    assert document["lag_records"] == sum(p["lag_records"] for p in document["partitions"]) == 40
    assert len(document["paces"]) == len(document["partitions"])
    assert document["advice"] == []
    assert document["catch_up_seconds"] is None
