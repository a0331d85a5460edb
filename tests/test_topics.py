"""Several topics in one ingest: each has its checkpoints, its source and its account; one stops no other."""

import logging
from pathlib import Path

import pytest
from kafka.structs import TopicPartition

from pipelines.bus.topics import topic_exists
from pipelines.drain import drain, drain_once, open_drain, open_ingest
from pipelines.errors import ConfigurationError, RejectedError, UsageError
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.mapping.source_files import read_source
from pipelines.operate.audit import audit
from pipelines.operate.dead_letters import Requeued, Selection, requeue
from pipelines.operate.doctor import diagnose
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.erase_limits import list_unreached
from pipelines.operate.lag.observe import measure_lags, observe_lags
from pipelines.operate.replay import compare, fresh, open_replay, replay
from pipelines.operate.skip import parse_partition, skip
from pipelines.operate.topic_check import check_topics
from pipelines.operate.verify import totals
from pipelines.refresh import rebuild_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings, load_settings
from tests.dlq_copies import read_copies
from tests.draining import (
    BY_SOURCE,
    NOON,
    assert_verified,
    contents,
    drain_all,
    query,
    recreate_topic,
    send,
    valid_records,
    with_ingest,
)
from tests.rides import both, edit_source, raw, ride, rides, rides_source, rides_topic, to_rides

__all__ = ["both"]


def assert_audited(settings: Settings) -> None:
    found = audit(settings)
    assert found.passed
    for p in found.partitions:
        assert p.next_offset - p.first_offset == p.converted + p.filtered + p.dead_letters + p.changed + p.gaps
        assert p.made == p.accepted + p.duplicate_ids + p.erased + p.withdrawn + p.lost


def test_topics_share_a_commit_and_the_account_adds_up(both: Settings) -> None:
    """Each record has one fate and each event another, by topic and in total (`nothing-lost`)."""
    send(both, [*valid_records(range(40)), *valid_records(range(5))])
    send(to_rides(both), [*rides(range(100)), *[ride(100, id="sent twice")] * 2])
    with open_ingest(with_ingest(both, linger_seconds=60, max_batch_records=147)) as ingest:
        record = drain_once(ingest)
        assert record is not None
        assert {place.topic for place in record.ranges} == {both.kafka.topic, rides_topic(both)}
        drain(ingest, lambda _: None)
    assert query(both, BY_SOURCE) == [
        ("contract", 45, 45, 0, 0, 45, 40, 5),
        ("rides", 102, 82, 10, 10, 134, 132, 2),
    ]
    done = totals(take_snapshot(open_lake(both.lake_root)))
    assert (done.read, done.converted, done.filtered, done.dead_letters) == (147, 127, 10, 10)
    assert (done.made, done.accepted, done.duplicates) == (179, 172, 7)
    digests = "SELECT DISTINCT r.source, r.source_digest FROM (SELECT unnest(ranges) AS r FROM commits) ORDER BY ALL"
    assert query(both, digests) == [("contract", None), ("rides", read_source(rides_source(both)).digest)]
    assert_verified(both)
    assert_audited(both)
    assert [(lag.topic, lag.lag_records) for lag in measure_lags(both)] == [
        (both.kafka.topic, 0), (rides_topic(both), 0),
    ]  # fmt: skip


def test_each_topic_partition_has_its_checkpoint(both: Settings) -> None:
    """Partitions of two topics have the same numbers; a drain of one topic later leaves the other alone (`once`)."""
    send(both, valid_records(range(20)))
    drain_all(both)
    before = query(both, "FROM checkpoints")
    send(to_rides(both), rides(range(30)))
    [*records] = drain_all(both)
    assert {place.topic for record in records for place in record.ranges} == {rides_topic(both)}
    assert set(before) < set(query(both, "FROM checkpoints"))
    assert drain_all(both) == []
    assert_verified(both)


