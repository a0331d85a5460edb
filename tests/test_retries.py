"""Long-lived loops: transient errors, the duration of retries, and a clock that goes back."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import duckdb
import pytest
from deltalake.exceptions import DeltaError

from pipelines.clock import MAX_CLOCK_SKEW, MonotonicClock
from pipelines.errors import (
    CommitUnknownError,
    ConfigurationError,
    CorruptionError,
    FencedError,
    KarmalakeError,
    LostRecordsError,
    TransientError,
    is_transient,
)
from pipelines.lake.tables import create_lake
from pipelines.monitoring.health import Health
from pipelines.monitoring.metrics import StreamMetrics
from pipelines.reputation.activation import activate, activated
from pipelines.reputation.policy_file import parse_policy
from pipelines.retries import Retries
from pipelines.settings import Settings
from tests.clocks import replaced_clock

_TRANSIENT = [
    TransientError(""),
    CommitUnknownError(""),
    OSError(),
    ConnectionError(),
    DeltaError(),
    duckdb.IOException(""),
    duckdb.FatalException(""),
    duckdb.TransactionException(""),
]
_PERMANENT = [
    FencedError(""),
    CorruptionError(""),
    ConfigurationError(""),
    LostRecordsError(""),
    TypeError(),
    ValueError(),
]


def test_transient_errors() -> None:
    """Outages and unknown outcomes are transient; fencing, corruption, wrong settings and bugs are permanent."""
    assert [is_transient(error) for error in _TRANSIENT] == [True] * len(_TRANSIENT)
    assert [is_transient(error) for error in _PERMANENT] == [False] * len(_PERMANENT)


def test_a_loop_says_for_how_long_it_has_been_retrying(
    monkeypatch: pytest.MonkeyPatch, project_log: pytest.LogCaptureFixture
) -> None:
    """The duration counts from the first consecutive failure; delays grow up to a limit, and reset after a success."""
    project_log.set_level(logging.INFO)
    reported: list[KarmalakeError | None] = []
    stopping = threading.Event()
    stopping.set()  # so that no try waits
    retries = Retries("refresh", stopping, lambda _, outage: reported.append(outage))
    now = iter([0.0, 2.0, 6.0, 14.0, 29.0, 30.0, 31.0])
    monkeypatch.setattr("pipelines.retries.time", SimpleNamespace(monotonic=lambda: next(now)))
    for _ in range(5):
        retries.failed(OSError("no route"))
    retries.succeeded()
    retries.failed(TransientError("gone"))
    pauses = [(0, 2), (2, 4), (6, 8), (14, 15), (29, 15)]
    assert project_log.messages == [
        *(f"refresh: no route; retrying for {retrying} s so far, next try in {wait} s" for retrying, wait in pauses),
        "refresh: succeeded after 30 s of retrying",
        "refresh: gone; retrying for 0 s so far, next try in 2 s",
    ]
    assert [type(outage) for outage in reported] == [*[TransientError] * 5, type(None), TransientError]


def test_a_permanent_error_ends_the_loop() -> None:
    """It is raised unchanged, without a delay."""
    retries = Retries("refresh", threading.Event(), lambda *_: None)
    with pytest.raises(FencedError, match="newer"):
        retries.failed(FencedError("newer"))


def test_a_loop_that_has_been_retrying_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By /healthz, which stays 200, and by a metric; a success ends it."""
    now = [0.0]
    monkeypatch.setattr("pipelines.monitoring.health.monotonic", lambda: now[0])
    monkeypatch.setattr("pipelines.monitoring.metrics.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    health, metrics = Health(["refresh"], 60), StreamMetrics()
    logged: list[list[str]] = []
    for now[0] in (0.0, 50.0, 100.0):
        health.record_retry("refresh")
        metrics.loops.record_turn("refresh", TransientError(""))
        logged.append(health.warnings())
    assert logged == [[], [], ["refresh has been retrying for 100 s: see the log"]]
    assert health.problems() == []
    labels = {"loop": "refresh"}
    assert metrics.registry.collectors.get_sample_value("karmalake_loop_retrying_seconds", labels) == 100
    health.record_success("refresh")
    metrics.loops.record_turn("refresh", None)
    assert health.warnings() == []
    assert metrics.registry.collectors.get_sample_value("karmalake_loop_retrying_seconds", labels) == 0


def test_the_clock_never_goes_back(monkeypatch: pytest.MonkeyPatch, project_log: pytest.LogCaptureFixture) -> None:
    """It stands still until the system clock has passed it; the log says how far behind that is, and for how long."""
    wall_clock = replaced_clock(monkeypatch)
    monotonic = iter([0.0, 0.0, 30.0, 61.0, 90.0])
    monkeypatch.setattr("pipelines.clock.time", SimpleNamespace(monotonic=lambda: next(monotonic)))
    clock = MonotonicClock()
    first = clock.now()
    wall_clock.set_back(7_200)
    assert [clock.now() for _ in range(3)] == [first] * 3
    wall_clock.set_back(0)
    assert clock.now() > first
    messages = project_log.messages
    assert [words.split(" behind")[0] for words in messages[:2]] == ["the clock is 7200.0 s"] * 2
    assert "for 61 s so far" in messages[1]
    assert messages[2:] == ["the clock has caught up with the last scores after 90 s"]


def test_a_time_from_a_wrong_clock_is_ignored() -> None:
    """A publication a day ahead or more does not advance the clock: the next publication is refused instead."""
    now = datetime.now(UTC)
    ahead, clock = now + timedelta(hours=1), MonotonicClock()
    clock.advance_to(now + MAX_CLOCK_SKEW + timedelta(minutes=1))
    assert clock.now() < ahead
    clock.advance_to(ahead)
    clock.advance_to(None)
    assert clock.now() == ahead


def test_a_policy_put_in_force_by_a_clock_set_back(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one activated last is in force, whatever the clock said then."""
    clock, lake = replaced_clock(monkeypatch), create_lake(settings.lake_root)
    first, last = (parse_policy(f'name = "p"\nversion = "{n}"\n[actions.A]\npoints = {n}\n') for n in (1, 2))
    activate(lake, first)
    clock.set_back(5)
    activate(lake, last)
    assert activated(lake) == last
