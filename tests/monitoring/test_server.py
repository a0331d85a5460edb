"""/metrics, /healthz and /readyz over HTTP, and what measures beside the work."""

import threading

import httpx
import pytest

from pipelines.errors import ConfigurationError, TransientError
from pipelines.monitoring.health import Health
from pipelines.monitoring.metrics import NotifyMetrics, RelayMetrics
from pipelines.monitoring.monitor import each, measuring, monitored
from pipelines.settings import MetricsSettings, Settings
from tests.monitoring.scraping import scrape, status
from tests.services.waiting import PATIENCE_SECONDS, wait_for


class Panic(BaseException):
    """As Rust's libraries raise it."""


@pytest.fixture
def served() -> Settings:
    return Settings(metrics=MetricsSettings(port=0))


def test_a_process_is_ready_once_each_loop_has_succeeded(served: Settings) -> None:
    """An outage is no success, but no stall either: a restart would mend nothing."""
    with monitored(RelayMetrics(), ("one", "other"), served) as monitor:
        assert monitor.address is not None
        monitor.turned("one")
        monitor.turned("other", TransientError("no broker answers"))
        assert status(monitor.address, "/readyz") == (503, "other has not succeeded yet\n")
        assert status(monitor.address, "/healthz") == (200, "ok\n")
        monitor.turned("other")
        monitor.turned("other", TransientError("no broker answers"))
        assert status(monitor.address, "/readyz") == (200, "ok\n")
        scraped = scrape(monitor.address)
        assert scraped.value("karmalake_loop_outages_total", loop="one") == 0
        assert scraped.value("karmalake_loop_outages_total", loop="other") == 2


def test_a_loop_that_does_not_turn_is_a_stall() -> None:
    """The probe names the loop, until it turns again; one that hangs from the start is one too."""
    settings = Settings(metrics=MetricsSettings(port=0, stalled_after_seconds=0.2))
    with monitored(RelayMetrics(), ("relay",), settings) as monitor:
        address = str(monitor.address)
        code, said = wait_for("the stall", lambda: _if(503, status(address, "/healthz")))
        assert (code, said.startswith("relay has not turned for ")) == (503, True)
        monitor.turned("relay")
        assert status(address, "/healthz")[0] == 200


def test_a_loop_that_a_bug_ended_is_not_well() -> None:
    """It began again and turns, but a part of it may be gone: the probe stays bad until the process is restarted."""
    with monitored(NotifyMetrics(), ("ops", "app"), Settings(metrics=MetricsSettings(port=0))) as monitor:
        address = str(monitor.address)
        monitor.turned("ops")
        monitor.failed("ops", RuntimeError("a lane ended"))
        monitor.turned("ops")
        said = "ops failed by a bug, which the log names: restart the process\n"
        assert status(address, "/healthz") == (503, said)
        assert scrape(address).value("karmalake_loop_failures_total", loop="ops") == 1
        assert scrape(address).value("karmalake_loop_outages_total", loop="ops") == 0


def _if(code: int, answer: tuple[int, str]) -> tuple[int, str] | None:
    return answer if answer[0] == code else None


def test_health_is_of_the_loops_that_were_named() -> None:
    """What measures beside the work may stall: it holds nobody up."""
    health = Health(("ingest",), 60)
    health.succeeded("lag")
    assert health.unready() == ["ingest has not succeeded yet"]


def test_without_a_port_nothing_listens() -> None:
    """Metrics over the network are what somebody asked for."""
    with monitored(RelayMetrics(), ("relay",), Settings()) as monitor:
        assert monitor.address is None


def test_it_listens_on_this_machine_only(served: Settings) -> None:
    """By default: there is no password."""
    with monitored(RelayMetrics(), ("relay",), served) as monitor:
        assert str(monitor.address).startswith("127.0.0.1:")


def test_a_port_that_is_taken_gets_a_sentence(served: Settings) -> None:
    """Where, and which setting."""
    with monitored(RelayMetrics(), (), served) as monitor:
        port = int(str(monitor.address).rpartition(":")[2])
        taken = Settings(metrics=MetricsSettings(port=port))
        with (
            pytest.raises(ConfigurationError, match=rf"127.0.0.1:{port}: .*set metrics.port"),
            monitored(RelayMetrics(), (), taken),
        ):
            pass


def test_other_paths_say_which_there_are(served: Settings) -> None:
    """A mistyped path is answered, and OpenMetrics is spoken to who asks for it."""
    with monitored(RelayMetrics(), (), served) as monitor:
        assert status(str(monitor.address), "/") == (404, "there are /metrics, /healthz and /readyz\n")
        answer = httpx.get(f"http://{monitor.address}/metrics?x=1", headers={"Accept": "application/openmetrics-text"})
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")


def test_measuring_goes_on_after_an_outage(served: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A measurement that fails is counted and said, and the next is made; the work beside it is not disturbed."""
    measured = threading.Event()
    attempts: list[int] = []

    def measure() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise TransientError("no broker answers")
        measured.set()

    with monitored(RelayMetrics(), (), served) as monitor, measuring(monitor, "lag", measure, 0.01):
        assert measured.wait(PATIENCE_SECONDS)
        assert scrape(str(monitor.address)).value("karmalake_loop_outages_total", loop="lag") == 1
    assert "lag: no broker answers" in caplog.text


@pytest.mark.parametrize("defect", [ZeroDivisionError("of ours"), OverflowError("date value out of range"), Panic()])
def test_a_defect_in_measuring_ends_neither_it_nor_the_process(
    served: Settings, caplog: pytest.LogCaptureFixture, defect: BaseException
) -> None:
    """It is logged once with its traceback, counted each time, and the next measurement is made."""
    attempts: list[int] = []

    def measure() -> None:
        attempts.append(1)
        if len(attempts) < 5:
            raise defect

    with (
        monitored(RelayMetrics(), (), served, beside=("lag",)) as monitor,
        measuring(monitor, "lag", measure, 0.01),
    ):
        wait_for("a measurement that succeeds", lambda: len(attempts) > 5)
        assert scrape(str(monitor.address)).value("karmalake_loop_outages_total", loop="lag") == 4
    assert caplog.text.count("lag failed") == 1
    assert caplog.text.count("Traceback") == 1


def test_what_is_measured_no_more_is_named_and_harms_nothing() -> None:
    """Health tells that a measurement is old; the process is well all the same, so nothing restarts it."""
    settings = Settings(metrics=MetricsSettings(port=0, stalled_after_seconds=2.0))

    def measure() -> None:
        raise ZeroDivisionError

    with (
        monitored(RelayMetrics(), (), settings, beside=("lag",)) as monitor,
        measuring(monitor, "lag", measure, 0.01),
    ):
        address = str(monitor.address)
        _, said = wait_for("the news", lambda: (code := status(address, "/healthz"))[1] != "ok\n" and code)
        assert status(address, "/healthz")[0] == 200
        assert said.startswith("ok\nlag has not succeeded for ")
        monitor.turned("lag")
        assert status(address, "/healthz") == (200, "ok\n")


def test_each_callback_is_called() -> None:
    """With the same arguments, in their order."""
    called: list[tuple[str, int, str]] = []
    both = each(lambda n, s: called.append(("first", n, s)), lambda n, s: called.append(("second", n, s)))
    both(1, "x")
    assert called == [("first", 1, "x"), ("second", 1, "x")]
