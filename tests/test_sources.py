"""Source files in the whole system: topics that others designed, ingested beside our own contract."""

import json
from pathlib import Path

import pytest

from pipelines.bus.topics import ensure_topic
from pipelines.emit.producer import Record
from pipelines.operate.audit import audit
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
