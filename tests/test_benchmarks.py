"""A benchmark fails when the measured work fails: a timed error looks like a good result."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import backfill, commits, footprint
from benchmarks.report import MeasurementError, require_count


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


def test_commits_are_counted_in_simulated_time(tmp_path: Path) -> None:
    """An hour's linger makes few commits; a refresh covers what was committed while the one before ran."""
    rate, linger, a_day, records, *_ = commits.measure(tmp_path, 1, 3_600, 2)
    assert (rate, linger) == (1, 3_600)
    assert 23 <= a_day <= 24
    assert 3_400 < records < 3_800
    assert commits.count_refreshes([0.0, 0.1, 0.2, 1.0], 0.5) == 3
