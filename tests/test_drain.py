"""Draining a topic of the embedded broker, end to end: every record has one fate, and none is lost or counted twice."""

import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from kafka.errors import KafkaError

from pipelines import drain as drain_module
from pipelines.bus.topics import ensure_topic
from pipelines.contract.rejection import Reason
from pipelines.drain import accept_loss, drain, drain_once, open_ingest
from pipelines.emit.producer import Record
from pipelines.errors import CommitUnknownError, FencedError, RejectedError, TransientError, UsageError
from pipelines.ingest import kafka as kafka_source_module
from pipelines.ingest.batch import OffsetRange
from pipelines.ingest.kafka import KafkaSource
from pipelines.lake import commit as commit_module
from pipelines.lake.commit import CommitRecord, commit_batch
from pipelines.lake.index import DedupIndex
from pipelines.lake.tables import TABLES, Lake, create_lake, data_files, open_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.audit import audit
from pipelines.refresh import refresh_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.draining import (
    NOON,
    assert_verified,
    contents,
    drain_all,
    drained,
    elsewhere,
    query,
    recreate_topic,
    send,
    valid_records,
    with_ingest,
)
from tests.services.waiting import wait_for

_MANY_FAULTS = FaultRates(duplicates=0.1, conflicts=0.02, mis_keyed=0.01, malformed=0.02)


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings with short poll waits."""
    return with_ingest(settings)


def test_a_drain_reconciles_with_the_simulated_world(bus: Settings) -> None:
    """With every fault of a simulated world, the offsets of each topic partition reconcile with what was planted."""
    simulation = simulate(7, 3_000, rates=_MANY_FAULTS)
    planted = simulation.planted
    assert send(bus, simulation.records) == planted.sent
    records = drain_all(bus)
    totals = {name: sum(r.total(name) for r in records) for name in ("read", "accepted", "duplicates", "conflicts")}
    assert totals == {
        "read": planted.sent,
        "accepted": planted.distinct,
        "duplicates": planted.duplicates,
        "conflicts": planted.conflicts,
    }
    assert sum(record.mis_keyed for record in records) == planted.mis_keyed
    assert dict(query(bus, "SELECT reason, count(*) FROM dead_letters GROUP BY ALL")) == planted.malformed
    for offsets in (offsets for record in records for offsets in record.ranges):
        assert offsets.next_offset - offsets.start_offset == offsets.read
        assert offsets.read == offsets.accepted + offsets.duplicates + offsets.conflicts + offsets.dead_letters
    assert_verified(bus)


@pytest.mark.slow
def test_small_batches_give_the_same_lake(bus: Settings) -> None:
    """The batch size does not change the lake (`replay-equals-live`)."""
    for seed in range(6):
        send(bus, simulate(seed, 300, rates=_MANY_FAULTS).records)
    drain_all(bus)
    small = with_ingest(bus, max_batch_records=100).model_copy(update={"data_dir": bus.data_dir / "small"})
    assert len(drain_all(small)) > 3
    assert contents(small) == contents(bus)


def test_draining_again_changes_nothing(bus: Settings) -> None:
    """A second drain of the same log makes no commit; records sent again are duplicates (`once`)."""
    simulation = simulate(1, 500, rates=FaultRates(malformed=0))
    send(bus, simulation.records)
    drain_all(bus)
    events = query(bus, "SELECT event_id FROM events ORDER BY ALL")
    assert drain_all(bus) == []
    send(bus, simulation.records)
    again = drained(bus)
    assert again.total("accepted") == 0
    assert again.total("duplicates") + again.total("conflicts") == again.total("read") == simulation.planted.sent
    assert query(bus, "SELECT event_id FROM events ORDER BY ALL") == events
    assert_verified(bus)


def test_a_new_process_continues_from_the_checkpoint(bus: Settings) -> None:
    """The next ingest does not read committed records again."""
    send(bus, valid_records(range(100)))
    drain_all(bus)
    send(bus, valid_records(range(100, 150)))
    record = drained(bus)
    assert (record.total("read"), record.total("accepted")) == (50, 50)
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(150, 150)]


def test_a_drain_does_not_wait_for_future_records(bus: Settings) -> None:
    """It looks up the end of the log and ends there, however long a poll may wait."""
    send(bus, valid_records(range(100)))
    record = drained(with_ingest(bus, max_wait_seconds=3_600, linger_seconds=3_600))
    assert record.total("accepted") == 100
    assert drain_all(with_ingest(bus, max_wait_seconds=3_600, linger_seconds=3_600)) == []


def test_an_open_ingest_reads_later_records(bus: Settings) -> None:
    """drain_once returns None if no record arrived, and the next call reads those that arrived since."""
    ensure_topic(bus.kafka)
    with open_ingest(bus) as ingest:
        assert drain_once(ingest) is None
        for start in (0, 10):
            send(bus, valid_records(range(start, start + 10)))
            record = wait_for("the records to arrive", lambda: drain_once(ingest))
            assert record.total("accepted") == 10
        assert drain_once(ingest) is None


def test_records_of_a_failed_poll_are_read_again(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed poll leaves no gap: the next one of the same ingest starts at the checkpoint."""
    send(bus, valid_records(range(10)))
    with open_ingest(bus) as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(kafka_source_module, "to_columns", _raise(KafkaError("a batch is broken")))
            with pytest.raises(TransientError, match="a batch is broken"):
                drain_once(ingest)
        record = wait_for("the records to arrive", lambda: drain_once(ingest))
        assert drain(ingest, lambda _: None) == 0
    assert (record.total("read"), record.total("accepted"), record.total("gaps")) == (10, 10, 0)


