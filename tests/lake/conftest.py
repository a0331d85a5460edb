"""A lake for each test."""

from pathlib import Path

import pytest

from pipelines.lake.tables import Lake, create_lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Return an empty lake."""
    return create_lake(tmp_path / "lake")
