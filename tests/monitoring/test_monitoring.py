"""The Grafana dashboard and the alert rules use existing metrics and labels, and alerts fire when they should."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.monitoring.metrics import PROCESSES, MetricInfo
from tests.conftest import REPOSITORY
from tests.services.requirements import require

MONITORING = REPOSITORY / "docs" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = MONITORING / "dashboard.json"
_SERIES = {"histogram": {"_bucket", "_sum", "_count"}}
_NAME = re.compile(r"\b(karmalake_[a-z_]+)(?:\{([^}]*)\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")
_ADDED_BY_PROMETHEUS = {"instance", "job", "le"}


def entries() -> dict[str, MetricInfo]:
    """Return every exposed series by name."""
    found = [entry for make in PROCESSES.values() for entry in make().registry.entries]
    return {entry.name + suffix: entry for entry in found for suffix in _SERIES.get(entry.kind, {""})}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str, str]]:
    """Yield the place, the query, and the text whose labels are filled in."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for rule in rules():
        yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())


@pytest.mark.parametrize(("place", "query", "text"), list(expressions()))
def test_queries_use_existing_metrics_and_labels(place: str, query: str, text: str) -> None:
    """Every metric is exposed, and every label belongs to the metrics of the query or to Prometheus."""
    known = entries()
    used = {name for name, _ in _NAME.findall(query)}
    assert used <= known.keys()
    assert used or query.startswith("up{")
    labels = {label for name in used for label in known[name].labels} | _ADDED_BY_PROMETHEUS
    matched = {label for _, matchers in _NAME.findall(query) for label in re.findall(r"([a-z_]+)\s*=", matchers)}
    grouped = {label.strip() for names in _BY.findall(query) for label in names.split(",")}
    shown = set(re.findall(r"\$labels\.([a-z_]+)", text)) | set(re.findall(r"\{\{([a-z_]+)\}\}", text))
    assert matched | grouped | shown <= labels


def test_every_metric_is_on_the_dashboard() -> None:
    """Every metric has a panel."""
    shown = {name for panel in panels() for target in panel["targets"] for name, _ in _NAME.findall(target["expr"])}
    known = entries()
    assert {known[name].name for name in shown} == {entry.name for entry in known.values()}


def test_every_alert_says_what_to_do() -> None:
    """Severity, summary and meaning; names are unique."""
    assert {rule["labels"]["severity"] for rule in rules()} == {"critical", "warning", "info"}
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in rules())
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_panels_are_described_and_do_not_overlap() -> None:
    """No two panels overlap, and each has an id and a description."""
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert all(panel["description"] for panel in panels())
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_promtool_accepts_the_rules() -> None:
    """Prometheus can load the rules."""
    require("promtool")
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


BAD = {
    'karmalake_lag_seconds{topic="events",topic_partition="1"}': "600x45",
    'karmalake_lag_records{topic="events",topic_partition="1"}': "20000x45",
    'karmalake_lag_catch_up_seconds{topic="events"}': "+Inf+0x45",
    "karmalake_staleness_seconds": "1000x45",
    'karmalake_ingest_records_total{outcome="accepted"}': "0+100x45",
    'karmalake_ingest_records_total{outcome="dead_letter"}': "0+10x45",
    'karmalake_ingest_records_total{outcome="conflict"}': "0+1x45",
    "karmalake_dlq_waiting_seconds": "1000x45",
    'karmalake_dlq_records_total{outcome="refused"}': "0+1x45",
    "karmalake_outbox_oldest_age_seconds": "400x45",
    'karmalake_notify_lag_seconds{destination="ops",topic_partition="0"}': "1000x45",
    'karmalake_notify_dead_letters_total{destination="ops"}': "0+1x45",
    "karmalake_lag_advices": "1x45",
    "karmalake_halted_partitions": "1x45",
    'karmalake_loop_last_turn_timestamp_seconds{loop="refresh"}': "0x45",
    'karmalake_loop_outages_total{loop="ingest"}': "0+30x45",
    'karmalake_loop_failures_total{loop="ops"}': "0+1x45",
    'karmalake_notify_lost_records_total{destination="ops"}': "0+1x45",
    'up{job="karmalake"}': "0x45",
}


def test_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    """With bad values each fires in time, and with good values none does, as evaluated by Prometheus."""
    require("promtool")
    good = dict.fromkeys(BAD, "0x45") | {'up{job="karmalake"}': "1x45"}
    good['karmalake_loop_last_turn_timestamp_seconds{loop="refresh"}'] = "0+60x45"
    count = 'count by (alertname) (ALERTS{alertstate="firing"})'
    fired = [{"labels": f'{{alertname="{rule["alert"]}"}}', "value": 1} for rule in rules()]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [{"expr": count, "eval_time": "40m", "exp_samples": samples}],
        }
        for series, samples in ((BAD, fired), (good, []))
    ]
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
