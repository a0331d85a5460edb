"""How two tables with the same columns differ, as multisets of rows.

In Arrow, because for the few rows of most refreshes, DuckDB takes longer to plan a comparison than to make it.
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.reputation.sorted_words import distinct


def differing_rows(before: pa.Table, after: pa.Table) -> pa.Table:
    """Return the rows that two tables of the same schema do not share, with `sign`: how many more `after` has of each.

    Most rows are in both tables: found by their hashes, and compared column by column. Of the rest, only rows whose
    hashes occur twice may be equal, and are grouped.
    """
    before, after = before.combine_chunks(), after.combine_chunks()
    hashes, other_hashes = _hashes(before), _hashes(after)
    same_before, same_after = _same_rows(before, after, _by_hash(hashes, other_hashes))
    before, after = before.filter(pa.array(~same_before)), after.filter(pa.array(~same_after))
    signs = np.repeat([np.int64(-1), np.int64(1)], [len(before), len(after)])
    rows = pa.concat_tables([before, after]).append_column("sign", pa.array(signs))
    remaining = np.concatenate([hashes[~same_before], other_hashes[~same_after]])
    return rows if len(distinct(remaining)) == len(remaining) else _grouped(rows)


def _grouped(rows: pa.Table) -> pa.Table:
    *names, _ = rows.column_names
    summed = rows.group_by(names, use_threads=False).aggregate([("sign", "sum")])
    return summed.rename_columns(rows.column_names).filter(pc.field("sign") != 0)


def _same_rows(
    before: pa.Table, after: pa.Table, pairs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of two tables are equal to the one that they are paired with: bool, shape (rows,)."""
    rows, others = pairs
    is_same = np.ones(len(rows), bool)
    for name in before.column_names:
        left, right = before[name].take(pa.array(rows)), after[name].take(pa.array(others))
        is_equal = pc.fill_null(pc.equal(left, right), fill_value=False)
        is_same &= pc.or_(is_equal, pc.and_(pc.is_null(left), pc.is_null(right))).to_numpy()
    same_before, same_after = np.zeros(len(before), bool), np.zeros(len(after), bool)
    same_before[rows[is_same]] = same_after[others[is_same]] = True
    return same_before, same_after


def _by_hash(hashes: np.ndarray, other_hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows with equal hashes; the n-th of one table is paired with the n-th of the other."""
    order, other_order = np.argsort(hashes), np.argsort(other_hashes)
    hashes, other_hashes = hashes[order], other_hashes[other_order]
    nth = np.arange(len(hashes)) - np.searchsorted(hashes, hashes)
    at = np.searchsorted(other_hashes, hashes) + nth
    is_paired = at < len(other_hashes)
    is_paired[is_paired] = other_hashes[at[is_paired]] == hashes[is_paired]
    return order[is_paired], other_order[at[is_paired]]


def _hashes(rows: pa.Table) -> np.ndarray:
    """Return the hash of each row: uint64, shape (rows,)."""
    return pl.DataFrame(rows).hash_rows().to_numpy()
