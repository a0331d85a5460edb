"""The limit on dead letters, against a count that goes from record to record."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.schema import REJECTED
from pipelines.errors import RejectedError
from pipelines.ingest.guard import RejectionGuard
from pipelines.settings import IngestSettings

_BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=12), max_size=6)


@settings(deadline=None)
@given(_BATCHES, st.integers(1, 6))
def test_runs_are_counted_over_batches_and_by_topic_partition(
    batches: list[list[tuple[int, bool]]], longest: int
) -> None:
    """Ingest stops at the first batch in which, counting record by record, a run passes the limit."""
    guard = RejectionGuard(IngestSettings(max_dead_letter_run=longest))
    runs = {0: 0, 1: 0}
    for batch in batches:
        passed = False
        for partition, bad in batch:
            runs[partition] = runs[partition] + 1 if bad else 0
            passed |= runs[partition] > longest
        if passed:
            with pytest.raises(RejectedError, match="records in a row were rejected"):
                _check(guard, batch)
            return
        _check(guard, batch)


@pytest.mark.parametrize(
    ("bad", "of", "stops"), [(5, 10, False), (6, 10, True), (9, 9, False), (500, 1_000, False), (501, 1_000, True)]
)
def test_the_share_is_judged_of_large_batches_only(bad: int, of: int, *, stops: bool) -> None:
    """Half is allowed, more is not, and a batch of fewer records says little."""
    guard = RejectionGuard(IngestSettings(min_records_for_share=10))
    batch = [(0, n < bad) for n in range(of)]
    if not stops:
        _check(guard, batch)
        return
    with pytest.raises(RejectedError, match=r"records were rejected, the first at events-0@0: undecodable: Broken\."):
        _check(guard, batch)


def _check(guard: RejectionGuard, batch: list[tuple[int, bool]]) -> None:
    records = _rows([(partition, offset) for offset, (partition, _) in enumerate(batch)])
    guard.check(records, _rows([(partition, offset) for offset, (partition, bad) in enumerate(batch) if bad]))


def _rows(places: list[tuple[int, int]]) -> pa.Table:
    said = {"topic": "events", "reason": "undecodable", "detail": "Broken."}
    return pa.Table.from_pylist([said | {"topic_partition": p, "offset": o} for p, o in places], REJECTED)
