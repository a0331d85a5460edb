"""A lake of an earlier release may have any record time that a producer wrote: every command works with it."""

import json
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.contract.schema import TIMESTAMP
from pipelines.contract.times import bus_times
from pipelines.emit.producer import Record
from pipelines.lake import files
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import compact
from pipelines.operate.dead_letters import Requeued, Selection, discard, newest_dead_letters, requeue, select
from pipelines.refresh import refresh_warehouse
from pipelines.reputation.sql import statement
from pipelines.settings import Settings
from tests.draining import assert_verified, drain_all, query, send, valid_records, with_ingest

NOW_US = 1_790_000_000_000_000
# Microseconds or nanoseconds as milliseconds, one that wrapped, unset, absent, beyond year 9999, and the ends of int64.
TIMES_US = [NOW_US * 1_000, -(2**62), 0, -1_000, 253_402_300_800_000_000, -(2**63) + 1, 2**63 - 1, None, NOW_US]


@pytest.fixture
def old_lake(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of a lake whose events and dead letters have each of these times."""
    kafka = settings.kafka.model_copy(update={"partitions": 1})
    settings = with_ingest(settings.model_copy(update={"kafka": kafka}))
    send(settings, valid_records(range(len(TIMES_US))))
    send(settings, [Record(b"u", b"\xff" + str(n).encode()) for n in range(len(TIMES_US))])
    with monkeypatch.context() as patch:
        encode = files._encode
        patch.setattr(files, "_encode", lambda rows: encode(_with_these_times(rows)))
        drain_all(settings)
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("KARMALAKE_KAFKA_BOOTSTRAP_SERVERS", str(settings.kafka.bootstrap_servers))
    monkeypatch.setenv("KARMALAKE_KAFKA_TOPIC", settings.kafka.topic)
    monkeypatch.setattr("pipelines.cli.output.quiet_libraries", lambda: None)  # loggers outlive a test
    return settings


def _with_these_times(rows: pa.Table) -> pa.Table:
    if "bus_time" not in rows.schema.names:
        return rows
    times = pa.array([TIMES_US[n % len(TIMES_US)] for n in range(len(rows))], pa.int64()).cast(TIMESTAMP)
    return rows.set_column(rows.schema.get_field_index("bus_time"), "bus_time", times)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["karmalake", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert ended.value.code in {0, None}, (arguments, output.err)
    return output.out


def test_invalid_times_are_null(old_lake: Settings) -> None:
    """In every view of the lake, only times from 2000 to 9999 are valid."""
    for table in ("events", "dead_letters"):
        times = query(old_lake, f"SELECT count(*), count(bus_time), min(epoch_us(bus_time)) FROM {table}")  # noqa: S608
        assert times == [(len(TIMES_US), 1, NOW_US)]
    assert_verified(old_lake)


@pytest.mark.parametrize("milliseconds", [946_684_799_999, 946_684_800_000, 253_402_214_400_000, 253_402_214_400_001])
def test_the_bounds_are_those_of_ingest(milliseconds: int) -> None:
    """Ingest and readers have the same bounds, to the millisecond."""
    stored = pa.table({"bus_time": pa.array([milliseconds * 1_000], pa.int64()).cast(TIMESTAMP)})
    with duckdb.connect() as connection:
        connection.register("stored", stored)
        read = connection.sql(f"SELECT {statement('valid_bus_time')} FROM stored").to_arrow_table()  # noqa: S608
    assert read["bus_time"].null_count == bus_times([milliseconds]).null_count


_COMMANDS = (
    *("dead-letters list --all", "dead-letters show {topic}-0@9", "lag", "verify", "audit", "refresh", "doctor"),
    *("sql FROM@events", "compact"),
)


def test_commands_work(old_lake: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No command ends with a traceback or an error."""
    refresh_warehouse(old_lake)
    monkeypatch.setattr("pipelines.operate.doctor._cache", lambda _: "not looked at")  # depends on this machine
    for command in _COMMANDS:
        words = command.format(topic=old_lake.kafka.topic).split()
        run(monkeypatch, capsys, *(word.replace("FROM@", "FROM ") for word in words))


def test_a_dead_letter_without_a_valid_time_says_so(
    old_lake: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`show` prints a sentence instead of a time."""
    topic = old_lake.kafka.topic
    assert "no valid record time" in run(monkeypatch, capsys, "dead-letters", "show", f"{topic}-0@9")
    last = f"{topic}-0@{2 * len(TIMES_US) - 1}"
    assert "2026-09-2" in run(monkeypatch, capsys, "dead-letters", "show", last)


@pytest.mark.parametrize("ending", ["parquet", "ndjson"])
def test_all_are_exported(
    old_lake: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ending: str
) -> None:
    """Each has its bytes; an invalid time is null."""
    file = tmp_path / f"letters.{ending}"
    run(monkeypatch, capsys, "dead-letters", "export", str(file))
    if ending == "parquet":
        rows = pq.read_table(file).to_pylist()
    else:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert sorted(row["offset"] for row in rows) == list(range(9, 18))
    assert [row["bus_time"] is None for row in rows].count(True) == len(TIMES_US) - 1


def test_dead_letters_are_selected_requeued_and_discarded(old_lake: Settings) -> None:
    """Invalid times do not matter to any of these."""
    assert len(select(old_lake, Selection())) == len(TIMES_US)
    assert requeue(old_lake, Selection()) == Requeued(0, 0, 0, still_rejected=len(TIMES_US))
    assert discard(old_lake, Selection(), "a test") == len(TIMES_US)
    assert_verified(old_lake)


def test_no_producers_clock_decides_which_are_the_newest(settings: Settings) -> None:
    """The newest are those committed last."""
    for number in range(4):
        send(settings, [Record(b"u", b"\xff" + str(number).encode())])
        drain_all(with_ingest(settings))
    newest = newest_dead_letters(settings, Selection(), 2)
    values = select(settings, Selection())["value"].to_pylist()
    places = [(row["topic_partition"], row["offset"]) for row in newest]
    assert values == [b"\xff0", b"\xff1", b"\xff2", b"\xff3"]
    assert [offset for _, offset in places] == [2, 3]


def test_compaction_keeps_them(old_lake: Settings) -> None:
    """Merged files have the same rows."""
    send(old_lake, [*valid_records(range(50, 55)), Record(b"u", b"\xff")])
    drain_all(old_lake)
    compact(open_lake(old_lake.lake_root), 2)
    assert query(old_lake, "SELECT count(*), count(bus_time) FROM dead_letters") == [(len(TIMES_US) + 1, 2)]
    assert_verified(old_lake)