def test_max_batches_is_a_limit(bus: Settings) -> None:
    """A bounded drain stops after its commits, and the next one reads the rest; none at all is refused.

    A drain of no batch would say that no records remain, since it has not asked.
    """
    small = with_ingest(bus, max_batch_records=1)
    for start in range(0, 30, 10):
        send(small, valid_records(range(start, start + 10)))
    records: list[CommitRecord] = []
    with open_ingest(small) as ingest:
        with pytest.raises(UsageError, match="max_batches must be at least 1, not 0"):
            drain(ingest, records.append, max_batches=0)
        assert drain(ingest, records.append, max_batches=1) == 1
    assert len(records) == 1
    drain_all(small)
    assert query(small, "SELECT count(*) FROM events") == [(30,)]
    assert_verified(small)


def test_malformed_records_become_dead_letters_and_the_rest_lands(bus: Settings) -> None:
    """1,000 malformed records of nine kinds among 2,000 valid ones: each has its reason, bytes and headers."""
    malformed = [_malformed(n) for n in range(1_000)]
    valid = list(valid_records(range(2_000)))
    records = [record for _, record in malformed] + valid
    random.Random(1).shuffle(records)  # noqa: S311 - reproducible, not secret
    send(bus, records)
    drain_all(bus)
    found = query(bus, "SELECT reason, key, value, headers, detail FROM dead_letters")
    expected = Counter((reason, r.key, r.value, tuple(r.headers)) for reason, r in malformed)
    assert Counter((reason, key, value, _pairs(headers)) for reason, key, value, headers, _ in found) == expected
    assert all(detail for *_, detail in found)
    assert len({reason for reason, _ in malformed}) >= 6
    assert query(bus, "SELECT event_id FROM events ORDER BY ALL") == sorted((f"e-{n}",) for n in range(2_000))
    assert_verified(bus)


def test_a_conflict_keeps_the_first_and_shows_the_later(bus: Settings) -> None:
    """Same event_id, other payload: the first committed event stands, and the later one goes to `conflicts`."""
    send(bus, valid_records([1], action="First"))
    drain_all(bus)
    send(bus, [*valid_records([1], action="Later"), *valid_records([1], action="First")])
    record = drained(bus)
    assert (record.total("conflicts"), record.total("duplicates")) == (1, 1)
    assert query(bus, "SELECT action_type FROM events") == [("First",)]
    assert query(bus, "SELECT action_type FROM conflicts") == [("Later",)]
    assert_verified(bus)


