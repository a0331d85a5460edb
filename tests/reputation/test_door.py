"""The public Python API: names that are imported on first use."""

import subprocess
import sys

import pytest

import pipelines
from tests.services.waiting import PATIENCE_SECONDS


def test_import_is_lazy() -> None:
    """`import pipelines` loads neither DuckDB nor polars: the command line starts quickly."""
    script = "import sys, pipelines; print(sorted({'duckdb', 'polars', 'redis', 'pyarrow'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert answer.stdout == "[]\n"


def test_every_exported_name_exists() -> None:
    """Every exported name can be imported; any other one raises AttributeError."""
    assert {name: getattr(pipelines, name).__name__ for name in pipelines.__all__} == {n: n for n in pipelines.__all__}
    with pytest.raises(AttributeError, match="no attribute 'close_warehouse'"):
        _ = pipelines.close_warehouse
