"""Every metric follows Prometheus' conventions, and no registry is shared."""

import re
import subprocess

import pytest
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pipelines.monitoring.metrics import PROCESSES, Book, StreamMetrics
from pipelines.operate.lag.measure import Measurement
from pipelines.operate.lag.watch import Observation
from tests.operate.lag.measurements import measurement, partition
from tests.services.requirements import require

_NOT_BASE = re.compile(
    r"_(ms|millis|milliseconds|micro\w*|minutes|hours|days|kb|kib|mb|mib|kilobytes|megabytes|percent)(_|$)"
)
_UNITS = ("_records", "_seconds", "_bytes", "_rows", "_offset", "_version", "_info", "_advices", "_partitions")
_FROM_ELSEWHERE = "process_"


def books() -> list[tuple[str, Book]]:
    return [(name, make().book) for name, make in PROCESSES.items()]


def families(book: Book) -> dict[str, Metric]:
    """Return our metrics of a registry by the name that they are documented by."""
    found = [family for family in book.registry.collect() if not family.name.startswith(_FROM_ELSEWHERE)]
    suffixes = {"counter": "_total", "info": "_info"}
    return {family.name + suffixes.get(family.type, ""): family for family in found}


@pytest.mark.parametrize(("process", "book"), books())
def test_what_is_documented_is_what_is_registered(process: str, book: Book) -> None:
    """Name, type and help of each; the docs are made from the entries."""
    registered = {name: (family.type, family.documentation) for name, family in families(book).items()}
    assert {entry.name: (entry.kind, entry.text) for entry in book.entries} == registered


@pytest.mark.parametrize(("process", "book"), books())
def test_names_follow_the_conventions(process: str, book: Book) -> None:
    """Our prefix, base units, _total for counters and nothing else, a sentence of help, no reserved label."""
    for entry in book.entries:
        assert re.fullmatch(r"karmalake_[a-z]+(_[a-z]+)*", entry.name)
        assert entry.name.endswith("_total") == (entry.kind == "counter")
        assert entry.name.endswith(_UNITS) or entry.kind == "counter", f"{entry.name} has no unit"
        assert not _NOT_BASE.search(entry.name)
        assert entry.text.endswith(".")
        assert entry.text[0].isupper()
        assert not {"le", "quantile", "job", "instance"} & set(entry.labels)


@pytest.mark.parametrize(("process", "book"), books())
def test_both_formats_are_understood(process: str, book: Book) -> None:
    """Prometheus' own format and OpenMetrics, as their parsers read them, with the same names."""
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    openmetrics = {family.name for family in parse_openmetrics(encode(book.registry).decode())}
    text = {family.name for family in parse_text(generate_latest(book.registry).decode())}
    assert {family.name for family in book.registry.collect()} == openmetrics
    assert openmetrics <= {name.removesuffix("_info") for name in text} | text


@pytest.mark.parametrize(("process", "book"), books())
def test_promtool_has_nothing_to_say(process: str, book: Book) -> None:
    """Prometheus' own linter of metrics."""
    require("promtool")
    exposed = generate_latest(book.registry)
    done = subprocess.run(["promtool", "check", "metrics"], input=exposed, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_no_registry_is_shared() -> None:
    """Two in one process count each for itself."""
    one, other = StreamMetrics(), StreamMetrics()
    one.observed(Observation(_behind(7), {}, None, ()))
    labels = {"topic_partition": "0"}
    assert one.book.registry.get_sample_value("karmalake_lag_records", labels) == 7
    assert other.book.registry.get_sample_value("karmalake_lag_records", labels) is None


def test_what_cannot_be_foreseen_is_infinite() -> None:
    """An alert on the time to catch up fires also where it never comes."""
    metrics = StreamMetrics()
    metrics.observed(Observation(_behind(7), {}, None, ("do something",)))
    assert metrics.book.registry.get_sample_value("karmalake_lag_catch_up_seconds") == float("inf")
    assert metrics.book.registry.get_sample_value("karmalake_lag_advices") == 1


def _behind(records: int) -> Measurement:
    return measurement(partition(0, records, 0, seconds=1.0))