def test_strict_keys_reject_mis_keyed_records(bus: Settings) -> None:
    """With strict_keys an event with a wrong key is a dead letter; without, it is accepted and counted."""
    send(bus, [Record(b"other", record.value) for record in valid_records([1])] + list(valid_records([2])))
    strict = bus.model_copy(
        update={"data_dir": bus.data_dir / "strict", "contract": bus.contract.model_copy(update={"strict_keys": True})}
    )
    lenient = drained(bus)
    assert (lenient.total("accepted"), lenient.mis_keyed) == (2, 1)
    record = drained(strict)
    assert (record.total("accepted"), record.total("dead_letters"), record.mis_keyed) == (1, 1, 0)
    assert query(strict, "SELECT reason FROM dead_letters") == [(Reason.KEY_MISMATCH,)]


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"max_dead_letter_share": 0.2, "min_records_for_share": 20}, r"50% of 20 records were rejected"),
        ({"max_dead_letter_run": 9}, r"10 records in a row were rejected"),
    ],
    ids=["share", "run"],
)
def test_a_wrong_schema_stops_ingest(bus: Settings, limits: dict[str, object], found: str) -> None:
    """Above a limit nothing of the batch becomes visible, and the message says what to do."""
    stopped = with_ingest(bus, **limits)
    send(bus, [Record(b"k", b"\xff", [], 0)] * 10 + [r._replace(topic_partition=0) for r in valid_records(range(10))])
    with pytest.raises(RejectedError, match=found + r".*KARMALAKE_INGEST_MAX_DEAD_LETTER"):
        drain_all(stopped)
    create_lake(bus.lake_root)
    assert contents(bus)["events"] == contents(bus)["dead_letters"] == contents(bus)["checkpoints"] == []
    record = drained(bus)
    assert (record.total("accepted"), record.total("dead_letters")) == (10, 10)
    assert_verified(bus)


def test_a_run_is_counted_across_batches(bus: Settings) -> None:
    """Small batches do not hide a long run of bad records."""
    small = with_ingest(bus, max_batch_records=1, max_dead_letter_run=14)
    for _ in range(3):
        send(small, [Record(b"k", b"\xff", [], 0)] * 5)
    with pytest.raises(RejectedError, match="15 records in a row"):
        drain_all(small)
    assert query(small, "SELECT count(*) FROM dead_letters") == [(10,)]
    assert_verified(small)


def test_a_recreated_topic_is_read_from_its_start(bus: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A recreated topic is another topic: read from offset 0 with a warning, and nothing counts twice."""
    send(bus, valid_records(range(20)))
    drain_all(bus)
    first = ensure_topic(bus.kafka).topic_id
    recreate_topic(bus.kafka)
    second = ensure_topic(bus.kafka).topic_id
    send(bus, valid_records(range(10, 40)))
    with caplog.at_level(logging.WARNING, "pipelines.drain"):
        record = drained(bus)
        assert (record.total("duplicates"), record.total("accepted")) == (10, 20)
        (warning,) = _notices(caplog)
        assert first in warning
        assert second in warning
        caplog.clear()
        send(bus, valid_records(range(40, 45)))
        drain_all(bus)
        assert _notices(caplog) == []
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(45, 45)]
    assert_verified(bus)


def test_a_topic_recreated_under_an_open_ingest(bus: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """An ingest that is open at that time continues with the new topic, from its start."""
    send(bus, valid_records(range(20)))
    with open_ingest(bus) as ingest, caplog.at_level(logging.WARNING, "pipelines.drain"):
        drain(ingest, lambda _: None)
        assert _notices(caplog) == []
        recreate_topic(bus.kafka)
        send(bus, valid_records(range(15, 25)))
        record = wait_for("the new topic's records", lambda: drain_once(ingest))
        drain(ingest, lambda _: None)
        assert record.ranges[0].start_offset == 0
        assert len(_notices(caplog)) == 1
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(25, 25)]
    assert_verified(bus)


def test_a_topic_recreated_under_a_poll(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of the old topic are never committed for the new one: the poll is repeated."""
    send(bus, valid_records(range(20)))
    old = ensure_topic(bus.kafka).topic_id
    fetch = KafkaSource._fetch

    def recreate_and_fetch(source: KafkaSource, starts: dict[int, int]) -> pa.Table:
        monkeypatch.undo()
        records = fetch(source, starts)
        recreate_topic(bus.kafka)
        send(bus, valid_records(range(15, 25)))
        return records

    monkeypatch.setattr(KafkaSource, "_fetch", recreate_and_fetch)
    record = drained(bus)
    assert (record.total("read"), record.total("accepted")) == (10, 10)
    assert {offsets.topic_id for offsets in record.ranges} == {ensure_topic(bus.kafka).topic_id} != {old}
    assert_verified(bus)


def test_a_batch_opens_no_table(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables stay open from batch to batch: opening one reads every log entry since the last checkpoint."""
    opened: list[str] = []
    open_table = Lake.table

    def recorded(lake: Lake, name: str) -> DeltaTable:
        opened.append(name)
        return open_table(lake, name)

    send(bus, valid_records(range(20)))
    with open_ingest(bus) as ingest:
        drain(ingest, lambda _: None)
        monkeypatch.setattr(Lake, "table", recorded)
        send(bus, valid_records(range(20, 40)))
        assert drain(ingest, lambda _: None) > 0
    assert opened == []


def test_two_topics_share_a_lake(bus: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints are per topic, dedup spans topics, and another topic name is not a recreated topic."""
    other = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"topic": f"{bus.kafka.topic}-2"})})
    send(bus, valid_records(range(20)))
    send(other, valid_records(range(10, 30)))
    with caplog.at_level(logging.WARNING, "pipelines.drain"):
        drain_all(bus)
        record = drained(other)
    assert (record.total("accepted"), record.total("duplicates")) == (10, 10)
    assert _notices(caplog) == []
    assert_verified(bus)


