"""A filter of a run never hides an id, and new ids rarely read the run (`once`)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.lake.mapping import create_map, open_map
from pipelines.lake.run_filter import filter_path, find_filtered, read_filter, write_filter

_WORDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 3),  # many in the first bucket
    st.integers(2**64 - 4, 2**64 - 1),  # and in the last one
    st.integers(0, 300).map(lambda n: n << 55),
)
_IDS = st.lists(st.tuples(_WORDS, st.integers(0, 2)), min_size=1, max_size=400)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=_IDS, others=_IDS)
def test_a_filter_agrees_with_a_set(
    tmp_path_factory: pytest.TempPathFactory, ids: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    """For any digests, equal high words included, the ids of the run are found at their rows, and no other id is."""
    path, run = _write(tmp_path_factory.mktemp("run"), sorted(set(ids)))
    rows = {digest: row for row, digest in enumerate(sorted(set(ids)))}
    positions, _ = _find(path, run, [*ids, *others])
    assert positions == [rows.get(digest, -1) for digest in [*ids, *others]]


@pytest.mark.slow
def test_new_ids_read_almost_no_row(tmp_path: Path) -> None:
    """Of 20,000 new ids at most one in 25 is compared with a row; a known id reads its own row; it takes a byte per id.

    The numbers of rows at both sides of a power of two are those with the most and the fewest false positives.
    """
    for rows in (2**16 - 1, 2**16):
        known, new = _uniform(rows, 1), _uniform(20_000, 2)
        path, run = _write(tmp_path, known)
        positions, reads = _find(path, run, new)
        assert positions == [-1] * len(new)
        assert reads < len(new) / 25
        positions, reads = _find(path, run, known)
        assert positions == list(range(rows))
        assert reads < rows * 1.05
        filtered = read_filter(path, run)
        assert filtered is not None
        assert filtered.nbytes < 1.1 * rows


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(bytes(64) + path.read_bytes()[64:]),
        lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\1" * 8),
        lambda path: path.write_bytes(b"\2" + path.read_bytes()[1:]),
        lambda path: _write(path.parent, _uniform(1_000, 4))[0].replace(path),
        lambda path: _write(path.parent, _uniform(999, 3))[0].replace(path),
    ],
    ids=["missing", "empty", "short", "zeros", "no header", "torn", "other format", "other run", "other length"],
)
def test_an_unusable_filter_is_not_used(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A filter is used only if it is whole, of this format and of this run."""
    path, run = _write(tmp_path, _uniform(1_000, 3))
    intact = path.rename(tmp_path / "kept.filter")
    assert read_filter(intact, run) is not None
    damage(intact)
    assert read_filter(intact, run) is None


def _uniform(rows: int, seed: int) -> list[tuple[int, int]]:
    words = np.random.default_rng(seed).integers(0, 2**64, (rows, 2), np.uint64)
    return sorted((int(high), int(low)) for high, low in words)


def _write(folder: Path, digests: list[tuple[int, int]]) -> tuple[Path, np.ndarray]:
    """Write a run and its filter; return the filter's path, and the run as it is opened."""
    path, shape = folder / "1.run", (3, len(digests))
    path.unlink(missing_ok=True)
    words = create_map(path, shape)
    words[:2] = np.array(digests, np.uint64).T
    run = open_map(path, shape)
    write_filter(filter_path(path), run)
    return filter_path(path), run


def _find(path: Path, run: np.ndarray, ids: list[tuple[int, int]]) -> tuple[list[int], int]:
    filtered = read_filter(path, run)
    assert filtered is not None
    highs, lows = np.ascontiguousarray(np.array(ids, np.uint64).T)
    positions = np.full(len(ids), -1, np.int64)
    reads = find_filtered(filtered, run, highs, lows, positions)
    return positions.tolist(), reads
