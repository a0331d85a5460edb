"""The metrics of `karmalake notify`: deliveries and lag of each destination, independently."""

import pytest

from pipelines.cli.notify import _print_done
from pipelines.monitoring.metrics import NotifyMetrics
from pipelines.notify.branch import DeliveryCounts
from pipelines.notify.start_offsets import Loss
from pipelines.operate.lag.measure import measure_group
from pipelines.settings import Settings
from tests.draining import send, valid_records
from tests.monitoring.scraping import becomes, metrics_address, scrape, status
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import checkpoints, command, webhook
from tests.notify.receiver import Receiver
from tests.services.process import ended
from tests.services.waiting import wait_for


@pytest.mark.jvm
def test_a_destination_that_hangs_is_visible(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lag stays while that of the other becomes zero, and both loops run, so no restart is needed (`isolated`)."""
    monkeypatch.setenv("KARMALAKE_LAG_INTERVAL_SECONDS", "0.2")
    with Receiver() as hanging:
        hanging.answer = hanging.hang
        rules = write_rules(webhook("ops", receiver.url), webhook("stuck", hanging.url))
        send(bus, valid_records(range(20)))
        with ended(command(bus, rules, "--metrics-port", "0")) as notifier:
            address = metrics_address(notifier)
            becomes(address, 20, "karmalake_notify_deliveries_total", destination="ops")
            wait_for("readiness", lambda: status(address, "/readyz")[0] == 200)
            send(bus, valid_records(range(20, 40)))
            becomes(address, 40, "karmalake_notify_deliveries_total", destination="ops")
            wait_for("no lag", lambda: _lag(address, "ops") == 0)
            wait_for("the lag of what hangs", lambda: _lag(address, "stuck") == 40)
            assert status(address, "/healthz") == (200, "ok\n")
            assert hanging.hanging.is_set()
            notifier.kill()
            notifier.communicate()
    measured = measure_group(bus.kafka, f"{bus.notify.group_id}.ops")
    assert {lag.topic_partition: lag.next_offset for lag in measured} == checkpoints(bus, "ops")
    assert sum(lag.lag_records for lag in measured) == 0


def test_a_receiver_that_is_down_is_reported_before_dead_letters_are(capsys: pytest.CaptureFixture[str]) -> None:
    """With the default `attempts` there are none for a minute, and with others for hours."""
    _print_done("ops", DeliveryCounts(failed_attempts=3, failure="ConnectError: refused"))
    output, warning = capsys.readouterr()
    assert not output
    assert warning.startswith(
        "warning: ops: failed attempts: 3, the last one by ConnectError: refused; notifications are"
    )
    _print_done("ops", DeliveryCounts(delivered=2, erased=1, malformed=1))
    assert capsys.readouterr() == ("ops: 2 delivered, 1 of erased users left out, 1 malformed records skipped\n", "")


def test_every_count_has_a_metric() -> None:
    """Also failed attempts, by which an alert can precede dead letters."""
    metrics, counts = NotifyMetrics(), DeliveryCounts(1, 2, 3, erased=4, malformed=5, losses=(Loss(6, ""),))
    metrics.notified("ops", counts)
    names = ("deliveries", "dead_letters", "failed_attempts", "erased", "malformed_records", "lost_records")
    value = metrics.registry.collectors.get_sample_value
    found = [value(f"karmalake_notify_{name}_total", {"destination": "ops"}) for name in names]
    assert found == [1, 2, 3, 4, 5, 6]


def _lag(address: str, destination: str) -> float:
    scraped = scrape(address)
    places = [labels for name, labels in scraped.samples if name == "karmalake_notify_lag_records"]
    own_labels = [dict(labels) for labels in places if ("destination", destination) in labels]
    return (
        sum(scraped.value("karmalake_notify_lag_records", **labels) or 0 for labels in own_labels) if own_labels else -1
    )
