"""Dead letters: records rejected by mistake are ingested once, and every fate is recorded."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.cli import main
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT, REJECTED
from pipelines.emit.producer import Record
from pipelines.errors import UsageError
from pipelines.ingest.batch import OffsetRange
from pipelines.lake import dead_letter_rows
from pipelines.lake.commit import CommitRecord, append, commit_batch
from pipelines.lake.commit_log import complete_commits
from pipelines.lake.files import read_footer
from pipelines.lake.tables import create_lake, data_files
from pipelines.operate import dead_letters as dead_letters_module
from pipelines.operate.dead_letters import (
    Requeued,
    Selection,
    count_dead_letters,
    discard,
    requeue,
    select,
    stream_dead_letters,
)
from pipelines.settings import Settings
from tests.draining import NOON, assert_verified, drain_all, drained, query, send, valid_records, with_ingest

_LARGE_BYTES = 32 * 1024 * 1024
# The growth of the process's memory by a command, in bytes.
_MEASURE = """
from pathlib import Path
from pipelines.cli import main
from pipelines.cli.options import bare_settings
from pipelines.operate.dead_letters import Selection, stream_dead_letters

def peak():
    status = Path("/proc/self/status").read_text()  # of this program alone: ru_maxrss begins with that of its parent
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

list(stream_dead_letters(bare_settings(), Selection(place="none-0@0")))
before = peak()
try:
    main()
except SystemExit as end:
    if end.code:
        raise