@pytest.mark.parametrize("name", ["Jörg's data", "100% #1 [2]"])
def test_a_data_folder_of_any_name(bus: Settings, name: str) -> None:
    """Spaces, umlauts, and characters special in URIs and patterns: every reader finds the files of the lake."""
    named = bus.model_copy(update={"data_dir": bus.data_dir / name})
    send(bus, valid_records(range(20)))
    drain_all(named)
    activate(open_lake(named.lake_root), load_policy("default"))
    shutil.rmtree(named.index_dir)
    send(bus, valid_records(range(10, 30)))
    record = drained(named)
    assert (record.total("accepted"), record.total("duplicates")) == (10, 10)
    assert {done.table for done in compact(open_lake(named.lake_root), 2)} == {"events", "commits"}
    vacuum(open_lake(named.lake_root), 0)
    assert refresh_warehouse(named).events == refresh_warehouse(named).events == 30
    assert audit(named).passed
    assert_verified(named)


def test_an_empty_topic(bus: Settings) -> None:
    """A topic without records drains at once, without a commit."""
    ensure_topic(bus.kafka)
    assert drain_all(bus) == []
    assert query(bus, "SELECT * FROM commits") == []


def test_an_unknown_topic_is_a_mistake(bus: Settings) -> None:
    """The error names the missing topic and the command that creates it."""
    with pytest.raises(UsageError, match=f"{bus.kafka.topic} does not exist .*karmalake topics ensure"):
        drain_all(bus)


@pytest.mark.usefixtures("broken_connections")
def test_an_unreachable_broker_is_transient(bus: Settings) -> None:
    """Without a broker, drain ends with an error that names the address; nothing changes."""
    nowhere = bus.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1"):
        drain_all(bus.model_copy(update={"kafka": nowhere}))


def test_a_silent_broker_is_reported(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records remain, but none is received: drain ends with a message, and reads them later (`nothing-lost`)."""
    send(bus, valid_records(range(10)))
    with open_ingest(bus) as ingest:
        drain(ingest, lambda _: None)
        reader = ingest.source.source.consumer  # type: ignore[attr-defined]
        send(bus, valid_records(range(10, 20)))
        with monkeypatch.context() as patch:
            patch.setattr(reader, "poll", lambda *_args, **_options: {})
            with pytest.raises(TransientError, match=r"\d+ records remain, but none was received"):
                drain(replace(ingest, settings=_with_short_timeouts(bus)), lambda _: None)
        wait_for("the rest", lambda: drain(ingest, lambda _: None) >= 0 and _stored(bus) == 20)
    assert_verified(bus)


def _with_short_timeouts(bus: Settings) -> Settings:
    return bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"request_timeout_seconds": 0.2})})


def _stored(bus: Settings) -> int:
    return query(bus, "SELECT count(*) FROM events")[0][0]


@pytest.mark.parametrize("applied", [True, False])
def test_a_commit_of_unknown_outcome(bus: Settings, tmp_path: Path, *, applied: bool) -> None:
    """The response and the log are lost: the error says so, and the next start ends with the same lake (`once`)."""
    reference = bus.model_copy(update={"data_dir": tmp_path / "reference"})
    for start in (0, 20):
        send(bus, [*valid_records(range(start, start + 20)), Record(b"k", b"\xff"), *valid_records(range(5))])
    with pytest.MonkeyPatch.context() as patch, open_ingest(bus) as ingest:
        commit = commit_module.commit_actions

        def fail(*_: object) -> None:
            raise OSError("the store went away")

        def commit_and_fail(table: Any, files: Any, checkpoints: Any, *rest: Any, **named: Any) -> None:
            if applied or not checkpoints:
                commit(table, files, checkpoints, *rest, **named)
            if checkpoints:
                patch.setattr(Lake, "read_log", fail)
                fail()

        patch.setattr(commit_module, "commit_actions", commit_and_fail)
        with pytest.raises(CommitUnknownError, match=r"may or may not be committed.*start again"):
            drain(ingest, lambda _: None)
    drain_all(bus)
    drain_all(reference)
    assert contents(bus) == contents(reference)
    assert_verified(bus)
    assert audit(bus).passed


def test_a_compaction_under_a_batch_changes_nothing(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch overtaken by a compaction is deduplicated and committed again."""
    bus = _of_one_partition(bus)
    for start in (0, 10):
        send(bus, valid_records(range(start, start + 10)))
        drain_all(bus)
    overtaken = _call_before_commit(monkeypatch, lambda: compact(create_lake(bus.lake_root), 2))
    send(bus, valid_records(range(15, 30)))
    (record,) = drain_all(bus)
    assert overtaken == [1, 1]
    assert (record.total("accepted"), record.total("duplicates")) == (10, 5)
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(30, 30)]
    assert_verified(bus)