def test_a_halt_of_one_topic_leaves_the_other_going(both: Settings) -> None:
    """Only its topic partitions halt, and only they are named and exempted (`not-blocked`)."""
    strict = with_ingest(both, max_dead_letter_run=3)
    bad = [record._replace(topic_partition=1, value=b"{") for record in rides(range(8))]
    send(to_rides(both), bad)
    send(both, [record._replace(topic_partition=1) for record in valid_records(range(10))])
    with pytest.raises(RejectedError, match=rf"^{rides_topic(both)}-1 is halted at offset 0"):
        drain_all(strict)
    assert query(both, "SELECT count(*), count(DISTINCT topic) FROM events") == [(10, 1)]
    send(both, [record._replace(topic_partition=1) for record in valid_records(range(10, 20))])
    with pytest.raises(RejectedError):
        drain_all(strict)
    assert query(both, "SELECT count(*) FROM events") == [(20,)]
    accepted = parse_partition(both, f"{rides_topic(both)}-1")
    assert accepted == TopicPartition(rides_topic(both), 1)
    with open_drain(strict, accepted=[accepted]) as ingest:
        drain(ingest, lambda _: None)
    assert query(both, "SELECT count(*) FROM dead_letters") == [(8,)]
    assert_verified(both)


def test_a_recreated_topic_is_read_from_its_start(both: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """The other topic goes on at its checkpoints, and only the recreated one is warned of."""
    send(both, valid_records(range(20)))
    send(to_rides(both), [ride(n, id=f"i-{n}") for n in range(10)])
    drain_all(both)
    before = query(both, "SELECT count(*) FROM events")
    topic = to_rides(both).kafka
    recreate_topic(topic)
    send(to_rides(both), [ride(n, id=f"i-{n}") for n in range(12)])
    with caplog.at_level(logging.WARNING, "pipelines.drain"):
        records = drain_all(both)
    assert {place.topic for record in records for place in record.ranges} == {topic.topic}
    assert sum(record.total("duplicates") for record in records) == 20
    assert query(both, "SELECT count(*) FROM events") == [(before[0][0] + 4,)]
    warned = [record.getMessage() for record in caplog.records if record.name == "pipelines.drain"]
    assert [message.split()[0] for message in warned] == [topic.topic]
    assert_verified(both)


def test_a_missing_topic_names_its_source(both: Settings) -> None:
    """The sentence says which file to correct, and no topic is created."""
    gone = f"{both.kafka.topic}-gone"
    edit_source(both, rides_topic(both), gone)
    sentence = rf"topic {gone} of the source rides does not exist .*sources/rides.toml"
    for work in (drain_all, measure_lags, check_topics, audit):
        with pytest.raises(UsageError, match=sentence):
            work(both)
    assert not topic_exists(both.kafka.model_copy(update={"topic": gone}))


def test_a_missing_topic_of_our_own_can_be_left_out(both: Settings) -> None:
    """With a source, the sentence also names the setting for those who have only sources; it is the remedy."""
    gone = both.model_copy(update={"kafka": both.kafka.model_copy(update={"topic": f"{both.kafka.topic}-gone"})})
    send(to_rides(both), [ride(1)])
    for work in (drain_all, audit):
        with pytest.raises(UsageError, match=r"topics ensure`, or, .* leave it out: sources.only = \['rides'\]"):
            work(gone)
    only = gone.model_copy(update={"sources": gone.sources.model_copy(update={"only": ("rides",)})})
    drain_all(only)
    assert audit(only).passed


def test_what_sources_are_used(both: Settings) -> None:
    """`sources.only` selects; an unknown name and a topic with two sources are refused."""
    send(both, valid_records(range(5)))
    send(to_rides(both), [ride(1)])
    only = both.sources.model_copy(update={"only": ("rides",)})
    drain_all(both.model_copy(update={"sources": only}))
    assert query(both, "SELECT DISTINCT topic FROM events") == [(rides_topic(both),)]
    unknown = both.model_copy(update={"sources": only.model_copy(update={"only": ("ryde",)})})
    with pytest.raises(ConfigurationError, match="only names ryde, which is not a source: there are contract, rides"):
        drain_all(unknown)
    edit_source(both, rides_topic(both), both.kafka.topic)
    with pytest.raises(ConfigurationError, match=rf"contract and rides both read the topic {both.kafka.topic}"):
        drain_all(both)


def test_the_default_folder_is_beside_the_configuration(tmp_path: Path) -> None:
    """`sources` beside karmalake.toml, or in the working directory; none if there is no such folder."""
    assert load_settings({}, tmp_path).sources.folder is None
    (tmp_path / "sources").mkdir()
    assert load_settings({}, tmp_path).sources.folder == tmp_path / "sources"
    config = tmp_path / "etc" / "karmalake.toml"
    (config.parent / "sources").mkdir(parents=True)
    config.write_text('[sources]\nonly = ["contract"]\n')
    named = load_settings({"KARMALAKE_CONFIG": str(config)}, tmp_path).sources
    assert (named.folder, named.only) == (config.parent / "sources", ("contract",))
    elsewhere = {"KARMALAKE_SOURCES_FOLDER": "/srv/s", "KARMALAKE_SOURCES_ONLY": "a, contract"}
    assert load_settings(elsewhere, tmp_path).sources.model_dump() == {
        "folder": Path("/srv/s"), "only": ("a", "contract"),
    }  # fmt: skip


def test_a_dead_letter_is_decoded_by_its_source(both: Settings) -> None:
    """Requeued, replayed and sent again it is the same events, whose ids come from its place (`once`)."""
    send(to_rides(both), [ride(1), ride(7, driver=None), ride(2, "ping")])
    send(both, [*valid_records(range(4)), raw(b"\xff")])
    drain_all(both)
    assert requeue(both, Selection()) == Requeued(0, 0, 0, still_rejected=2)
    edit_source(both, "driver AS user_id", "coalesce(driver, 'unknown') AS user_id")
    assert requeue(both, Selection()) == Requeued(2, 0, 0, still_rejected=1)
    with open_replay(both, None, None, rides_topic(both)) as replayed:
        replay(replayed, both, lambda _: None)
    assert query(both, "SELECT count(*) FROM events") == [(2 + 2 + 4,)]
    assert_verified(both)
    rides_source(both).unlink()
    send(both, [raw(b"\xfe")])
    assert requeue(both, Selection()).still_rejected == 1, "a letter of our own contract needs no other source"


def test_a_replay_of_all_topics_is_compared(both: Settings, tmp_path: Path) -> None:
    """A fresh lake replayed from both topics has the same events; ids from places are those of the originals."""
    send(both, valid_records(range(30)))
    send(to_rides(both), rides(range(40)))
    drain_all(both)
    before = query(both, "SELECT event_id FROM events ORDER BY ALL")
    other = fresh(both, tmp_path / "twin")
    with open_replay(both, None, None) as replayed:
        replay(replayed, other, lambda _: None)
        found = compare(both, other, replayed)
    assert (found.same, found.different, found.missing, found.extra) == (len(before), 0, 0, 0)
    with pytest.raises(UsageError, match="name the one of the offsets"), open_replay(both, {0: 0}, None):
        pass
    with pytest.raises(UsageError, match="the topic nope is not ingested"), open_replay(both, None, None, "nope"):
        pass
    assert_verified(other)


def test_one_record_of_another_topic_is_skipped(both: Settings) -> None:
    """The records before it are decoded by their source."""
    send(to_rides(both), [ride(n)._replace(topic_partition=0) for n in range(6)])
    done = skip(both, f"{rides_topic(both)}-0@4", "a test")
    assert (done.drained, done.skipped.topic, done.skipped.next_offset) == (4, rides_topic(both), 5)
    drain_all(both)
    assert query(both, "SELECT count(*) FROM events") == [(10,)]
    with pytest.raises(UsageError, match="ingested are "):
        skip(both, "nope-0@4", "a test")
    assert_verified(both)


def test_each_topic_has_its_dead_letter_topic(both: Settings) -> None:
    """Copies go to the topic of the owner, and one that cannot be written stops no other."""
    publishing = with_ingest(both, publish_dead_letters=True)
    send(both, [raw(b"\xff")])
    send(to_rides(both), [raw(b"{a"), raw(b"{b")])
    drain_all(publishing)
    assert [copy.value for copy in read_copies(publishing)] == [b"\xff"]
    assert sorted(copy.value for copy in read_copies(to_rides(publishing))) == [b"{a", b"{b"]


def test_operations_speak_of_all_topics(both: Settings) -> None:
    """Lag, doctor, the check of topics and the limits of an erasure name both."""
    send(both, valid_records(range(5)))
    send(to_rides(both), rides(range(5)))
    drain_all(both)
    names = [both.kafka.topic, rides_topic(both)]
    assert [each.measurement.topic for each in observe_lags(both)] == names
    assert list(check_topics(both)) == names
    findings = {finding.subject: finding.message for finding in diagnose(both)}
    assert f"topic {names[1]} of the source rides with 2 partitions" in findings["broker"]
    assert all(f"the topic {name}:" in "\n".join(list_unreached(both, None)) for name in names)


def test_erased_events_of_one_record_are_distinguished(both: Settings) -> None:
    """Of a ride of two users one is erased: the counts add up, also after the other is erased (`erasable`)."""
    send(to_rides(both), [ride(n) for n in range(6)])
    drain_all(both)
    erase_without_documents(both, ["driver-1"])
    assert query(both, "SELECT count(*) FROM events") == [(11,)]
    assert_verified(both)
    assert_audited(both)
    erase_without_documents(both, ["u-1"])
    assert query(both, "SELECT count(*) FROM events") == [(9,)]
    assert_verified(both)
    send(to_rides(both), [ride(1), raw(b'{"driver": "u-1"')])
    drain_all(both)
    assert query(both, "SELECT sum(erased)::INT, sum(dead_letters)::INT FROM commits") == [(3, 0)]
    assert_verified(both)
    assert_audited(both)


def test_a_changed_source_is_not_compared(both: Settings) -> None:
    """The audit says how many records were read under another text, and compares those read since."""
    send(to_rides(both), rides(range(10)))
    drain_all(both)
    edit_source(both, "'ride': ride", "'trip': ride")
    send(to_rides(both), rides(range(10, 20)))
    drain_all(both)
    assert_audited(both)
    assert sum(p.changed for p in audit(both).partitions) == 9, "a dead letter stays one"


def test_audit_detects_a_lost_event_of_a_record(both: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of two events of which none is stored is two lost events."""
    send(to_rides(both), [ride(1)])
    monkeypatch.setattr("pipelines.drain.stage_events", lambda *_: [])
    drain_all(both)
    found = audit(both)
    assert (found.lost, found.passed) == (2, False)


def test_a_suspension_by_another_topic_counts_as_if_it_came_first(both: Settings, tmp_path: Path) -> None:
    """Scores depend on event_time, not on which topic was read first (`incremental-equals-rebuild`)."""
    suspension = {"driver": "u-1", "kind": "AccountSuspended", "at": NOON.timestamp() - 3600, "id": "s"}
    late = both.model_copy(update={"data_dir": tmp_path / "late"})
    send(both, valid_records(range(60), "TransactionCompleted"))
    drain_all(late)
    refresh_warehouse(late)
    send(to_rides(both), [ride(1, **suspension)])
    drain_all(late)
    derived = refresh_warehouse(late)
    drain_all(both)
    rebuild_warehouse(both, derived.as_of)
    sql = "SELECT user_id, status, all_time_score, all_time_events FROM reputation ORDER BY ALL"
    with Warehouse(late.warehouse_path) as one, Warehouse(both.warehouse_path) as other:
        assert one.sql(sql).rows() == other.sql(sql).rows()
        assert ("u-1", "suspended") in [row[:2] for row in one.sql(sql).rows()]
    events = "SELECT event_id FROM events WHERE user_id = 'u-1' ORDER BY event_time LIMIT 1"
    assert query(late, events) == [("s/0",)]


def test_the_order_of_commits_does_not_change_the_lake(both: Settings) -> None:
    """A batch of one record batch at a time has the same contents as large ones (`once`)."""
    send(both, valid_records(range(50)))
    send(to_rides(both), rides(range(50)))
    small = with_ingest(both, max_batch_records=1).model_copy(update={"data_dir": both.data_dir / "small"})
    drain_all(small)
    drain_all(both)
    assert contents(small)["events"] == contents(both)["events"]
