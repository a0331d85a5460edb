"""A benchmark fails when the measured work fails: a timed error looks like a good result."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import backfill, footprint
from benchmarks.report import MeasurementError, require_count
from tests.conftest import REPOSITORY


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
    assert backfill._by_file(tmp_path, tmp_path / "rows.csv", 7) >= 0
    with pytest.raises(MeasurementError, match=r"events backfilled from rows\.csv: 7 instead of 2,000,000"):
        backfill._by_file(tmp_path, tmp_path / "rows.csv", backfill.ROWS)
    require_count("probes", 3, 3)


def _rows(name: str) -> list[dict[str, Any]]:
    path = REPOSITORY / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_the_figures_of_the_page_on_scale() -> None:
    """Each measured figure of docs/scale.md is that of the newest results, and each computed one follows from it."""
    small, large, longest, index = (
        _rows("ingest-small")[0],
        _rows("ingest-large")[0],
        _rows("history")[-1],
        _rows("dedup")[-1],
    )
    rates = {row["events_per_second"]: row for row in _rows("freshness")}
    published = _rows("publish")[0]
    (refreshed,) = [
        row for row in _rows("refresh") if (row["users"], row["policy"], row["commit"]) == (1_000_000, "default", 5_000)
    ]
    shared = sorted(row["events/s"] for row in _rows("share") if row["ingesters"] == 2)
    alone = max(row["events/s"] for row in _rows("share") if row["ingesters"] == 1)
    a_day = 86_400
    figures = [
        f"{round(small['events/s'], -3):,}",
        f"{round(large['events/s'], -3):,}",
        f"{round(longest['drain events/s'], -3):,}",
        f"{longest['drain events/s'] * a_day / 1e9:.1f} billion",
        f"p50 {rates[3_000]['p50']:.1f} s, p99 {rates[3_000]['p99']:.1f} s",
        f"p50 {rates[10_000]['p50']:.1f} s, p99 {rates[10_000]['p99']:.1f} s",
        f"{3_000 * a_day / 1e6:.0f} million events",
        f"{longest['rebuild s']:.0f} s, {longest['bytes an event'] / 10:.1f} GB",
        f"{longest['rebuild s'] * 10 / 60:.0f} min, {longest['bytes an event']:.0f} GB",
        f"{refreshed['seconds']:.1f} s",
        f"{index['batch of 5,000 ms']:.0f} ms for 5,000 new ids, {index['gigabytes']:.1f} GB",
        f"{index['gigabytes'] / index['ids'] * 1e9:.0f} GB of disk",
        f"{longest['drain MB']} MB",
        f"{published['seconds']:.1f} s",
        f"{published['seconds'] / published['documents'] * 1e7:.0f} s",
        f"{_rows('streaming')[-1]['commit ms']:.0f} ms a commit",
        f"{shared[0] / alone:.2f} and {shared[1] / alone:.2f}",
    ]
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    assert [figure for figure in figures if figure not in page] == []