def test_an_ingester_of_another_topic_cannot_make_an_event_count_twice(
    bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both classify an event as new at the same version; for the later commit it is a duplicate (`once`)."""
    bus = _of_one_partition(bus)
    other = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"topic": f"{bus.kafka.topic}-2"})})
    send(bus, valid_records(range(20)))
    send(other, valid_records(range(10, 30)))
    attempts = _call_before_commit(monkeypatch, lambda: drain_all(other))
    records = drain_all(bus)
    assert len(attempts) > 2
    assert [sum(record.total(fate) for record in records) for fate in ("accepted", "duplicates")] == [10, 10]
    assert query(bus, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(30, 30)]
    assert_verified(bus)


def test_a_conflict_left_by_a_crash_does_not_count(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows written before a commit that failed do not count, whatever the record is classified as later."""
    other = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"topic": f"{bus.kafka.topic}-2"})})
    send(bus, [*valid_records([1], action="First"), *valid_records([1], action="Later")])
    send(other, valid_records([1], action="Later"))
    with monkeypatch.context() as patch:
        _call_before_commit(patch, _raise(TransientError("the power failed")))
        with pytest.raises(TransientError, match="power"):
            drain_all(bus)
    drain_all(other)
    (record,) = drain_all(bus)
    assert (record.total("conflicts"), record.total("duplicates")) == (1, 1)
    assert query(bus, "SELECT action_type, batch_id FROM conflicts") == [("First", record.batch_id)]
    assert_verified(bus)


