"""What a refresh finds to differ between stored and recomputed rows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reputation import differing_rows as module
from pipelines.reputation.differing_rows import differing_rows

_SCHEMA = pa.schema({"user_id": pa.large_string(), "points": pa.float64(), "day": pa.date32(), "events": pa.int64()})
_Row = tuple[str, float | None, None, int | None]
_ROWS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from((None, 0.0, 0.5)), st.none(), st.sampled_from((None, 0, 1)))
)


def _table(rows: list[_Row]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(_SCHEMA.names, row, strict=True)) for row in rows], _SCHEMA)


@given(_ROWS, _ROWS)
def test_the_difference_of_two_tables_is_that_of_their_multisets(before: list[_Row], after: list[_Row]) -> None:
    """Null equals null, and a row that is there twice differs from one that is there once."""
    _assert_multiset_difference(before, after)


@given(_ROWS, _ROWS)
def test_rows_with_the_same_hash_may_differ(before: list[_Row], after: list[_Row]) -> None:
    """Hashes only say which rows to compare."""

    def all_equal(rows: pa.Table) -> np.ndarray:
        return np.zeros(len(rows), np.uint64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_hashes", all_equal)
        _assert_multiset_difference(before, after)


def _assert_multiset_difference(before: list[_Row], after: list[_Row]) -> None:
    found = differing_rows(_table(before), _table(after))
    signs = {
        tuple(row.values()): sign
        for row, sign in zip(found.drop(["sign"]).to_pylist(), found["sign"].to_pylist(), strict=True)
    }
    counted = Counter(after)
    counted.subtract(before)
    assert signs == {row: count for row, count in counted.items() if count}
