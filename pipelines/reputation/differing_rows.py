"""How two tables with the same columns differ, as multisets of rows.

In Arrow, because for the few rows of most refreshes, DuckDB takes longer to plan a comparison than to make it.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc


def differing_rows(before: pa.Table, after: pa.Table) -> pa.Table:
    """Return the rows that two tables of the same schema do not share, with `sign`: how many more `after` has of each.

    Most rows are in both tables: found by their hashes, and compared column by column. Only the rest is grouped,
    which takes four times as long.
    """
    before, after = before.combine_chunks(), after.combine_chunks()
    same_before, same_after = _same_rows(before, after)
    before, after = _without(before, same_before), _without(after, same_after)
    signs = np.repeat([np.int64(-1), np.int64(1)], [len(before), len(after)])
    rows = pa.concat_tables([before, after]).append_column("times", pa.array(signs))
    summed = rows.group_by(before.column_names, use_threads=False).aggregate([("times", "sum")])
    return summed.rename_columns([*before.column_names, "sign"]).filter(pc.field("sign") != 0)


def _without(rows: pa.Table, removed: np.ndarray) -> pa.Table:
    remains = np.ones(len(rows), bool)
    remains[removed] = False
    return rows.filter(pa.array(remains))


def _same_rows(before: pa.Table, after: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of two tables that are equal, in pairs: int64, shape (pairs,). A few may be missing."""
    rows, others = _by_hash(before, after)
    is_same = np.ones(len(rows), bool)
    for name in before.column_names:
        left, right = before[name].take(pa.array(rows)), after[name].take(pa.array(others))
        is_equal = pc.fill_null(pc.equal(left, right), fill_value=False)
        is_same &= pc.or_(is_equal, pc.and_(pc.is_null(left), pc.is_null(right))).to_numpy()
    return rows[is_same], others[is_same]


def _by_hash(before: pa.Table, after: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows with equal hashes; the n-th of `before` is paired with the n-th of `after`."""
    (order, hashes), (other_order, other_hashes) = _sorted_hashes(before), _sorted_hashes(after)
    nth = np.arange(len(hashes)) - np.searchsorted(hashes, hashes)
    at = np.searchsorted(other_hashes, hashes) + nth
    is_paired = at < len(other_hashes)
    is_paired[is_paired] = other_hashes[at[is_paired]] == hashes[is_paired]
    return order[is_paired], other_order[at[is_paired]]


def _sorted_hashes(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a table in the order of their hashes, and the hashes."""
    hashes = pl.DataFrame(rows).hash_rows().to_numpy()
    order = np.argsort(hashes)
    return order, hashes[order]
