"""A benchmark fails when what it measures fails: a refusal that is timed looks like a good result."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import backfill, footprint
from benchmarks.report import MeasurementError, demand_count


def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    """An option that does not exist ends with an error that names it, no number."""
    with pytest.raises(MeasurementError, match=r"karmalake --no-such-option ended with 2: .*No such option"):
        footprint._run(["--no-such-option"], tmp_path)
    seconds, processor, peak_mb = footprint._run(["--version"], tmp_path)
    assert seconds > 0
    assert processor > 0
    assert peak_mb > 1


def test_what_did_no_work_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill that commits less than the file has, and any other count that is not the expected one."""
    record: Any = SimpleNamespace(total=lambda _: 7)
    monkeypatch.setattr("benchmarks.backfill.backfill", lambda *arguments: arguments[-1](record))
    assert backfill._by_file(tmp_path, tmp_path / "rows.csv", 7) >= 0
    with pytest.raises(MeasurementError, match=r"events backfilled from rows\.csv: 7 instead of 2,000,000"):
        backfill._by_file(tmp_path, tmp_path / "rows.csv", backfill.ROWS)
    demand_count("probes", 3, 3)
