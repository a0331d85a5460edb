"""Merges of users for the tests: random ones, and as the lake stores them."""

from collections.abc import Sequence

import pyarrow as pa
from hypothesis import strategies as st

from pipelines.reputation.merged_users import Merge, merge_row
from tests.reputation.history import NOW, at, stored_schema
from tests.reputation.strategies import USERS

Pair = tuple[str, str]
"""A user_id, and the one that it is merged into."""
KEYS = ("rater_id", "ride_id")
"""Both hold user_ids in these tests: the one decides caps and uniqueness, the other completions."""
_NAMES = (*USERS, "rita", "r1", "r2", "zoe")


def merges(max_size: int = 4) -> st.SearchStrategy[list[Pair]]:
    """Return merges in their order: chains, cycles, of users without events, and of those whom others' events name."""
    return st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(_NAMES)), max_size=max_size)


def stored(pairs: Sequence[Pair], since: int = NOW) -> list[Merge]:
    """Return merges at microseconds one after another, from `since`."""
    return [Merge(f"m{n}", old, new, "merge", at(since + n), "sue", "why", KEYS) for n, (old, new) in enumerate(pairs)]


def merges_table(found: Sequence[Merge]) -> pa.Table:
    """Return merges as rows of the lake."""
    return pa.Table.from_pylist(list(map(merge_row, found)), stored_schema("merged_users"))
