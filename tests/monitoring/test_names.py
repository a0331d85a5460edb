"""Every metric follows Prometheus' conventions, and no registry is shared."""

import re
import subprocess

import pytest
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pipelines.monitoring.metrics import PROCESSES, MetricRegistry, StreamMetrics
from pipelines.operate.lag.measure import Measurement
from pipelines.operate.lag.observe import Observation
from tests.operate.lag.measurements import measurement, partition
from tests.services.requirements import require

_NOT_BASE = re.compile(
    r"_(ms|millis|milliseconds|micro\w*|minutes|hours|days|kb|kib|mb|mib|kilobytes|megabytes|percent)(_|$)"
)
_UNITS = (
    "_records",
    "_changes",
    "_seconds",
    "_bytes",
    "_rows",
    "_offset",
    "_version",
    "_info",
    "_advices",
    "_partitions",
)
_FROM_ELSEWHERE = "process_"


def registries() -> list[tuple[str, MetricRegistry]]:
    return [(name, make().registry) for name, make in PROCESSES.items()]


def families(registry: MetricRegistry) -> dict[str, Metric]:
    """Return karmalake's metrics of a registry by their documented names."""
    found = [family for family in registry.collectors.collect() if not family.name.startswith(_FROM_ELSEWHERE)]
    suffixes = {"counter": "_total", "info": "_info"}
    return {family.name + suffixes.get(family.type, ""): family for family in found}


@pytest.mark.parametrize(("process", "registry"), registries())
def test_documented_metrics_are_the_registered_ones(process: str, registry: MetricRegistry) -> None:
    """Name, type and help of each; the docs are generated from the entries."""
    registered = {name: (family.type, family.documentation) for name, family in families(registry).items()}
    assert {entry.name: (entry.kind, entry.text) for entry in registry.entries} == registered


@pytest.mark.parametrize(("process", "registry"), registries())
def test_names_follow_the_conventions(process: str, registry: MetricRegistry) -> None:
    """Our prefix, base units, _total for counters and nothing else, a sentence of help, no reserved label."""
    for entry in registry.entries:
        assert re.fullmatch(r"karmalake_[a-z]+(_[a-z]+)*", entry.name)
        assert entry.name.endswith("_total") == (entry.kind == "counter")
        assert entry.name.endswith(_UNITS) or entry.kind == "counter", f"{entry.name} has no unit"
        assert not _NOT_BASE.search(entry.name)
        assert entry.text.endswith(".")
        assert entry.text[0].isupper()
        assert not {"le", "quantile", "job", "instance"} & set(entry.labels)


@pytest.mark.parametrize(("process", "registry"), registries())
def test_both_formats_are_understood(process: str, registry: MetricRegistry) -> None:
    """The Prometheus text format and OpenMetrics, read by their parsers, with the same names."""
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    openmetrics = {family.name for family in parse_openmetrics(encode(registry.collectors).decode())}
    text = {family.name for family in parse_text(generate_latest(registry.collectors).decode())}
    assert {family.name for family in registry.collectors.collect()} == openmetrics
    assert openmetrics <= {name.removesuffix("_info") for name in text} | text


@pytest.mark.parametrize(("process", "registry"), registries())
def test_promtool_reports_no_problems(process: str, registry: MetricRegistry) -> None:
    """Prometheus' own linter accepts the metrics."""
    require("promtool")
    exposed = generate_latest(registry.collectors)
    done = subprocess.run(["promtool", "check", "metrics"], input=exposed, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_no_registry_is_shared() -> None:
    """Two instances in one process count independently."""
    one, other = StreamMetrics(), StreamMetrics()
    one.observed([Observation(_behind(7), {}, None, ())])
    labels = {"topic": "events", "topic_partition": "0"}
    assert one.registry.collectors.get_sample_value("karmalake_lag_records", labels) == 7
    assert other.registry.collectors.get_sample_value("karmalake_lag_records", labels) is None


def test_an_unknown_catch_up_time_is_infinite() -> None:
    """So an alert on the time to catch up also fires if it never will."""
    metrics = StreamMetrics()
    metrics.observed([Observation(_behind(7), {}, None, ("do something",))])
    assert metrics.registry.collectors.get_sample_value("karmalake_lag_catch_up_seconds", {"topic": "events"}) == float(
        "inf"
    )
    assert metrics.registry.collectors.get_sample_value("karmalake_lag_advices") == 1


def _behind(records: int) -> Measurement:
    return measurement(partition(0, records, 0, seconds=1.0))
