"""Long-lived loops: what another try may cure, how long they have been retrying, and a clock that goes back."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import duckdb
import pytest
from deltalake.exceptions import DeltaError

from pipelines.clock import MAX_BEHIND, Moments
from pipelines.errors import (
    CommitUnknownError,
    ConfigurationError,
    CorruptionError,
    FencedError,
    KarmalakeError,
    LostRecordsError,
    TransientError,
    may_pass,
)
from pipelines.lake.tables import create_lake
from pipelines.monitoring.health import Health
from pipelines.monitoring.metrics import StreamMetrics
from pipelines.reputation.activation import activate, activated
from pipelines.reputation.policy_file import parse_policy
from pipelines.retries import Retries
from pipelines.settings import Settings
from tests.clocks import replaced_clock

_CURED = [
    TransientError(""),
    CommitUnknownError(""),
    OSError(),
    ConnectionError(),
    DeltaError(),
    duckdb.IOException(""),
]
_LASTING = [
    FencedError(""),
    CorruptionError(""),
    ConfigurationError(""),
    LostRecordsError(""),
    TypeError(),
    ValueError(),
]


def test_what_another_try_may_cure() -> None:
    """What did not answer, or whose outcome is unknown; a fence, corrupt state, a setting and a bug stay."""
    assert [may_pass(error) for error in _CURED] == [True] * len(_CURED)
    assert [may_pass(error) for error in _LASTING] == [False] * len(_LASTING)


def test_a_loop_says_for_how_long_it_has_been_retrying(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Since the first failure in a row; the pauses grow up to a bound, and start small again after a success."""
    caplog.set_level(logging.INFO)
    told: list[KarmalakeError | None] = []
    stopping = threading.Event()
    stopping.set()  # so that no try waits
    retries = Retries("refresh", stopping, lambda _, outage: told.append(outage))
    now = iter([0.0, 2.0, 6.0, 14.0, 29.0, 30.0, 31.0])
    monkeypatch.setattr("pipelines.retries.time", SimpleNamespace(monotonic=lambda: next(now)))
    for _ in range(5):
        retries.failed(OSError("no route"))
    retries.succeeded()
    retries.failed(TransientError("gone"))
    said = [record.getMessage() for record in caplog.records]
    pauses = [(0, 2), (2, 4), (6, 8), (14, 15), (29, 15)]
    assert said == [
        *(f"refresh: no route; retrying for {so_far} s so far, next try in {wait} s" for so_far, wait in pauses),
        "refresh: succeeded after 30 s of retrying",
        "refresh: gone; retrying for 0 s so far, next try in 2 s",
    ]
    assert [type(outage) for outage in told] == [*[TransientError] * 5, type(None), TransientError]


def test_what_lasts_ends_the_loop() -> None:
    """It is raised as it is, without a pause."""
    retries = Retries("refresh", threading.Event(), lambda *_: None)
    with pytest.raises(FencedError, match="newer"):
        retries.failed(FencedError("newer"))


def test_a_loop_that_has_been_retrying_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By /healthz, which stays 200, and by a metric; a success ends it."""
    now = [0.0]
    monkeypatch.setattr("pipelines.monitoring.health.monotonic", lambda: now[0])
    monkeypatch.setattr("pipelines.monitoring.metrics.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    health, metrics = Health(["refresh"], 60), StreamMetrics()
    said: list[list[str]] = []
    for now[0] in (0.0, 50.0, 100.0):
        health.retrying("refresh")
        metrics.loops.turned("refresh", TransientError(""))
        said.append(health.stale())
    assert said == [[], [], ["refresh has been retrying for 100 s: the log says why"]]
    assert health.stalled() == []
    labels = {"loop": "refresh"}
    assert metrics.book.registry.get_sample_value("karmalake_loop_retrying_seconds", labels) == 100
    health.succeeded("refresh")
    metrics.loops.turned("refresh", None)
    assert health.stale() == []
    assert metrics.book.registry.get_sample_value("karmalake_loop_retrying_seconds", labels) == 0


def test_moments_never_go_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """They stand still until the clock has passed them; the log says how far it is behind, and for how long it was."""
    clock = replaced_clock(monkeypatch)
    monotonic = iter([0.0, 0.0, 30.0, 61.0, 90.0])
    monkeypatch.setattr("pipelines.clock.time", SimpleNamespace(monotonic=lambda: next(monotonic)))
    moments = Moments()
    first = moments.next()
    clock.set_back(7_200)
    assert [moments.next() for _ in range(3)] == [first] * 3
    clock.set_back(0)
    assert moments.next() > first
    said = [record.getMessage() for record in caplog.records]
    assert [words.split(" behind")[0] for words in said[:2]] == ["the clock is 7200.0 s"] * 2
    assert "for 61 s so far" in said[1]
    assert said[2:] == ["the clock has caught up with the last scores after 90 s"]


def test_a_moment_of_a_wrong_clock_is_not_kept() -> None:
    """What an earlier process published a day ahead or more does not hold scores there: the publication is refused."""
    now = datetime.now(UTC)
    ahead, moments = now + timedelta(hours=1), Moments()
    moments.not_before(now + MAX_BEHIND + timedelta(minutes=1))
    assert moments.next() < ahead
    moments.not_before(ahead)
    moments.not_before(None)
    assert moments.next() == ahead


def test_a_policy_put_in_force_by_a_clock_set_back(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one activated last is in force, whatever the clock said then."""
    clock, lake = replaced_clock(monkeypatch), create_lake(settings.lake_root)
    first, last = (parse_policy(f'name = "p"\nversion = "{n}"\n[actions.A]\npoints = {n}\n') for n in (1, 2))
    activate(lake, first)
    clock.set_back(5)
    activate(lake, last)
    assert activated(lake) == last
