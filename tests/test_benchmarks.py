"""A benchmark fails when the measured work fails: a timed error looks like a good result."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import backfill, commits, footprint, freshness_users
from benchmarks.report import MeasurementError, require_count
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    """An unknown option ends with an error that names it, without a result."""
    with pytest.raises(MeasurementError, match=r"karmalake --no-such-option ended with 2: .*No such option"):
        footprint._run(["--no-such-option"], tmp_path)
    seconds, processor, peak_mb = footprint._run(["--version"], tmp_path)
    assert seconds > 0
    assert processor > 0
    assert peak_mb > 1


def test_incomplete_work_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill that commits fewer rows than the file has, and any other unexpected count."""
    record: Any = SimpleNamespace(total=lambda _: 7)
    monkeypatch.setattr("benchmarks.backfill.backfill", lambda *arguments: arguments[-1](record))
    assert backfill.backfill_file(tmp_path, tmp_path / "rows.csv", 7) >= 0
    with pytest.raises(MeasurementError, match=r"events backfilled from rows\.csv: 7 instead of 2,000,000"):
        backfill.backfill_file(tmp_path, tmp_path / "rows.csv", backfill.ROWS)
    require_count("probes", 3, 3)


def test_a_machine_that_is_too_small_is_refused_at_the_start() -> None:
    """Before half an hour of preparation, with what is missing: too little memory would stop other processes."""
    freshness_users.require_resources(18 * 2**30, 24 * 2**30)
    with pytest.raises(MeasurementError, match=r"18 GiB of free memory are needed, 17\.0 are free"):
        freshness_users.require_resources(17 * 2**30, 24 * 2**30)
    with pytest.raises(MeasurementError, match=r"24 GiB of free disk are needed, 3\.0 are free"):
        freshness_users.require_resources(18 * 2**30, 3 * 2**30)


def _results(name: str) -> dict[str, Any]:
    path = REPOSITORY / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(name: str) -> list[dict[str, Any]]:
    return _results(name)["rows"]


def _index_bytes() -> tuple[float, float]:
    """Return the bytes of an event_id in the filters, and in the runs beside them."""
    results = _results("dedup_limited")
    return results["bytes"]["filter"] / results["rows"][0]["ids"], results["bytes"]["run"] / results["rows"][0]["ids"]


def _measured() -> list[str]:
    longest, index, erased = _rows("history")[-1], _rows("dedup")[-1], _rows("erasure")[0]
    rates = {row["events_per_second"]: row for row in _rows("freshness") if row["policy"] == "default"}
    refreshed = [row for row in _rows("refresh") if (row["policy"], row["commit"]) == ("default", 5_000)]
    alone = max(row["events/s"] for row in _rows("share") if row["ingesters"] == 1)
    shared = sorted(row["events/s"] / alone for row in _rows("share") if row["ingesters"] == 2)
    without, limited = (row["batch of 5,000 ms"] for row in _rows("dedup_limited")[:2])
    (parquet,) = [row["events/s"] for row in _rows("backfill") if row["way"] == "backfill, parquet"]
    return [
        f"{round(_rows('ingest-small')[0]['events/s'], -3):,} |",
        f"{round(_rows('ingest-large')[0]['events/s'], -3):,} |",
        f"{round(longest['drain events/s'], -3):,} |",
        *(f"p50 {rates[rate]['p50']:.1f} s, p99 {rates[rate]['p99']:.1f} s" for rate in (1_000, 3_000, 5_000, 10_000)),
        f"{shared[0]:.2f} and {shared[1]:.2f} times as fast",
        f"{parquet // 1000},000 per second",
        *(f"{row['rebuild s']:.0f} s |" for row in _rows("history")[1:]),
        f"{longest['bytes an event'] / 10:.1f} GB |",
        f"{longest['drain MB']} MB",
        f"{erased['seconds']:.1f} s, {erased['files rewritten']} files rewritten | {erased['processor s']:.1f} s",
        f"{_rows('streaming')[-1]['commit ms']:.0f} ms a commit",
        f"{index['batch of 5,000 ms']:.0f} ms, {index['gigabytes']:.1f} GB of disk",
        *(f"{milliseconds:.0f} ms beside other work" for milliseconds in (without, limited)),
        f"{_results('dedup_limited')['bytes']['filter'] / 1e6:.0f} MB |",
        f"{longest['index rebuild ids/s'] / 1e6:.1f} million ids per second",
        f"{_results('publish')['document_bytes']} bytes each, {_rows('publish')[0]['seconds']:.1f} s",
        *(f"{row['seconds']:.1f} s |" for row in refreshed),
    ]


def _computed(events: int = 5_000_000_000, users: int = 50_000_000, profiled: float = 23.2) -> list[str]:
    """Return the figures that follow; profiled: seconds of CPU of a rebuild of ten million events."""
    longest, index, published = _rows("history")[-1], _rows("dedup")[-1], _rows("publish")[0]
    filters, runs = _index_bytes()
    (parquet,) = [row["events/s"] for row in _rows("backfill") if row["way"] == "backfill, parquet"]
    a_rebuild, profiled_event = longest["rebuild s"] / longest["events"], profiled / 10_000_000
    return [
        f"{a_rebuild * 1e9 / 60:.0f} min | {profiled_event * 1e9 / 60:.0f} min",
        f"{longest['bytes an event']:.0f} GB |",
        f"{index['gigabytes'] / index['ids'] * 1e9:.0f} GB of disk",
        f"{filters:.1f} GB |",
        f"{longest['bytes an event'] * events / 1e9:.0f} GB of Parquet",
        f"{(filters + runs) * events / 1e9:.0f} GB of disk",
        f"{filters * events / 1e9:.1f} GB of memory | {filters + runs:.1f} bytes per id",
        f"{events / longest['index rebuild ids/s'] / 60:.0f} min |",
        f"{events / parquet / 3600:.1f} to {events / longest['drain events/s'] / 3600:.0f} hours",
        f"{a_rebuild * events / 3600:.1f} hours; {profiled_event * events / 3600:.1f} hours of CPU",
        f"{_results('publish')['document_bytes'] * users / 1e9:.0f} GB, without keys",
        f"{published['seconds'] / published['documents'] * users / 60:.1f} min |",
    ]


@pytest.mark.parametrize("figures", [_measured, _computed])
def test_the_figures_of_the_page_on_scale(figures: Callable[[], list[str]]) -> None:
    """Each measured figure of docs/scale.md is that of the newest results, and each computed one follows from them."""
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    assert [figure for figure in figures() if figure not in page] == []


def test_commits_are_counted_in_simulated_time(tmp_path: Path) -> None:
    """An hour's linger makes few commits; a refresh covers what was committed while the one before ran."""
    rate, linger, a_day, records, *_ = commits.measure(tmp_path, 1, 3_600, 2)
    assert (rate, linger) == (1, 3_600)
    assert 23 <= a_day <= 24
    assert 3_400 < records < 3_800
    assert commits.count_refreshes([0.0, 0.1, 0.2, 1.0], 0.5) == 3