print(peak() - before)
"""
FUTURE = datetime.now(UTC) + timedelta(days=40)


@pytest.fixture
def lake(settings: Settings) -> Settings:
    """Return settings of a lake with 20 events and 11 dead letters: ten in the future, one undecodable."""
    settings = with_ingest(settings)
    send(settings, [*valid_records(range(20)), *ahead(range(100, 110)), Record(b"u", b"\xff\xff", [("h", b"1")])])
    drain_all(settings)
    return settings


@pytest.fixture(scope="module")
def large_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a lake of four batches of eight dead letters of 32 MiB each; compressed it is small."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("large"))
    lake = create_lake(settings.lake_root)
    handle, value = lake.table("events"), bytes(_LARGE_BYTES)
    for batch in range(4):
        rows = [
            {
                "topic_id": "id", "topic": "events", "topic_partition": 0, "offset": offset, "bus_time": NOON,
                "key": b"u", "value": value, "headers": [], "reason": "undecodable", "detail": "zeros",
            }
            for offset in range(8 * batch, 8 * batch + 8)
        ]  # fmt: skip
        append(lake, "dead_letters", pa.Table.from_pylist(rows, REJECTED), f"b{batch}")
        offsets = OffsetRange("id", "events", 0, 8 * batch, 8 * batch + 8, read=8, dead_letters=8)
        commit_batch(lake, handle, [], CommitRecord(f"b{batch}", "test", NOON, (offsets,)))
    complete_commits(lake, handle.version())
    return settings.data_dir


@pytest.fixture
def large(settings: Settings, large_data: Path) -> Settings:
    """Return settings of a copy of that lake."""
    shutil.copytree(large_data, settings.data_dir)
    return settings


def ahead(numbers: range) -> list[Record]:
    rows = [
        {"event_id": f"e-{n}", "user_id": "u", "action_type": "A", "event_time": FUTURE, "metadata": []}
        for n in numbers
    ]
    return [Record(b"u", value) for value in encode(pa.Table.from_pylist(rows, EVENT)).to_pylist()]


def fixed(settings: Settings) -> Settings:
    """Return settings whose contract accepts the events in the future."""
    bounds = settings.contract.model_copy(update={"max_ahead_seconds": 100 * 86_400})
    return settings.model_copy(update={"contract": bounds})


def test_requeued_events_count_once(lake: Settings) -> None:
    """Requeued, resent and requeued again, each event is stored once, and the counts add up (`once`)."""
    assert requeue(lake, Selection()) == Requeued(0, 0, 0, still_rejected=11)
    assert requeue(fixed(lake), Selection()) == Requeued(10, 0, 0, still_rejected=1)
    assert requeue(fixed(lake), Selection()) == Requeued(0, 0, 0, still_rejected=1)
    send(lake, ahead(range(100, 110)))
    record = drained(fixed(lake))
    assert record.total("duplicates") == 10
    assert query(lake, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(30, 30)]
    assert query(lake, "SELECT fate, count(*) FROM dead_letters GROUP BY ALL ORDER BY ALL") == [
        ("open", 1),
        ("requeued", 10),
    ]
    assert_verified(lake)


def test_dead_letters_are_published_if_enabled(settings: Settings) -> None:
    """The topic `.dlq` receives the original bytes, key and headers, with reason and place as headers."""
    publishing = with_ingest(settings, publish_dead_letters=True)
    send(publishing, [*valid_records(range(20)), *ahead(range(100, 110)), Record(b"u", b"\xff\xff", [("h", b"1")])])
    drain_all(publishing)
    other = {"topic": f"{settings.kafka.topic}.dlq"}
    published = with_ingest(settings.model_copy(update={"kafka": settings.kafka.model_copy(update=other)}))
    published = published.model_copy(update={"data_dir": settings.data_dir / "dlq"})
    drain_all(published)
    columns = '"key", "value", reason'
    mine = query(publishing, f"SELECT {columns} FROM dead_letters ORDER BY ALL")  # noqa: S608 - names of ours
    assert query(published, f"SELECT {columns} FROM dead_letters ORDER BY ALL") == mine  # noqa: S608 - names of ours
    (headers,) = query(published, "SELECT headers FROM dead_letters WHERE reason = 'undecodable'")[0]
    output = {header["key"]: header["value"] for header in headers}
    assert output["h"] == b"1"
    assert (output["karmalake.reason"], output["karmalake.topic"]) == (b"undecodable", settings.kafka.topic.encode())
    assert_verified(publishing)


def test_requeueing_a_resent_event_is_a_duplicate(lake: Settings) -> None:
    """An event that the producer resent meanwhile is not counted twice (`once`)."""
    send(lake, ahead(range(100, 104)))
    drain_all(fixed(lake))
    assert requeue(fixed(lake), Selection()) == Requeued(6, 4, 0, still_rejected=1)
    assert_verified(lake)


def test_a_crash_before_the_commit_leaves_them_open(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A requeue takes effect when its events are committed (`atomic`)."""

    class PowerCutError(Exception):
        pass

    def cut(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(dead_letters_module, "drain", cut)
        with pytest.raises(PowerCutError):
            requeue(fixed(lake), Selection())
    assert len(select(lake, Selection("open"))) == 11
    assert requeue(fixed(lake), Selection()).accepted == 10
    assert_verified(lake)


def test_a_selection_is_by_reason_or_place(lake: Settings) -> None:
    """Only the selected dead letters are requeued or discarded."""
    assert len(select(lake, Selection(reason="undecodable"))) == 1
    first = select(lake, Selection(reason="timestamp_too_late")).to_pylist()[0]
    place = f"{first['topic']}-{first['topic_partition']}@{first['offset']}"
    assert requeue(fixed(lake), Selection(place=place)) == Requeued(1, 0, 0, still_rejected=0)
    assert requeue(fixed(lake), Selection(reason="undecodable")) == Requeued(0, 0, 0, still_rejected=1)
    assert len(select(lake, Selection("requeued"))) == 1


def test_discarding_records_a_reason_and_keeps_the_bytes(lake: Settings) -> None:
    """A discarded dead letter is no longer open; its reason is recorded."""
    with pytest.raises(UsageError, match="give the reason"):
        discard(lake, Selection(), " ")
    assert discard(lake, Selection(reason="undecodable"), "a test of the producer") == 1
    (letter,) = select(lake, Selection("discarded")).to_pylist()
    assert (letter["value"], letter["note"]) == (b"\xff\xff", "a test of the producer")
    assert letter["headers"] == [{"key": "h", "value": b"1"}]
    assert len(select(lake, Selection())) == 10
    assert_verified(lake)


@pytest.mark.parametrize(
    ("bound", "most"),
    [("_MAX_BYTES", 1), ("_MAX_COMMIT_RECORDS", 3)],  # large ones alone: Arrow cannot hold 17 of 127 MiB
)
def test_many_dead_letters_are_requeued_in_bounded_commits(
    lake: Settings, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    """Only few are in memory at a time: each chunk is a commit, and every event counts once (`once`)."""
    monkeypatch.setattr(dead_letter_rows, "_MAX_ROWS", most)
    monkeypatch.setattr(dead_letters_module, bound, most)
    sizes = [len(letters) for letters in stream_dead_letters(lake, Selection())]
    assert (sum(sizes), max(sizes)) == (11, most)
    assert requeue(fixed(lake), Selection()) == Requeued(10, 0, 0, still_rejected=1)
    assert query(lake, "SELECT count(*) > 2, max(\"read\") <= 3 FROM commits WHERE source = 'dead-letters'") == [
        (True, True)
    ]
    assert count_dead_letters(lake, Selection(fate=None)) == [
        ("timestamp_too_late", "requeued", 10),
        ("undecodable", "open", 1),
    ]
    assert_verified(lake)


@pytest.mark.parametrize("command", ["export letters.parquet", "export letters.ndjson", "requeue", "show events-0@5"])
def test_large_dead_letters_are_read_a_few_at_a_time(large: Settings, tmp_path: Path, command: str) -> None:
    """Memory does not grow with their number: 32 take that of 16 to 25 copies of one (before: of 83 for an export)."""
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, "dead-letters", *command.split()],
        env=os.environ | {"KARMALAKE_DATA_DIR": str(large.data_dir)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert int(measured.stdout.splitlines()[-1]) < 28 * _LARGE_BYTES


def test_row_groups_of_dead_letters_are_bounded_in_bytes(large: Settings) -> None:
    """At most 16 MiB or one dead letter, so that a reader does not need all of a file."""
    paths = data_files(create_lake(large.lake_root).table("dead_letters"))
    footers = [read_footer(path) for path in paths]
    assert [footer.num_rows for footer in footers] == [8] * 4
    assert {footer.row_group(n).num_rows for footer in footers for n in range(footer.num_row_groups)} == {1}


def test_small_dead_letters_share_a_row_group(lake: Settings) -> None:
    """A row group for each would make files of many small records slow."""
    (footer,) = map(read_footer, data_files(create_lake(lake.lake_root).table("dead_letters")))
    assert (footer.num_rows, footer.num_row_groups) == (11, 1)


def test_a_large_dead_letter_is_shown_truncated(
    lake: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its start and size are shown: a few kilobytes of a topic may decompress to 128 MiB."""
    headers = [(f"h{number}", b"1") for number in range(1_000)]
    send(lake, [Record(b"k" * 200_000, bytes(200_000), headers)])
    drain_all(lake)
    at = "concat(topic, '-', topic_partition, '@', dead_letters.offset)"
    [(place,)] = query(lake, f"SELECT {at} FROM dead_letters WHERE octet_length(value) > 1000")  # noqa: S608
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(lake.data_dir))
    monkeypatch.setattr(sys, "argv", ["karmalake", "dead-letters", "show", place])
    with pytest.raises(SystemExit) as ended:
        main()
    output = "".join(capsys.readouterr().out.split())
    assert not ended.value.code
    assert len(output) < 200_000
    assert output.count("(200,000bytes:`karmalakedead-lettersexport`writesall)") == 2
    assert "moreheaders900" in output


def test_a_malformed_place_is_refused(lake: Settings) -> None:
    """The message shows the format; a place without a dead letter selects nothing."""
    for wrong in ("events", "events-0", "events@7", "-0@7", "events-0@-1", f"events-0@{10**30}"):
        with pytest.raises(UsageError, match="write it like 'events-0@17'"):
            select(lake, Selection(place=wrong))
    assert len(select(lake, Selection(place="events-0@999999999999999999"))) == 0