def test_an_overtaken_batch_changes_no_committed_file(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second attempt writes new files: readers may be reading those of any version (`atomic`)."""
    bus = _of_one_partition(bus)
    other = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"topic": f"{bus.kafka.topic}-2"})})
    send(bus, [*valid_records([1], action="First"), *valid_records([1], action="Later"), Record(b"k", b"\xff")])
    send(other, valid_records([1, 2], action="Later"))
    before: dict[str, bytes] = {}

    def overtake() -> None:
        drain_all(other)
        lake = create_lake(bus.lake_root)
        before.update((path, Path(path).read_bytes()) for name in TABLES for path in data_files(lake.table(name)))

    attempts = _call_before_commit(monkeypatch, overtake)
    records = drain_all(bus)
    assert len(attempts) > 2
    assert {path: Path(path).read_bytes() for path in before} == before
    batches = {name: [r.batch_id for r in records if r.total(name)] for name in ("conflicts", "dead_letters")}
    assert query(bus, "SELECT action_type, batch_id FROM conflicts") == [("First", *batches["conflicts"])]
    assert query(bus, "SELECT batch_id FROM dead_letters") == [tuple(batches["dead_letters"])]
    assert_verified(bus)


def test_two_ingesters_of_one_topic(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to commit wins; the other stops with an error, and nothing of its batch is visible (`fenced`)."""
    send(bus, [*valid_records(range(20)), Record(b"k", b"\xff")])
    _call_before_commit(monkeypatch, lambda: drain_all(elsewhere(bus)))
    with pytest.raises(FencedError, match="another ingester"):
        drain_all(bus)
    assert drain_all(bus) == []
    assert query(bus, "SELECT count(*) FROM events") == [(20,)]
    assert query(bus, "SELECT count(*) FROM dead_letters") == [(1,)]
    assert_verified(bus)


def test_a_loss_is_accepted_beside_other_commits(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another ingester commits first, the loss is recorded after that commit."""
    other = bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"topic": f"{bus.kafka.topic}-2"})})
    send(bus, valid_records(range(20)))
    send(other, valid_records(range(5)))
    record = drained(bus)
    last = record.ranges[0]
    end = last.next_offset
    lost = OffsetRange(last.topic_id, last.topic, last.topic_partition, end, end + 3, lost=3)
    monkeypatch.setattr(KafkaSource, "losses", lambda *_: (lost,))
    attempts = _call_before_commit(monkeypatch, lambda: drain_all(other))
    with open_ingest(bus) as ingest:
        accepted = accept_loss(ingest)
        assert accepted is not None
        assert ingest.checkpoint(last.topic_id, last.topic_partition) == last.next_offset + 3
    assert len(attempts) == 3
    assert query(bus, "SELECT source, lost FROM commits WHERE lost > 0") == [("accepted loss", 3)]
    assert_verified(bus)


def test_an_index_that_lags_is_caught_up_before_it_classifies(bus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that was not extended, as after a crash, is brought up to date with the lake first."""
    send(bus, valid_records(range(10)))
    with monkeypatch.context() as patch:
        patch.setattr(DedupIndex, "extend", lambda *_: None)
        drain_all(bus)
    send(bus, valid_records(range(5, 15)))
    record = drained(bus)
    assert (record.total("accepted"), record.total("duplicates")) == (5, 5)


def test_a_commit_record_has_counts_times_and_days(bus: Settings) -> None:
    """Both the returned record and its row in the commits table do."""
    bus = _of_one_partition(bus)
    send(bus, valid_records([1, 30]))
    (record,) = drain_all(bus)
    assert record.first_event_time == NOON + timedelta(hours=1)
    assert record.last_event_time == NOON + timedelta(hours=30)
    assert [day.isoformat() for day in record.days] == ["2026-03-01", "2026-03-02"]
    row = query(bus, "SELECT batch_id, version, source, accepted, first_event_time, committed FROM commits")
    assert row == [(record.batch_id, 1, f"kafka:{bus.kafka.topic}", 2, record.first_event_time, record.committed)]
    assert record.version == 1


def _of_one_partition(bus: Settings) -> Settings:
    """Return settings of a topic of one partition, where records sent together are read as one batch."""
    return bus.model_copy(update={"kafka": bus.kafka.model_copy(update={"partitions": 1})})


def _malformed(n: int) -> tuple[Reason, Record]:
    (whole,) = valid_records([n])
    assert whole.value is not None
    kinds: list[tuple[Reason, bytes | None]] = [
        (Reason.NULL_VALUE, None),
        (Reason.UNDECODABLE, b"\xff\xff" + b"%d" % n),
        (Reason.UNDECODABLE, whole.value[:-2]),
        (Reason.MISSING_EVENT_ID, b""),
        (Reason.MISSING_USER_ID, _field(1, b"e-%d" % n)),
        (Reason.MISSING_ACTION_TYPE, _field(1, b"e") + _field(2, b"u")),
        (Reason.MISSING_TIMESTAMP, _field(1, b"e") + _field(2, b"u") + _field(3, b"A")),
        (Reason.OVERSIZED_EVENT_ID, whole.value + _field(1, b"x" * 300)),
        (Reason.TIMESTAMP_TOO_EARLY, whole.value + _field(4, b"\x08\x01")),
        (Reason.TIMESTAMP_TOO_LATE, whole.value + _field(4, b"\x08\xff\xff\xff\xff\x7f")),
    ]
    reason, value = kinds[n % len(kinds)]
    key = None if value is not None and n % 13 == 0 else b"key-%d" % n
    return reason, Record(key, value, [("trace", b"%d" % n), ("trace", b"\x00\xff")])


def _field(number: int, value: bytes) -> bytes:
    """Return a length-delimited Protobuf field."""
    size = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 0x7F | 0x80, len(value) >> 7])
    return bytes([number << 3 | 2]) + size + value


def _pairs(headers: list[dict[str, object]]) -> tuple[tuple[object, object], ...]:
    return tuple((header["key"], header["value"]) for header in headers)


def _raise(error: Exception) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


def _notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "deleted and created again: its id" in message]


def _call_before_commit(monkeypatch: pytest.MonkeyPatch, interfere: object) -> list[int]:
    """Call `interfere` once, between staging and commit of the first batch; return a list with an entry per attempt."""
    attempts: list[int] = []

    def commit_after_interference(*arguments: object) -> CommitRecord:
        attempts.append(1)
        if len(attempts) == 1:
            assert callable(interfere)
            interfere()
        return commit_batch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(drain_module, "commit_batch", commit_after_interference)
    return attempts
