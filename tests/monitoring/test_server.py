"""/metrics, /healthz and /readyz over HTTP, and background measurements."""

import threading

import httpx
import pytest

from pipelines.errors import ConfigurationError, TransientError
from pipelines.monitoring.health import Health
from pipelines.monitoring.metrics import NotifyMetrics, RelayMetrics
from pipelines.monitoring.monitor import call_all, measure_periodically, monitor_process
from pipelines.settings import MetricsSettings, Settings
from tests.monitoring.scraping import scrape, status
from tests.panic import Panic
from tests.services.waiting import PATIENCE_SECONDS, wait_for


@pytest.fixture
def served() -> Settings:
    return Settings(metrics=MetricsSettings(port=0))


def test_a_process_is_ready_once_each_loop_has_succeeded(served: Settings) -> None:
    """An outage is neither a success nor a stall: a restart would not help."""
    with monitor_process(RelayMetrics(), ("one", "other"), served) as monitor:
        assert monitor.address is not None
        monitor.record_turn("one")
        monitor.record_turn("other", TransientError("no broker answers"))
        assert status(monitor.address, "/readyz") == (503, "other has not succeeded yet\n")
        assert status(monitor.address, "/healthz") == (200, "ok\n")
        monitor.record_turn("other")
        monitor.record_turn("other", TransientError("no broker answers"))
        assert status(monitor.address, "/readyz") == (200, "ok\n")
        scraped = scrape(monitor.address)
        assert scraped.value("karmalake_loop_outages_total", loop="one") == 0
        assert scraped.value("karmalake_loop_outages_total", loop="other") == 2


def test_a_loop_that_does_not_run_is_stalled() -> None:
    """The probe names the loop until it runs again, also if it hangs from the start."""
    settings = Settings(metrics=MetricsSettings(port=0, stalled_after_seconds=0.2))
    with monitor_process(RelayMetrics(), ("relay",), settings) as monitor:
        address = str(monitor.address)
        code, body = wait_for("the stall", lambda: _with_code(503, status(address, "/healthz")))
        assert (code, body.startswith("relay has not run for ")) == (503, True)

        def answers_after_a_turn() -> bool:  # the next stall may come before the answer
            monitor.record_turn("relay")
            return status(address, "/healthz")[0] == 200

        wait_for("the end of the stall", answers_after_a_turn)


def test_a_loop_ended_by_a_bug_is_unhealthy() -> None:
    """It restarted, but part of it may be gone: the probe fails until the process is restarted."""
    with monitor_process(NotifyMetrics(), ("ops", "app"), Settings(metrics=MetricsSettings(port=0))) as monitor:
        address = str(monitor.address)
        monitor.record_turn("ops")
        monitor.record_failure("ops", RuntimeError("a lane ended"))
        monitor.record_turn("ops")
        body = "ops failed because of a bug, see the log: restart the process\n"
        assert status(address, "/healthz") == (503, body)
        assert scrape(address).value("karmalake_loop_failures_total", loop="ops") == 1
        assert scrape(address).value("karmalake_loop_outages_total", loop="ops") == 0


def _with_code(code: int, answer: tuple[int, str]) -> tuple[int, str] | None:
    return answer if answer[0] == code else None


def test_health_covers_only_the_named_loops() -> None:
    """A stalled background loop does not make the process unhealthy."""
    health = Health(("ingest",), 60)
    health.record_success("lag")
    assert health.not_ready() == ["ingest has not succeeded yet"]


def test_without_a_port_nothing_listens() -> None:
    """Metrics are served only on request."""
    with monitor_process(RelayMetrics(), ("relay",), Settings()) as monitor:
        assert monitor.address is None


def test_it_listens_on_this_machine_only(served: Settings) -> None:
    """By default, since there is no authentication."""
    with monitor_process(RelayMetrics(), ("relay",), served) as monitor:
        assert str(monitor.address).startswith("127.0.0.1:")


def test_a_port_in_use_gives_a_message(served: Settings) -> None:
    """The error names the address and the setting."""
    with monitor_process(RelayMetrics(), (), served) as monitor:
        port = int(str(monitor.address).rpartition(":")[2])
        second = Settings(metrics=MetricsSettings(port=port))
        with (
            pytest.raises(ConfigurationError, match=rf"127.0.0.1:{port}: .*set metrics.port"),
            monitor_process(RelayMetrics(), (), second),
        ):
            pass


def test_unknown_paths_list_the_known_ones(served: Settings) -> None:
    """An unknown path lists the known ones, and OpenMetrics is served on request."""
    with monitor_process(RelayMetrics(), (), served) as monitor:
        assert status(str(monitor.address), "/") == (404, "not found: use /metrics, /healthz or /readyz\n")
        answer = httpx.get(f"http://{monitor.address}/metrics?x=1", headers={"Accept": "application/openmetrics-text"})
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")


def test_measuring_continues_after_an_outage(served: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A failed measurement is counted and logged, and both measuring and the work continue."""
    measured = threading.Event()
    attempts: list[int] = []

    def measure() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise TransientError("no broker answers")
        measured.set()

    with monitor_process(RelayMetrics(), (), served) as monitor, measure_periodically(monitor, "lag", measure, 0.01):
        assert measured.wait(PATIENCE_SECONDS)
        assert scrape(str(monitor.address)).value("karmalake_loop_outages_total", loop="lag") == 1
    assert "lag: no broker answers" in caplog.text


@pytest.mark.parametrize("defect", [ZeroDivisionError("of ours"), OverflowError("date value out of range"), Panic()])
def test_a_bug_in_measuring_ends_neither_it_nor_the_process(
    served: Settings, caplog: pytest.LogCaptureFixture, defect: BaseException
) -> None:
    """A bug is logged once with its traceback and counted each time, and measuring continues."""
    attempts: list[int] = []

    def measure() -> None:
        attempts.append(1)
        if len(attempts) < 5:
            raise defect

    with (
        monitor_process(RelayMetrics(), (), served, background=("lag",)) as monitor,
        measure_periodically(monitor, "lag", measure, 0.01),
    ):
        wait_for("a measurement that succeeds", lambda: len(attempts) > 5)
        assert scrape(str(monitor.address)).value("karmalake_loop_outages_total", loop="lag") == 4
    assert caplog.text.count("lag failed") == 1
    assert caplog.text.count("Traceback") == 1


@pytest.mark.slow
def test_a_stalled_measurement_is_a_warning_only() -> None:
    """Health warns that a measurement is outdated; the process stays healthy, so nothing restarts it."""
    settings = Settings(metrics=MetricsSettings(port=0, stalled_after_seconds=2.0))

    def measure() -> None:
        raise ZeroDivisionError

    with (
        monitor_process(RelayMetrics(), (), settings, background=("lag",)) as monitor,
        measure_periodically(monitor, "lag", measure, 0.01),
    ):
        address = str(monitor.address)
        _, body = wait_for("the news", lambda: (code := status(address, "/healthz"))[1] != "ok\n" and code)
        assert status(address, "/healthz")[0] == 200
        assert body.startswith("ok\nlag has not succeeded for ")
        monitor.record_turn("lag")
        assert status(address, "/healthz") == (200, "ok\n")


def test_each_callback_is_called() -> None:
    """With the same arguments, in order."""
    called: list[tuple[str, int, str]] = []
    both = call_all(lambda n, s: called.append(("first", n, s)), lambda n, s: called.append(("second", n, s)))
    both(1, "x")
    assert called == [("first", 1, "x"), ("second", 1, "x")]
