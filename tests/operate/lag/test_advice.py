"""Advice on synthetic measurements: each where it is justified, and none otherwise."""

import pytest

from pipelines.operate.lag.advice import advise
from pipelines.operate.lag.measure import Lag, Measurement, Work
from pipelines.settings import IngestSettings
from tests.operate.lag.measurements import measurement, partition

INGEST = IngestSettings(max_batch_records=1_000)
HOUR = 3_600.0


def late(number: int, end: int, at: int | None, *, begin: int = 0, seconds: float = 60.0) -> Lag:
    """Return a topic partition whose oldest unread record has waited for a minute."""
    return partition(number, end, at, seconds=seconds, begin=begin)


def at_its_limit(work: Work | None = None, moved: int = 500) -> list[Measurement]:
    """Return two topic partitions that each receive 1,000 records in ten seconds, of which `moved` are ingested."""
    before = measurement(late(0, 5_000, 1_000), late(1, 5_000, 1_000))
    after = measurement(late(0, 6_000, 1_000 + moved), late(1, 6_000, 1_000 + moved), after=10, work=work)
    return [before, after]


@pytest.mark.parametrize(
    "measurements",
    [
        [],
        [measurement(partition(0, 10, 10))],
        [measurement(partition(0, 10, 10)), measurement(partition(0, 500, 400, seconds=0.5), after=10)],
        [measurement(late(0, 90, 10)), measurement(late(0, 100, 60), after=10)],
        [measurement(partition(0, 9, 9)), measurement(partition(0, 9, 9), after=10, work=Work(3, 30, 10, 2.0, 1.5))],
    ],
    ids=["nothing known", "caught up", "a batch under way", "catching up", "publishing is the smaller part"],
)
def test_no_advice_without_a_problem(measurements: list[Measurement]) -> None:
    """Needless advice would be ignored when it matters."""
    assert advise(measurements, INGEST) == []


def test_a_process_at_its_limit_needs_more_processes() -> None:
    """All topic partitions lag, more records arrive than are ingested, and commits are not full."""
    [advice] = advise(at_its_limit(Work(5, 1_000, 300, 1.0, 0.1)), INGEST)
    assert advice.startswith("200 records/s arrive and 100 records/s are ingested, and every topic partition is behind")
    assert "add topic partitions if 2 are too few" in advice


def test_full_commits_ask_for_larger_ones() -> None:
    """The same with commits as large as the settings allow."""
    [advice] = advise(at_its_limit(Work(1, 950, 950, 1.0, 0.1)), INGEST)
    assert "commits are full with 950 records: raise ingest.max_batch_records" in advice


def test_stopped_ingest_is_reported() -> None:
    """No records are ingested at all."""
    [advice] = advise(at_its_limit(moved=0), INGEST)
    assert advice.startswith("200 records/s arrive and 0 records/s are ingested: start ingest")


def test_a_hot_topic_partition_is_named_with_its_share() -> None:
    """One lags, the others are current, and most records arrive there."""
    others = [partition(number, 1_000, 1_000) for number in (1, 2)]
    now = [partition(number, 2_000, 2_000) for number in (1, 2)]
    before, after = measurement(late(0, 1_000, 900), *others), measurement(late(0, 9_000, 3_000), *now, after=10)
    [advice] = advise([before, after], INGEST)
    assert advice.startswith("events-0 is 6,000 records behind while the others are current, and 80% of all records")
    assert "count the events of topic_partition 0 by user_id" in advice


def test_a_slow_leader_is_distinguished_from_a_hot_user() -> None:
    """One lags although no more records arrive there than elsewhere."""
    before = measurement(late(0, 1_000, 900), partition(1, 1_000, 1_000))
    after = measurement(late(0, 2_000, 900), partition(1, 2_000, 2_000), after=10)
    [advice] = advise([before, after], INGEST)
    assert "no more records arrive there than elsewhere" in advice


def test_slow_redis_is_distinguished_from_slow_scores() -> None:
    """Publishing takes most of a refresh, also without lag."""
    [advice] = advise([measurement(partition(0, 9, 9), work=Work(1, 9, 9, 0.5, 4.5))], INGEST)
    assert advice.startswith("publishing took 4.5 s of the 5.0 s")


def test_a_checkpoint_near_the_end_of_retention_is_urgent() -> None:
    """The oldest unread record has spent more than half of the time that the topic keeps it."""
    [advice] = advise([measurement(late(0, 100, 50, seconds=13 * HOUR), retention_hours=24)], INGEST)
    assert advice.startswith("events-0: the oldest unread record is 13.0 h old and the topic keeps records for 24 h")
    assert advise([measurement(late(0, 100, 50, seconds=13 * HOUR), retention_hours=-1)], INGEST) == []


def test_a_log_whose_start_nears_the_checkpoint_is_urgent() -> None:
    """Retention by size: at this pace the broker deletes unread records within the hour."""
    before = measurement(late(0, 1_000, 600, begin=0))
    after = measurement(late(0, 1_000, 620, begin=80), after=60)
    [advice] = advise([before, after], INGEST)
    assert advice.startswith("events-0: the start of the log reaches the checkpoint in 9 minutes")


def test_records_deleted_by_retention_are_counted() -> None:
    """The log starts above the checkpoint: the records in between were never read."""
    [advice] = advise([measurement(late(0, 100, 20, begin=35))], INGEST)
    assert advice.startswith("events-0: retention removed 15 records that were never read")
