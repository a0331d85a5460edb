"""Children of the crash matrix die at the given moment, cheaply enough for hundreds of them."""

import sys
import threading
from pathlib import Path

import pytest

from pipelines.drain import drain, open_ingest
from pipelines.settings import Settings
from pipelines.simulate.simulator import simulate
from tests.crashes.kills import Moment, kill
from tests.draining import drain_all, send, with_ingest


def _report(path: Path) -> None:
    loaded = {"deltalake", "duckdb", "numba", "polars", "pyarrow"} & set(sys.modules)
    path.write_text(f"{sorted(loaded)} {threading.active_count()}", encoding="utf-8")
    path.touch()


@pytest.mark.slow
def test_a_child_dies_at_the_moment_and_not_before(tmp_path: Path) -> None:
    """Before a call none of its effects exist, after it all; the libraries are loaded from the start."""
    before, after = tmp_path / "before", tmp_path / "after"
    kill(Moment("pathlib:Path.write_text", "before", 1), tmp_path / "log", _report, before)
    kill(Moment("pathlib:Path.write_text", "after", 1), tmp_path / "log", _report, after)
    assert not before.exists()
    assert after.read_text() == "['deltalake', 'duckdb', 'numba', 'polars', 'pyarrow'] 1"


@pytest.mark.slow
def test_a_moment_that_never_comes_is_an_error(tmp_path: Path) -> None:
    """A kill at a function that is never called would test nothing."""
    with pytest.raises(AssertionError, match=r"after pathlib:Path\.touch 2: the child ended with 0"):
        kill(Moment("pathlib:Path.touch", "after", 2), tmp_path / "log", _report, tmp_path / "report")


@pytest.mark.slow
def test_the_childs_own_error_is_reported(tmp_path: Path) -> None:
    """The error of a child that fails is in the message."""
    with pytest.raises(AssertionError, match="NotADirectoryError"):
        kill(Moment("pathlib:Path.touch", "after", 1), tmp_path / "log", _report, Path(__file__) / "under-a-file")


def test_a_forked_child_drains(settings: Settings, tmp_path: Path) -> None:
    """The libraries' threads start in the child: a whole drain works, up to its last call."""
    settings = with_ingest(settings)
    send(settings, simulate(7, 200).records)
    kill(Moment("pipelines.drain:DedupIndex.close", "after", 1), tmp_path / "log", drain_all, settings)
    with open_ingest(settings) as ingest:
        assert drain(ingest, lambda _: None) == 0
