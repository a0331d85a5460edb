"""The limits on rejections, compared with a count record by record for each topic partition."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.structs import TopicPartition

from pipelines.contract.decode import Decoded
from pipelines.contract.schema import EVENT, POSITION, RECORD, REJECTED
from pipelines.ingest.batch import Batch, OffsetRange
from pipelines.ingest.guard import HaltedPartition, RejectionGuard
from pipelines.settings import IngestSettings

_BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=12), max_size=6)


@settings(deadline=None)
@given(_BATCHES, st.integers(1, 6))
def test_runs_are_counted_over_batches_and_by_topic_partition(
    batches: list[list[tuple[int, bool]]], longest: int
) -> None:
    """A topic partition halts at the first batch in which its run, counted record by record, exceeds the limit."""
    guard = RejectionGuard(IngestSettings(max_dead_letter_run=longest))
    runs, at, halted_partitions = {0: 0, 1: 0}, {0: 0, 1: 0}, set[int]()
    for records in batches:
        batch = [(partition, bad) for partition, bad in records if partition not in halted_partitions]
        passed = {partition for partition in (0, 1) if _longest(batch, partition, runs[partition]) > longest}
        assert {halted.topic_partition for halted in _check(guard, batch, at)} == passed
        halted_partitions |= passed
        for partition, bad in batch:
            runs[partition] = runs[partition] + 1 if bad else 0
            at[partition] += 1


def _longest(batch: list[tuple[int, bool]], partition: int, run: int) -> int:
    longest = 0
    for bad in (bad for each, bad in batch if each == partition):
        run = run + 1 if bad else 0
        longest = max(longest, run)
    return longest


@pytest.mark.parametrize(
    ("bad", "of", "stops"), [(5, 10, False), (6, 10, True), (9, 9, False), (500, 1_000, False), (501, 1_000, True)]
)
def test_the_share_applies_to_large_batches_only(bad: int, of: int, *, stops: bool) -> None:
    """Half is allowed, more is not; smaller batches are not checked."""
    guard = RejectionGuard(IngestSettings(min_records_for_share=10))
    halted = _check(guard, [(0, n < bad) for n in range(of)])
    assert [place.next_offset for place in halted] == ([0] if stops else [])


def test_the_message_names_place_limits_and_remedies() -> None:
    """It names the topic partition, the first offset and reason, the limits exceeded, both limits, and what to do."""
    guard = RejectionGuard(IngestSettings(min_records_for_share=10, max_dead_letter_run=7))
    [halted] = _check(guard, [(3, n > 1) for n in range(12)], {3: 40})
    sentence = str(halted)
    for part in (
        "events-3 is halted at offset 40", "83% of 12 records were rejected and 10 records in a row were rejected",
        "the first at events-3@42: undecodable: Broken.", "fix the producer",
        "`karmalake drain --accept-rejections events-3`", "KARMALAKE_INGEST_MAX_DEAD_LETTER_SHARE=0.5",
        "KARMALAKE_INGEST_MAX_DEAD_LETTER_RUN=7",
    ):  # fmt: skip
        assert part in sentence
    assert "--accept-rejections" not in str(halted.error()), "a file has no such option"


def test_what_is_read_again_is_counted_once() -> None:
    """An uncommitted batch is read again: its run continues the one before it."""
    guard = RejectionGuard(IngestSettings(max_dead_letter_run=10))
    assert _check(guard, [(0, True)] * 6) == []
    for _ in range(3):
        assert _check(guard, [(0, True)] * 4, {0: 6}) == []
    assert len(_check(guard, [(0, True)], {0: 10})) == 1


def test_an_accepted_topic_partition_passes() -> None:
    """Only that one is exempt from the limits."""
    guard = RejectionGuard(IngestSettings(max_dead_letter_run=3), frozenset({TopicPartition("events", 1)}))
    assert [halted.topic_partition for halted in _check(guard, [(n % 2, True) for n in range(20)])] == [0]


def test_skipped_records_do_not_count() -> None:
    """Records that an operator skipped say nothing about the schema."""
    guard = RejectionGuard(IngestSettings(max_dead_letter_run=1))
    assert _check(guard, [(0, True)] * 5, reason="skipped") == []


def test_a_refused_select_halts_at_once() -> None:
    """One sentence with the source's mistake and what to do, whatever the limits are; unless it is accepted."""
    guard = RejectionGuard(IngestSettings())
    [halted] = _check(guard, [(0, False), (0, True), (1, False)], {0: 7}, reason="refused_select")
    assert (halted.topic_partition, halted.next_offset) == (0, 7)
    for part in ("events-0@8: refused_select: Broken.", "correct the source file", "--accept-rejections events-0"):
        assert part in str(halted)
    assert "schema, so nothing" not in str(halted)
    accepting = RejectionGuard(IngestSettings(), frozenset({TopicPartition("events", 0)}))
    assert _check(accepting, [(0, True)], reason="refused_select") == []


def _check(
    guard: RejectionGuard, batch: list[tuple[int, bool]], at: dict[int, int] | None = None, reason: str = "undecodable"
) -> list[HaltedPartition]:
    """Check records of topic partitions, good or bad, with offsets from `at` on."""
    at = at or {}
    places: list[tuple[int, int]] = []
    next_offsets = dict(at)
    for partition, _ in batch:
        offset = next_offsets.get(partition, 0)
        next_offsets[partition] = offset + 1
        places.append((partition, offset))
    rejected = [place for place, (_, bad) in zip(places, batch, strict=True) if bad]
    ranges = tuple(OffsetRange("id", "events", n, at.get(n, 0), next_offsets[n]) for n in sorted({n for n, _ in batch}))
    events = pa.schema([*EVENT, *POSITION]).empty_table()
    decoded = Decoded(events, _rows(rejected, REJECTED, reason), pa.array([], pa.bool_()), POSITION.empty_table())
    return guard.check(Batch("kafka:events", _rows(places, RECORD, reason), decoded, ranges))


def _rows(places: list[tuple[int, int]], schema: pa.Schema, reason: str) -> pa.Table:
    common = {"topic": "events", "reason": reason, "detail": "Broken."}
    return pa.Table.from_pylist([common | {"topic_partition": p, "offset": o} for p, o in places], schema)
