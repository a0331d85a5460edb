"""The saved list of halted topic partitions, read beside a lake that is missing or damaged."""

from pathlib import Path

import pytest

from pipelines.errors import CorruptionError
from pipelines.ingest.guard import HaltedPartition
from pipelines.lake.halted import load_halted, save_halted
from pipelines.lake.tables import create_lake
from pipelines.settings import Settings


def test_a_damaged_lake_is_reported(tmp_path: Path) -> None:
    """`karmalake doctor` shows it as one line; without a lake nothing is halted."""
    settings = Settings(data_dir=tmp_path)
    places = [HaltedPartition("t-1", "events", 0, 7, "too many bad records", "both limits")]
    save_halted(settings, places)
    assert load_halted(settings) == []
    lake = create_lake(settings.lake_root)
    assert load_halted(settings) == places
    Path(lake.entry_path("events", 0)).write_text("{nonsense", encoding="utf-8")
    with pytest.raises(CorruptionError, match="events cannot be opened"):
        load_halted(settings)
