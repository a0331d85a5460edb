"""The public Python API: names that are imported on first use."""

import subprocess
import sys

import pytest

import karmalake
import karmalake.errors as public_errors
from pipelines import errors
from tests.services.waiting import PATIENCE_SECONDS


def test_import_is_lazy() -> None:
    """`import karmalake` loads neither DuckDB nor polars: the command line starts quickly."""
    script = "import sys, karmalake; print(sorted({'duckdb', 'polars', 'redis', 'pyarrow'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert answer.stdout == "[]\n"


def test_every_exported_name_exists() -> None:
    """Every exported name can be imported; any other one raises AttributeError."""
    assert sorted(name for names in karmalake._MODULES.values() for name in names) == karmalake.__all__
    assert [name for name in karmalake.__all__ if getattr(karmalake, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'close_warehouse'"):
        _ = karmalake.close_warehouse


def test_every_error_can_be_caught() -> None:
    """`karmalake.errors` has every class of the tree of errors."""
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(public_errors.__all__) == tree
