"""Source files in the whole system: topics that others designed, ingested beside our own contract."""

import json
import os
from pathlib import Path

import pytest

from pipelines.bus.topics import ensure_topic
from pipelines.emit.producer import Record
from pipelines.errors import UsageError
from pipelines.ingest.sample import RecordSample
from pipelines.mapping import open_mapping, read_source
from pipelines.mapping.examine import read_topic, unused_fields
from pipelines.operate.audit import audit
from pipelines.operate.loads import list_loads, withdraw
from pipelines.operate.replay import open_replay, replay
from pipelines.operate.source_diff import diff_source
from pipelines.preview import preview_records
from pipelines.settings import Settings
from tests.commands import KARMALAKE, run
from tests.conftest import REPOSITORY
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


def _source(foreign: Settings) -> Path:
    assert foreign.sources.folder
    return foreign.sources.folder / "rides.toml"


def test_check_reads_the_last_records_of_a_topic(foreign: Settings) -> None:
    """Of all topic partitions, and commits nothing: neither to the lake nor to the consumer group."""
    topic = rides_topic(foreign)
    rides = [_ride(n, stars=n, note="x") for n in range(60)]
    send(of_topic(foreign, topic), [Record(b"key %d" % n, each.value) for n, each in enumerate(rides)])
    source = read_source(_source(foreign))
    records = read_topic(foreign.kafka, topic, 20)
    assert len(records) == 20
    assert set(records["topic_partition"].to_pylist()) == {0, 1}
    assert len(read_topic(foreign.kafka, topic, 1_000)) == 60
    with open_mapping(source, foreign) as mapping:
        unused = unused_fields(source, records, mapping.fields())
        found = preview_records(foreign, RecordSample(source, records, mapping), unused)
    fates = dict(found.fates)
    assert (fates["records"], fates["filtered"], fates["events"], fates["dead letters"]) == (20, 0, 20, 0)
    assert found.notes == ["unused fields: note"]
    assert sum(row[-1] for row in found.scored) == 20
    assert not (foreign.data_dir / "lake").exists()
    with pytest.raises(UsageError, match="there is no topic none"):
        read_topic(foreign.kafka, "none", 1)


def test_a_diff_reads_a_topic_again_up_to_the_lake(foreign: Settings) -> None:
    """Records after the checkpoints are not new, and ids that a place makes stay; another text differs by field."""
    topic = of_topic(foreign, rides_topic(foreign))
    send(topic, [_ride(n, stars=n) for n in range(10)])
    drain_all(foreign)
    send(topic, [_ride(n, stars=n) for n in range(10, 15)])
    same = diff_source(foreign, read_source(_source(foreign)))
    assert (same.records, same.comparison.same, same.comparison.missing, same.comparison.extra) == (10, 10, 0, 0)
    text = _source(foreign).read_text()
    _source(foreign).write_text(text.replace("/driver", "/d"))
    found = diff_source(foreign, read_source(_source(foreign))).comparison
    assert (found.same, found.different, found.missing, found.extra) == (0, 0, 10, 10)
    _source(foreign).write_text(text.replace("'DriverRated'", "'Rated'"))
    found = diff_source(foreign, read_source(_source(foreign))).comparison
    assert (found.same, found.different) == (0, 10)
    assert found.fields == "action_type DriverRated -> Rated"
    assert query(foreign, "SELECT DISTINCT action_type FROM events") == [("DriverRated",)]


@pytest.mark.slow
def test_files_by_a_source(tmp_path: Path) -> None:
    """One command checks, one loads, a changed text says so, and a diff shows what it would make of the rows."""
    (tmp_path / "sources").mkdir()
    source = tmp_path / "sources" / "rides.toml"
    source.write_text('''
files = ["../rides-*.csv"]
select = """
SELECT id || '/d' AS event_id, driver AS user_id, 'DriverRated' AS action_type, "at" AS timestamp,
       {'rating': stars} AS metadata
FROM record WHERE stars IS NOT NULL
"""
[reading]
delimiter = ";"
''')
    for name in "ab":
        rows = "".join(f"{name}{n};d{n % 2};{n or ''};2026-01-31T12:00:00Z\n" for n in range(5))
        (tmp_path / f"rides-{name}.csv").write_text(f"id;driver;stars;at\n{rows}")

    def karmalake(*arguments: str) -> tuple[int, str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
        environment |= {"KARMALAKE_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200", "PYTHONPATH": str(REPOSITORY)}
        done = run([*KARMALAKE, *arguments], cwd=tmp_path, env=environment)
        return done.returncode, done.stdout, done.stderr

    code, shown, problem = karmalake("sources", "check", "rides")
    assert (code, shown.count("DriverRated") > 2, "nothing was changed" in shown) == (0, True, True), problem
    code, shown, problem = karmalake("backfill", "--source", "rides")
    assert (code, "2 of 2 files loaded" in shown or "rides-a.csv" in shown) == (0, True), problem
    assert karmalake("backfill", "--source", "rides", "--time", "at")[0] == 2
    settings = Settings(data_dir=tmp_path / "data")
    assert query(settings, "SELECT count(*), sum((metadata['rating'])::INT) FROM events") == [(8, 20)]
    assert query(settings, _BY_SOURCE) == [("rides", 10, 8, 2, 0, 8, 8, 0)]
    assert karmalake("sources", "diff", "rides")[0] == 0
    source.write_text(source.read_text().replace("DriverRated", "Rated"))
    code, shown, problem = karmalake("sources", "diff", "rides")
    assert (code, "action_type DriverRated -> Rated" in shown) == (1, True), problem
    code, shown, problem = karmalake("backfill", "--source", "rides")
    assert code == 65
    assert "by another text of its source" in shown + problem
    assert query(settings, "SELECT DISTINCT action_type FROM events") == [("DriverRated",)]
    assert_verified(settings)


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
