"""The compiled loops of the index agree with numpy for any distribution of digests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.lake.search import find, lower_bound, merge

# The first call of a compiled loop may compile it.
_UNTIMED = settings(deadline=None)
_RNG = np.random.default_rng(20260301)
_TOP = 2**64 - 1
# Uniform digests, as SipHash gives, and others that it never gives: the search is exact in all, fast in the former.
_ARRAYS = {
    "empty": [],
    "one": [7],
    "uniform": _RNG.integers(0, 2**64, 5_000, np.uint64),
    "consecutive": np.arange(2_000) + 10**9,
    "equal": [5] * 1_000,
    "zeros and tops": [0] * 500 + [_TOP] * 500,
    "all low but one": [*range(999), _TOP],
    "all high but one": [0, *range(_TOP - 998, _TOP + 1)],
    "powers of two": [2**n for n in range(64)] * 20,
    "equal as doubles": np.arange(1_000, dtype=np.uint64) + np.uint64(2**63),
    "two clusters": np.concatenate([_RNG.integers(0, 100, 900), _RNG.integers(2**62, 2**62 + 100, 900)]),
    "exponential": np.exp2(_RNG.uniform(0, 63.9, 3_000)).astype(np.uint64),
}


def _sorted(values: object) -> np.ndarray:
    return np.sort(np.asarray(values, np.uint64))


@pytest.mark.parametrize("name", _ARRAYS)
def test_lower_bound_is_searchsorted(name: str) -> None:
    """Interpolation search finds what a binary search finds, for members, neighbours of members and the extremes."""
    array = _sorted(_ARRAYS[name])
    sample = array[:: max(1, len(array) // 300)].tolist()
    values = {0, 1, _TOP, 2**63, *sample, *(max(0, v - 1) for v in sample), *(min(_TOP, v + 1) for v in sample)}
    for value in values:
        word = np.uint64(value)
        expected = int(np.searchsorted(array, word))
        assert lower_bound(array, word, 0) == expected
        assert lower_bound(array, word, expected // 2) == expected


@_UNTIMED
@given(st.lists(st.integers(0, _TOP), max_size=300), st.integers(0, _TOP), st.integers(0, 300))
def test_lower_bound_from_any_start(values: list[int], value: int, start: int) -> None:
    """Positions before the start are ignored."""
    array, start = _sorted(values), min(start, len(values))
    expected = max(start, int(np.searchsorted(array, np.uint64(value))))
    assert lower_bound(array, np.uint64(value), start) == expected


_PAIR = st.tuples(st.sampled_from([0, 1, 2, 2**63, _TOP]), st.sampled_from([0, 1, 2**63, _TOP]))


@_UNTIMED
@given(st.sets(_PAIR, max_size=20), st.sets(_PAIR, max_size=20), st.sets(_PAIR, max_size=5))
def test_find_looks_at_both_words(
    stored: set[tuple[int, int]], queried: set[tuple[int, int]], known: set[tuple[int, int]]
) -> None:
    """A digest is found by both words, however many share the high one; positions already found do not change."""
    run, ids = sorted(stored), sorted(queried)
    positions = np.array([99 if pair in known else -1 for pair in ids], np.int64)
    find(*_columns(run), *_columns(ids), positions)
    expected = [99 if pair in known else run.index(pair) if pair in stored else -1 for pair in ids]
    assert positions.tolist() == expected


@_UNTIMED
@given(st.lists(_PAIR, max_size=20), st.lists(_PAIR, max_size=20))
def test_merge_is_a_stable_sort(older: list[tuple[int, int]], newer: list[tuple[int, int]]) -> None:
    """The merged run is in order of (high, low); of equal digests the older run's row is first."""
    a, b = sorted(older), sorted(newer)
    high, low, payload = (np.empty(len(a) + len(b), np.uint64) for _ in range(3))
    payloads = [np.arange(len(a), dtype=np.uint64), np.arange(len(b), dtype=np.uint64) + np.uint64(1_000)]
    rows = merge(*_columns(a), payloads[0], *_columns(b), payloads[1], high, low, payload)
    expected = sorted([*zip(a, payloads[0].tolist(), strict=True), *zip(b, payloads[1].tolist(), strict=True)])
    assert rows == len(expected)
    assert list(zip(zip(high.tolist(), low.tolist(), strict=True), payload.tolist(), strict=True)) == expected


def _columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    words = np.array(pairs, np.uint64).reshape(-1, 2)
    return words[:, 0].copy(), words[:, 1].copy()
