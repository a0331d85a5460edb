"""The audit compares what a replay read as what ingest read: the procedure for a corrected source ends proven."""

import json

import pyarrow as pa
import pytest

from pipelines.boundary.database import connect
from pipelines.cli import audit as command
from pipelines.mapping.source_files import read_source
from pipelines.operate.audit import PartitionAudit, audit, replayed_topics
from pipelines.operate.loads import list_loads, withdraw_loads
from pipelines.operate.replay import open_replay, replay
from pipelines.operate.replayed import create_view_of_replays
from pipelines.operate.source_diff import diff_source
from pipelines.settings import Settings
from tests.draining import assert_verified, drain_all, query, recreate_topic, send
from tests.rides import both, edit_source, ride, rides, rides_source, rides_topic, to_rides

__all__ = ["both"]

_WHY = "the rides were trips"


def _replay(settings: Settings) -> None:
    with open_replay(settings, None, None, rides_topic(settings)) as replayed:
        replay(replayed, settings, lambda _: None)


def _stage_nothing(*_: object) -> list[object]:
    return []


def _withdraw(settings: Settings) -> None:
    loads = [load["load"] for load in list_loads(settings) if load["state"] == "in the lake"]
    withdraw_loads(settings, loads, _WHY)


def _audited(settings: Settings) -> PartitionAudit:
    """Return the sums over the topic partitions of the rides, each of which adds up."""
    total = PartitionAudit("", 0, 0, 0)
    for p in audit(settings).partitions:
        assert p.next_offset - p.first_offset == p.converted + p.filtered + p.dead_letters + p.changed + p.gaps
        assert p.made == p.accepted + p.duplicate_ids + p.erased + p.withdrawn + p.lost
        if p.topic == rides_topic(settings):
            for name in ("converted", "filtered", "made", "accepted", "duplicate_ids", "dead_letters", "withdrawn"):
                setattr(total, name, getattr(total, name) + getattr(p, name))
            total.changed += p.changed
            total.lost += p.lost
    return total


def test_a_corrected_source_is_compared_after_its_replay(both: Settings) -> None:
    """Once the documented steps are done, every record is compared by the present text (`nothing-lost`)."""
    send(to_rides(both), [*rides(range(20)), *[ride(20, id="sent twice")] * 2])
    drain_all(both)
    edit_source(both, "'ride': ride", "'trip': ride")
    _withdraw(both)
    before = _audited(both)
    assert (before.changed, before.made) == (20, 0)
    _replay(both)
    done = _audited(both)
    assert (done.changed, done.lost, done.withdrawn) == (0, 0, 0)
    assert (done.converted, done.filtered, done.dead_letters) == (18, 2, 2)
    assert (done.made, done.accepted, done.duplicate_ids) == (30, 28, 2)
    assert query(both, "SELECT count(*) FROM events") == [(28,)]
    assert audit(both).duplicated == 0
    assert_verified(both)


def test_what_a_corrected_source_makes_of_dead_letters_is_compared(both: Settings) -> None:
    """A record is judged by the present text: refused before and accepted now, or the other way around."""
    send(to_rides(both), [ride(1), ride(2, driver=None), ride(3, rider=None)])
    drain_all(both)
    edit_source(both, "driver AS user_id", "coalesce(driver, 'unknown') AS user_id")
    edit_source(both, "'/1', rider", "'/1', nullif(rider, 'u-1')")
    _withdraw(both)
    _replay(both)
    done = _audited(both)
    assert (done.changed, done.lost, done.converted, done.dead_letters) == (0, 0, 1, 2)
    assert (done.made, done.accepted) == (2, 2)


def test_a_replay_that_loses_events_is_detected(both: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the replay of a corrected source should have stored and did not is lost."""
    send(to_rides(both), [ride(1), ride(2)])
    drain_all(both)
    edit_source(both, "'ride': ride", "'trip': ride")
    _withdraw(both)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.drain.stage_events", _stage_nothing)
        _replay(both)
    assert (_audited(both).lost, audit(both).passed) == (4, False)


def test_a_batch_withdrawn_after_a_replay_is_not_lost(both: Settings) -> None:
    """The replay found its events in the lake; a replay after the withdrawal brings them back."""
    send(to_rides(both), [ride(1), ride(2)])
    (record,) = drain_all(both)
    _replay(both)
    withdraw_loads(both, [record.batch_id], _WHY)
    assert (_audited(both).withdrawn, _audited(both).lost) == (4, 0)
    _replay(both)
    assert (_audited(both).accepted, _audited(both).withdrawn) == (4, 0)


def test_the_replay_of_a_deleted_topic_says_nothing_of_the_next(both: Settings) -> None:
    """The topic that was created again has the same offsets, and its records are compared with what it read."""
    send(to_rides(both), [ride(n, id=f"old-{n}") for n in range(10)])
    drain_all(both)
    _replay(both)
    recreate_topic(to_rides(both).kafka)
    send(to_rides(both), [ride(n, id=f"new-{n}") for n in range(10)])
    drain_all(both)
    edit_source(both, "'ride': ride", "'trip': ride")
    assert (_audited(both).changed, _audited(both).accepted) == (10, 0)
    _replay(both)
    assert (_audited(both).changed, _audited(both).accepted) == (0, 20)


def test_a_source_is_compared_with_what_a_replay_read(both: Settings) -> None:
    """`sources diff` after the procedure: the present text makes what the lake has, and another one does not."""
    send(to_rides(both), rides(range(20)))
    drain_all(both)
    edit_source(both, "'ride': ride", "'trip': ride")
    _withdraw(both)
    _replay(both)
    same = diff_source(both, read_source(rides_source(both)))
    assert (same.comparison.same, same.comparison.different, same.comparison.missing) == (26, 0, 0)
    assert [(before, after) for _, before, after in same.fates] == [(26, 26), (0, 0), (2, 2), (2, 2)]
    edit_source(both, "'/0' AS event_id", "'/9' AS event_id")
    other = diff_source(both, read_source(rides_source(both))).comparison
    assert (other.missing, other.extra) == (16, 16)


def test_a_replay_is_of_the_topic_before_it() -> None:
    """A topic that was created again has another id; a replay before the first drain is of the topic drained later."""
    places = [("replay:a", "r-0"), ("a", "one"), ("replay:a", "r-1"), ("a", "two"), ("replay:a", "r-2"), ("b", "b")]
    commits = [
        {"version": version, "ranges": [{"topic": topic, "topic_id": topic_id}]}
        for version, (topic, topic_id) in enumerate(places)
    ]
    with connect() as connection:
        connection.register("rows", pa.Table.from_pylist(commits))
        connection.execute("CREATE TABLE commits AS FROM rows")
        create_view_of_replays(connection)
        by_sql = dict(connection.execute("FROM replays").fetchall())
    assert by_sql == replayed_topics(commits) == {"r-0": "one", "r-1": "one", "r-2": "two"}


def test_the_verdict_names_what_is_not_compared(
    both: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lost 0` stands beside the number of records of which it says nothing, also in JSON."""
    monkeypatch.setattr(command, "topic_settings", lambda _command: both)
    send(to_rides(both), [ride(1), ride(2)])
    drain_all(both)
    command.audit()
    assert capsys.readouterr().out.endswith("4 events in the lake; lost 0, duplicated 0\n")
    edit_source(both, "'ride': ride", "'trip': ride")
    command.audit()
    said = capsys.readouterr()
    assert said.out.endswith("lost 0, duplicated 0; not compared: 2 records\n")
    assert "`karmalake replay`" in said.err
    command.audit(as_json=True)
    assert json.loads(capsys.readouterr().out)["changed"] == 2
