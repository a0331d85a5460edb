"""Source files in the whole system: topics that others designed, ingested beside our own contract."""

import json
from pathlib import Path

import pytest

from pipelines.bus.topics import ensure_topic
from pipelines.emit.producer import Record
from pipelines.errors import UsageError
from pipelines.operate.audit import audit
from pipelines.operate.loads import list_loads, withdraw
from pipelines.operate.replay import open_replay, replay
from pipelines.settings import Settings
from tests.draining import assert_verified, drain_all, query, send, valid_records
from tests.rides import of_topic, rides_topic, with_rides

_SELECT = '''
topic = "{topic}"
format = "json"
time_unit = "iso"
select = """
SELECT (value->>'id') || '/driver' AS event_id, value->'driver'->>'id' AS user_id, 'DriverRated' AS action_type,
       value->>'at' AS timestamp, {{'rating': value->>'stars'}} AS metadata
FROM record
WHERE value->>'stars' IS NOT NULL
UNION ALL
SELECT (value->>'id') || '/rider', value->'rider'->>'id', 'RiderRated', value->>'at',
       {{'rating': value->>'rider_stars'}}
FROM record
WHERE value->>'rider_stars' IS NOT NULL
"""
'''
_BY_SOURCE = """
SELECT
    source, sum("read")::INT, sum(converted)::INT, sum(filtered)::INT, sum(dead_letters)::INT, sum(made)::INT,
    sum(accepted)::INT, sum(duplicates)::INT
FROM (SELECT unnest(ranges, recursive := true) FROM (SELECT ranges FROM commits))
GROUP BY source
ORDER BY source
"""


@pytest.fixture
def foreign(settings: Settings, tmp_path: Path) -> Settings:
    """Return settings with a source file `rides`, both topics of two partitions."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "rides.toml").write_text(_SELECT.format(topic=rides_topic(settings)))
    two = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 2})})
    ensure_topic(two.kafka)
    ensure_topic(of_topic(two, rides_topic(two)).kafka)
    return with_rides(two, folder)


def _ride(number: int, **stars: object) -> Record:
    ride = {"id": number, "driver": {"id": f"d-{number % 3}"}, "rider": {"id": f"r-{number % 2}"}}
    return Record(b"ride", json.dumps(ride | {"at": "2026-01-31T12:00:00Z"} | stars).encode())


def test_a_select_ingests_a_foreign_topic(foreign: Settings) -> None:
    """Of 40 records 10 are two events, 10 one, 10 none and 10 dead letters; both sums hold (`nothing-lost`, `once`)."""
    kinds = [
        lambda n: _ride(n, stars=4.50, rider_stars=5),
        lambda n: _ride(n, stars=3),
        _ride,
        lambda n: Record(b"ride", b"{no ride %d" % n),
    ]
    send(of_topic(foreign, rides_topic(foreign)), [kinds[n % 4](n) for n in range(40)])
    send(of_topic(foreign, rides_topic(foreign)), [_ride(0, stars=4.50, rider_stars=5)])
    send(foreign, valid_records(range(20)))
    drain_all(foreign)
    assert query(foreign, _BY_SOURCE) == [("contract", 20, 20, 0, 0, 20, 20, 0), ("rides", 41, 21, 10, 10, 32, 30, 2)]
    rated = "SELECT metadata['rating'], count(*) FROM events WHERE action_type = 'DriverRated' GROUP BY 1 ORDER BY 1"
    assert query(foreign, rated) == [("3", 10), ("4.5", 10)]
    assert_verified(foreign)
    found = audit(foreign)
    assert found.passed
    assert [(p.made, p.accepted) for p in found.partitions if not p.made] == []


def test_a_wrong_source_is_withdrawn_corrected_and_replayed(foreign: Settings) -> None:
    """The events of other topics stay, both sums hold at each step, and a replay reads by the corrected source."""
    topic, by_action = rides_topic(foreign), "SELECT action_type, count(*) FROM events GROUP BY 1 ORDER BY 1"
    send(of_topic(foreign, topic), [_ride(n, stars=4, rider_stars=5) for n in range(12)])
    send(foreign, valid_records(range(20)))
    drain_all(foreign)
    before = query(foreign, by_action)
    (load,) = list_loads(foreign)
    assert (load["origin"], load["accepted"], load["state"]) == (topic, 24, "in the lake")
    found = withdraw(foreign, [load["load"]], "the rating is of the rider")
    assert found.record is not None
    assert sum(each.events for each in found.record.withdrawn) == 24
    assert query(foreign, "SELECT count(*) FROM events") == [(20,)]
    assert drain_all(foreign) == []
    assert_verified(foreign)
    audited = audit(foreign)
    assert (audited.passed, sum(p.withdrawn for p in audited.partitions)) == (True, 24)
    path = foreign.sources.folder and foreign.sources.folder / "rides.toml"
    assert path is not None
    path.write_text(path.read_text(encoding="utf-8").replace("'DriverRated'", "'DriverPraised'"), encoding="utf-8")
    with open_replay(foreign, None, None, topic) as replayed:
        replay(replayed, foreign, lambda _: None)
    assert query(foreign, by_action) == sorted(
        ("DriverPraised" if action == "DriverRated" else action, count) for action, count in before
    )
    assert_verified(foreign)
    audited = audit(foreign)
    assert (audited.passed, sum(p.changed for p in audited.partitions)) == (True, 12)
    assert [(load["state"], load["accepted"]) for load in list_loads(foreign)] == [
        ("withdrawn", 24),
        ("in the lake", 24),
    ]


def test_a_batch_of_our_own_contract_is_no_load(foreign: Settings) -> None:
    """Of a batch with several topics only the mapped ones are withdrawn; one of the contract alone is refused."""
    send(foreign, valid_records(range(20)))
    [own] = drain_all(foreign)
    with pytest.raises(UsageError, match="in our own contract"):
        withdraw(foreign, [own.batch_id], "wrong")
    assert list_loads(foreign) == []
