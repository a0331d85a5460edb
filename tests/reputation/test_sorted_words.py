"""Sets of integers as ascending arrays."""

from collections.abc import Collection

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation.sorted_words import bounds, contains, difference, distinct, positions, union

WORDS = st.lists(st.integers(0, 9) | st.integers(2**64 - 3, 2**64 - 1), max_size=12)


def words(values: Collection[int]) -> np.ndarray:
    return np.array(list(values), np.uint64)


@given(first=WORDS, second=WORDS)
def test_sets_are_those_of_python(first: list[int], second: list[int]) -> None:
    """Distinct values, union and difference, for empty arrays, too, and up to the largest hash."""
    assert distinct(words(first)).tolist() == sorted(set(first))
    assert union(words(first), words(second)).tolist() == sorted({*first, *second})
    assert difference(distinct(words(first)), distinct(words(second))).tolist() == sorted(set(first) - set(second))
    assert union(words(first), words(second)).dtype == np.uint64


@given(first=WORDS, second=WORDS)
def test_words_are_found_where_they_are(first: list[int], second: list[int]) -> None:
    """Every position of a wanted word, also of one that is repeated."""
    stored, wanted = words(sorted(first)), words(sorted(set(second)))
    assert contains(stored, wanted).tolist() == [word in first for word in sorted(set(second))]
    found = positions(stored, wanted).tolist()
    assert found == [at for at, word in enumerate(sorted(first)) if word in second]
    assert bounds(stored, wanted)[1].tolist() == [first.count(word) for word in sorted(set(second))]
