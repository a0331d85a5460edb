"""Source files in the whole system: topics that others designed, ingested beside our own contract."""

import os
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.ingest.sample import RecordSample
from pipelines.mapping.decoder import open_mapping
from pipelines.mapping.examine import read_topic, unused_fields
from pipelines.mapping.source_files import read_source
from pipelines.operate.audit import audit
from pipelines.operate.loads import list_loads, withdraw_loads
from pipelines.operate.replay import open_replay, replay
from pipelines.operate.source_diff import diff_source
from pipelines.preview import preview_records
from pipelines.settings import Settings
from tests.commands import KARMALAKE, run
from tests.conftest import REPOSITORY
from tests.draining import BY_SOURCE, assert_verified, drain_all, query, send, valid_records
from tests.rides import both, edit_source, ride, rides_source, rides_topic, to_rides

__all__ = ["both"]


def test_check_reads_the_last_records_of_a_topic(both: Settings) -> None:
    """Of all topic partitions, and commits nothing: neither to the lake nor to the consumer group."""
    send(to_rides(both), [ride(n, "driven", note="x")._replace(key=b"key %d" % n) for n in range(60)])
    source, topic = read_source(rides_source(both)), rides_topic(both)
    records = read_topic(both.kafka, topic, 20)
    assert len(records) == 20
    assert set(records["topic_partition"].to_pylist()) == {0, 1}
    assert len(read_topic(both.kafka, topic, 1_000)) == 60
    with open_mapping(source, both) as mapping:
        unused = unused_fields(source, records, mapping.fields())
        found = preview_records(both, RecordSample(source, records, mapping), unused)
    fates = dict(found.fates)
    assert (fates["records"], fates["filtered"], fates["events"], fates["dead letters"]) == (20, 0, 20, 0)
    assert found.notes == ["unused fields: note"]
    assert sum(row[-1] for row in found.scored) == 20
    assert not (both.data_dir / "lake").exists()
    with pytest.raises(UsageError, match="there is no topic none"):
        read_topic(both.kafka, "none", 1)


def test_a_diff_reads_a_topic_again_up_to_the_lake(both: Settings) -> None:
    """Records after the checkpoints are not new, and ids that a place makes stay; another text differs by field."""
    send(to_rides(both), [ride(n, "driven") for n in range(10)])
    drain_all(both)
    send(to_rides(both), [ride(n, "driven") for n in range(10, 15)])
    same = diff_source(both, read_source(rides_source(both)))
    assert (same.records, same.comparison.same, same.comparison.missing, same.comparison.extra) == (10, 10, 0, 0)
    edit_source(both, "'/0'", "'/driver'")
    found = diff_source(both, read_source(rides_source(both))).comparison
    assert (found.same, found.different, found.missing, found.extra) == (0, 0, 10, 10)
    edit_source(both, "'/driver'", "'/0'")
    edit_source(both, "kind AS action_type", "'Driven' AS action_type")
    found = diff_source(both, read_source(rides_source(both))).comparison
    assert (found.same, found.different) == (0, 10)
    assert found.fields == "action_type driven -> Driven"
    assert query(both, "SELECT DISTINCT action_type FROM events") == [("driven",)]


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
    assert query(settings, BY_SOURCE) == [("rides", 10, 8, 2, 0, 8, 8, 0)]
    assert karmalake("sources", "diff", "rides")[0] == 0
    source.write_text(source.read_text().replace("DriverRated", "Rated"))
    code, shown, problem = karmalake("sources", "diff", "rides")
    assert (code, "action_type DriverRated -> Rated" in shown) == (1, True), problem
    code, shown, problem = karmalake("backfill", "--source", "rides")
    assert code == 65
    assert "by other columns or another text of its source" in shown + problem
    assert query(settings, "SELECT DISTINCT action_type FROM events") == [("DriverRated",)]
    assert_verified(settings)


def test_a_wrong_source_is_withdrawn_corrected_and_replayed(both: Settings) -> None:
    """The events of other topics stay, both sums hold at each step, and a replay reads by the corrected source."""
    topic, by_action = rides_topic(both), "SELECT action_type, count(*) FROM events GROUP BY 1 ORDER BY 1"
    send(to_rides(both), [ride(n) for n in range(12)])
    send(both, valid_records(range(20)))
    drain_all(both)
    (load,) = list_loads(both)
    assert (load["origin"], load["accepted"], load["state"]) == (topic, 24, "in the lake")
    found = withdraw_loads(both, [load["load"]], "the rating is of the rider")
    assert found.record is not None
    assert sum(each.events for each in found.record.withdrawn) == 24
    assert query(both, "SELECT count(*) FROM events") == [(20,)]
    assert drain_all(both) == []
    assert_verified(both)
    audited = audit(both)
    assert (audited.passed, sum(p.withdrawn for p in audited.partitions)) == (True, 24)
    edit_source(both, "kind AS action_type", "'praised' AS action_type")
    with open_replay(both, None, None, topic) as replayed:
        replay(replayed, both, lambda _: None)
    assert query(both, by_action) == [("A", 20), ("praised", 12), ("rated", 12)]
    assert_verified(both)
    audited = audit(both)
    assert (audited.passed, audited.changed, sum(p.withdrawn for p in audited.partitions)) == (True, 0, 0)
    assert sum(p.accepted for p in audited.partitions) == 20 + 24
    assert [(load["state"], load["accepted"]) for load in list_loads(both)] == [("withdrawn", 24), ("in the lake", 24)]


def test_a_batch_of_our_own_contract_is_no_load(both: Settings) -> None:
    """Of a batch with several topics only the mapped ones are withdrawn; one of the contract alone is refused."""
    send(both, valid_records(range(20)))
    for batch in drain_all(both):
        with pytest.raises(UsageError, match="in our own contract"):
            withdraw_loads(both, [batch.batch_id], "wrong")
    assert list_loads(both) == []
