"""Files of history give the same events, dead letters and dedup as the bus (`once`, `replay-equals-live`)."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.backfill import backfill
from pipelines.bus.topics import ensure_topic
from pipelines.cli.files import _finish
from pipelines.drain import drain, open_ingest_from
from pipelines.emit.producer import produce
from pipelines.errors import RejectedError, UsageError
from pipelines.ingest.file import open_file
from pipelines.inputs import find_files
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import create_lake, data_files, open_lake
from pipelines.lake.upkeep import compact
from pipelines.settings import IngestSettings, LakeSettings, Settings
from pipelines.sources.files import ColumnMapping, read_events
from tests.commands import KARMALAKE, Started, run
from tests.conftest import REPOSITORY
from tests.draining import assert_verified, contents, drain_all, query, send, valid_records
from tests.lake.builders import create_older_lake
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS

OTC = ColumnMapping("to", "time", "s", "UserRated", None, (("rating", "feature"), ("rater_id", "from")))
_EVENTS = "SELECT event_id, user_id, action_type, event_time, metadata FROM events ORDER BY event_id"


@pytest.fixture
def busless(tmp_path: Path) -> Settings:
    """Return settings without a bus: a backfill needs none."""
    return Settings(data_dir=tmp_path / "data")


def load(settings: Settings, path: Path, mapping: ColumnMapping = OTC) -> list[CommitRecord]:
    records: list[CommitRecord] = []
    backfill(settings, path, mapping, records.append)
    return records


def ratings(path: Path, rows: range) -> Path:
    frame = pl.DataFrame({"from": [n % 5 for n in rows], "to": [n % 7 for n in rows], "feature": list(rows)})
    write: dict[str, Callable[[pl.DataFrame, Path], None]] = {
        ".csv": pl.DataFrame.write_csv,
        ".parquet": pl.DataFrame.write_parquet,
        ".ndjson": pl.DataFrame.write_ndjson,
    }
    write[path.suffix](frame.with_columns(time=pl.Series([1_400_000_000 + n for n in rows])), path)
    return path


@pytest.mark.slow
def test_real_history_by_file_equals_the_bus(settings: Settings, bitcoin_otc: Path, tmp_path: Path) -> None:
    """35,592 real rows give equal events by file and by bus; loading the second way gives duplicates only."""
    ensure_topic(settings.kafka)
    produce(settings.kafka, read_events(bitcoin_otc / "ratings.csv", OTC))
    drain_all(settings)
    other = settings.model_copy(update={"data_dir": tmp_path / "by-file"})
    (record,) = load(other, bitcoin_otc / "ratings.csv")
    assert record.total("accepted") == 35_592
    assert query(other, _EVENTS) == query(settings, _EVENTS)
    (again,) = load(settings, bitcoin_otc / "ratings.csv")
    assert again.total("duplicates") == 35_592
    for each in (settings, other):
        assert_verified(each)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_a_file_is_loaded_once(busless: Settings, tmp_path: Path, ending: str) -> None:
    """A loaded file is skipped without a commit; the commit of a file names it."""
    path = ratings(tmp_path / f"ratings.{ending}", range(100))
    (record,) = load(busless, path)
    assert (record.source, record.total("accepted")) == (f"file:{path}", 100)
    assert load(busless, path) == []
    assert_verified(busless)


def test_a_folder_and_a_pattern_are_their_files(busless: Settings, tmp_path: Path) -> None:
    """As on the command line: each file once, by whichever address; an address without files is an error."""
    folder = tmp_path / "rides"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_text(f"who,at\n{name},2024-05-01T10:00:00Z\n")
    mapping = ColumnMapping("who", "at", "iso", "Rode")
    assert backfill(busless, folder, mapping) == 2
    assert backfill(busless, f"{folder}/*.csv", mapping) == 0
    with pytest.raises(UsageError, match="there are no files"):
        backfill(busless, f"{folder}/*.parquet", mapping)


@pytest.mark.parametrize("pattern", ["", "/*.csv", "/**/*.csv", "/*/a.csv"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_no_link_leads_out_of_a_folder(tmp_path: Path, pattern: str, is_folder: bool) -> None:
    """Who writes the folder would choose which files of its reader are loaded: its name is in the message."""
    outside, folder = tmp_path / "private", tmp_path / "rides"
    for each in (outside, folder / "inner"):
        each.mkdir(parents=True)
        (each / "a.csv").write_text("who,at\n")
    (folder / "b.csv").write_text("who,at\n")
    (folder / "same.csv").symlink_to(folder / "b.csv")
    here = {str(path) for path in (folder / "b.csv", folder / "same.csv", folder / "inner" / "a.csv")}
    assert set(find_files([f"{folder}{pattern}"])) <= here
    inside, target = (folder / "linked", outside) if is_folder else (folder / "inner" / "a.csv", outside / "a.csv")
    inside.unlink(missing_ok=True)
    inside.symlink_to(target)
    if pattern == "/*.csv":
        assert set(find_files([f"{folder}{pattern}"])) <= here  # it is no match
    else:
        with pytest.raises(UsageError, match=rf"a link out of the folder .*rides, to .*{outside.name}.*give that path"):
            find_files([f"{folder}{pattern}"])
    (tmp_path / "elsewhere").symlink_to(outside)
    assert find_files([tmp_path / "elsewhere"]) == [str(tmp_path / "elsewhere" / "a.csv")], "the operator named it"


def test_a_file_that_changed_is_read_from_its_start(busless: Settings, tmp_path: Path) -> None:
    """Its old rows are dropped as duplicates, its new ones are added, and both versions reconcile."""
    path = tmp_path / "ratings.csv"
    load(busless, ratings(path, range(100)))
    (record,) = load(busless, ratings(path, range(50, 130)))
    assert (record.total("duplicates"), record.total("accepted")) == (50, 30)
    assert_verified(busless)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_loading_continues_from_the_checkpoint(
    busless: Settings, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop, also with other limits, each row is read once (`nothing-lost`)."""
    monkeypatch.setattr("pipelines.sources.table_rows.CHUNK_ROWS", 30)
    monkeypatch.setattr("pipelines.sources.csv_rows._BLOCK_BYTES", 300)
    path = ratings(tmp_path / f"ratings.{ending}", range(200))
    small = busless.model_copy(update={"ingest": IngestSettings(max_batch_records=7)})
    with open_ingest_from(open_file(path, OTC, small), small) as ingest:
        drain(ingest, lambda _: None, max_batches=2)
    monkeypatch.setattr("pipelines.sources.table_rows.CHUNK_ROWS", 47)
    load(busless, path)
    assert query(busless, 'SELECT sum("read"), sum(accepted), sum(duplicates) FROM commits') == [(200, 200, 0)]
    assert query(busless, 'SELECT list("offset" ORDER BY "offset") FROM events') == [(list(range(200)),)]
    assert_verified(busless)


def test_invalid_rows_are_dead_letters(busless: Settings, tmp_path: Path) -> None:
    """Each has the row as JSON, its place and a reason; the other rows are accepted (`not-blocked`)."""
    path = tmp_path / "ratings.csv"
    path.write_text('from,to,feature,time\n1,,5,1400000000\n1,ann,5,soon\n1,bob,5,1400000000\n1,"h""u",5,99999999999\n')
    (record,) = load(busless, path)
    assert (record.total("accepted"), record.total("dead_letters")) == (1, 3)
    rows = query(busless, 'SELECT "offset", reason, detail, value, "key" FROM dead_letters ORDER BY "offset"')
    assert [(place, reason) for place, reason, *_ in rows] == [
        (0, "missing_user_id"),
        (1, "undecodable"),
        (3, "timestamp_too_late"),
    ]
    assert rows[1][2] == "row 2, column 'time': 'soon' is not a time in s."
    assert json.loads(rows[2][3]) == {"from": "1", "to": 'h"u', "feature": "5", "time": "99999999999"}
    assert rows[2][4] == b'h"u'
    assert_verified(busless)


@pytest.mark.slow
def test_two_processes_load_files_at_once(busless: Settings, tmp_path: Path) -> None:
    """Each event counts once, in whatever order overlapping files are loaded (`once`)."""
    paths = [ratings(tmp_path / f"{n}.parquet", range(n * 500, n * 500 + 1000)) for n in range(3)]
    code = (
        "import sys; from pathlib import Path; from tests.test_backfill import OTC, load\n"
        "from pipelines.settings import IngestSettings, Settings\n"
        "import pipelines.sources.table_rows; pipelines.sources.table_rows.CHUNK_ROWS = 50\n"
        "load(Settings(data_dir=Path(sys.argv[1]), ingest=IngestSettings(max_batch_records=100)), Path(sys.argv[2]))"
    )
    commands = [["-c", code, str(busless.data_dir), str(path)] for path in paths]
    with ExitStack() as loaders:
        loading = [loaders.enter_context(ended(Started(command, cwd=REPOSITORY))) for command in commands]
        assert [process.wait(PATIENCE_SECONDS) for process in loading] == [0, 0, 0]
    assert query(busless, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(2000, 2000)]
    assert query(busless, 'SELECT sum("read") FROM commits') == [(3000,)]
    assert_verified(busless)


def test_history_and_the_bus_share_a_lake(settings: Settings, tmp_path: Path) -> None:
    """Each has its own checkpoints; the views of the lake show both alike."""
    send(settings, valid_records(range(50)))
    load(settings, ratings(tmp_path / "ratings.csv", range(20)))
    drain_all(settings)
    before = contents(settings)
    assert len(before["events"]) == 70
    assert load(settings, tmp_path / "ratings.csv") == drain_all(settings) == []
    assert contents(settings) == before


@pytest.mark.slow
def test_one_row_in_two_formats_counts_once(busless: Settings, tmp_path: Path) -> None:
    """Floats in Parquet, text in CSV: equal ids; if the text differs, the first event stands, with a conflict."""
    (tmp_path / "r.csv").write_text("to,feature,time\na,4.0,2024-01-01T10:00:00Z\nb,4.5,2024-01-02T10:00:00Z\n")
    rows = pl.read_csv(tmp_path / "r.csv", try_parse_dates=True)
    rows.write_parquet(tmp_path / "r.parquet")
    mapping = ColumnMapping("to", "time", "iso", "UserRated", None, (("rating", "feature"),))
    load(busless, tmp_path / "r.csv", mapping)
    (record,) = load(busless, tmp_path / "r.parquet", mapping)
    assert (record.total("duplicates"), record.total("conflicts"), record.total("accepted")) == (1, 1, 0)
    assert query(busless, "SELECT count(*) FROM events") == [(2,)]
    assert_verified(busless)


@pytest.mark.slow
def test_rows_in_random_order_end_in_one_file_a_partition(
    busless: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an older lake a commit writes a file for each day of its rows; a compaction leaves one, with every row."""
    create_older_lake(busless.lake_root)
    monkeypatch.setattr("pipelines.lake.merge_groups._MAX_SURPLUS_FILES", 100)
    days, rows = 60, 1_200
    times = [1_400_025_600 + 86_400 * (n % days) for n in range(rows)]
    history = pl.DataFrame(
        {"from": range(rows), "to": [n % 7 for n in range(rows)], "feature": range(rows), "time": times}
    )
    history.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "h.parquet", row_group_size=400)
    monkeypatch.setattr("pipelines.sources.table_rows.CHUNK_ROWS", 400)
    small = busless.model_copy(update={"ingest": IngestSettings(max_batch_records=400)})
    records = load(small, tmp_path / "h.parquet")
    lake = open_lake(busless.lake_root)
    assert [len(record.days) <= days for record in records] == [True] * 3
    assert len(data_files(lake.table("events"))) == sum(len(record.days) for record in records) > 2 * days
    before = query(busless, _EVENTS)
    compact(lake, busless.lake.compact_after_files)
    assert len(data_files(lake.table("events"))) == days
    assert query(busless, _EVENTS) == before
    assert len(before) == rows
    assert_verified(busless)


@pytest.mark.slow
@pytest.mark.parametrize("below", [0, 1], ids=["as many as allowed", "more"])
def test_a_load_that_leaves_many_files_merges_them(
    busless: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: int
) -> None:
    """Those that a compaction would merge are counted: here all, each with a few rows."""
    monkeypatch.setattr("pipelines.sources.csv_rows._BLOCK_BYTES", 100)
    sections = {"ingest": IngestSettings(max_batch_records=7), "lake": LakeSettings(compact_after_files=2)}
    small = busless.model_copy(update=sections)
    records = load(small, ratings(tmp_path / "r.csv", range(63)))
    lake = open_lake(busless.lake_root)
    files = len(data_files(lake.table("events")))
    assert files == len(records) > 2
    monkeypatch.setattr("pipelines.cli.files._MANY_FILES", files - below)
    _finish(small, records, [])
    assert len(data_files(lake.table("events"))) == (1 if below else files)
    assert query(busless, "SELECT count(*) FROM events") == [(63,)]


def _karmalake(folder: Path, *arguments: str, stdin: IO[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
    environment |= {"KARMALAKE_DATA_DIR": str(folder / "data"), "COLUMNS": "200", "PYTHONPATH": str(REPOSITORY)}
    return run([*KARMALAKE, *arguments], cwd=folder, env=environment, stdin=stdin)


def _backfill(folder: Path, *arguments: str, stdin: IO[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `karmalake backfill` in a folder."""
    return _karmalake(folder, "backfill", *arguments, stdin=stdin)


_COLUMNS = ("--user-id", "u", "--time", "t", "--action-type", "A")


@pytest.mark.slow
def test_the_outcome_of_each_file_is_reported(tmp_path: Path) -> None:
    """Of three files the second is refused: the others are loaded, and the command fails with the reason."""
    (tmp_path / "g1.csv").write_text("u,s,t\na,1,2024-01-01\n")
    (tmp_path / "g2.csv").write_text("user,s,t\nb,1,2024-01-02\n")
    (tmp_path / "g3.csv").write_text("u,s,t\nc,1,2024-01-03\nc,1,2024-01-03\n,1,2024-01-03\n")
    done = _backfill(tmp_path, "g1.csv", "g2.csv", "g3.csv", *_COLUMNS)
    assert done.returncode == 2, done.stderr
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("g")] == [
        ["g1.csv", "1", "1", "0", "0", "0", "0"],
        ["g2.csv", "0", "0", "0", "0", "0", "0"],
        ["g3.csv", "3", "1", "1", "0", "1", "0"],
    ]
    assert "2 of 3 files loaded" in done.stdout
    assert "g2.csv: there is no column 'u'; the columns are 'user', 's', 't'" in done.stderr
    assert "g3.csv: 1 row equals an earlier row of the file and counts once" in done.stderr
    assert "with --event-id" in done.stderr
    assert "g3.csv: 1 row is a dead letter (missing_user_id: 1): karmalake dead-letters list" in done.stderr
    assert done.stderr.count("error KL-") == 1
    alone = _backfill(tmp_path, "g2.csv", *_COLUMNS)
    assert (alone.returncode, alone.stdout) == (2, "0 of 1 files loaded\n")
    assert alone.stderr.count("error KL-") == 1
    again = _backfill(tmp_path, "g1.csv", *_COLUMNS)
    assert (again.returncode, "g1.csv over all attempts: 1 row, 1 accepted" in again.stdout) == (0, True)


@pytest.mark.slow
def test_a_file_with_only_dead_letters_fails(tmp_path: Path) -> None:
    """However few they are: exit code 65, also on a second run, without a traceback."""
    (tmp_path / "a.csv").write_text("u,t\na,soon\nb,late\n")
    for done in (_backfill(tmp_path, "a.csv", *_COLUMNS), _backfill(tmp_path, "a.csv", *_COLUMNS)):
        assert done.returncode == 65
        assert "a.csv: none of its 2 rows is a valid event: check the options" in done.stderr
        assert "2 rows are dead letters (undecodable: 2)" in done.stderr
        assert "each event counts once. The first: row " in done.stderr
        assert "0 of 1 files loaded" in done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_dry_run_shows_each_file(tmp_path: Path) -> None:
    """A refused file does not hide what would come of the others, nor the reason of the next refused one."""
    (tmp_path / "g1.csv").write_text("user,t\nb,2024-01-02\n")
    (tmp_path / "g2.csv").write_text("u,t\na,2024-01-01\n")
    (tmp_path / "g3.csv").write_text("")
    files = ["g1.csv", "g2.csv", "g3.csv"]
    (tmp_path / "sources").mkdir()
    text = f"files = {[f'../{file}' for file in files]}\nuser_id = 'u'\ntime = 't'\naction_type = 'A'\n"
    (tmp_path / "sources" / "votes.toml").write_text(text)
    for command in (["backfill", *files, *_COLUMNS, "--dry-run"], ["sources", "check", "votes"]):
        done = _karmalake(tmp_path, *command)
        assert done.returncode == 2
        assert "g1.csv: there is no column 'u'" in done.stderr
        assert "g3.csv: it is empty" in done.stderr
        assert "2024-01-01" in done.stdout
        assert "nothing was changed" in done.stdout
        assert not (tmp_path / "data" / "lake").exists()


@pytest.mark.slow
def test_standard_input_has_the_name_that_it_is_given(tmp_path: Path) -> None:
    """In every message, also of a dry run and of a refusal: no message names the temporary copy."""
    for text, code, rows in (("u;t\na;2024-01-01\n", 0, "1 row, 1 accepted"), ("u;t\na;2024-01-01\nb\n", 2, "")):
        for option in ("--dry-run", "--number-rows"):
            with (tmp_path / "input").open("w+") as file:
                file.write(text)
                file.flush()
                file.seek(0)
                done = _backfill(tmp_path, "-", *_COLUMNS, "--name", "votes of May", option, stdin=file)
            said = done.stdout + done.stderr
            assert done.returncode == code, said
            assert "karmalake-" not in said
            assert "-:" not in said
            if code:
                assert "error KL-USAGE: votes of May: row 2 (line 3): has 1 value" in said
            else:
                assert f"votes of May over all attempts: {rows}" in said or "votes of May (delimiter ';')" in said


@pytest.mark.slow
def test_a_file_without_rows_is_said(tmp_path: Path) -> None:
    """Whatever its format: exit code 65 and what to look at; the rows of the other files count."""
    rows = pa.table({"u": pa.array([], pa.string()), "t": pa.array([], pa.string())})
    for name, content in {"a.csv": "u,t\n", "b.jsonl": "", "c.json": "[]"}.items():
        (tmp_path / name).write_text(content)
    pq.write_table(rows, tmp_path / "d.parquet")
    (tmp_path / "full.csv").write_text("u,t\na,2024-01-01\n")
    empty = ("a.csv", "b.jsonl", "c.json", "d.parquet")
    done = _backfill(tmp_path, *empty, "full.csv", *_COLUMNS)
    assert done.returncode == 65
    for name in empty:
        assert f"{name}: it has no rows, so nothing was loaded: check that the export is complete" in done.stderr
    assert "1 of 5 files loaded" in done.stdout
    assert "it has no rows: nothing would be loaded" in _backfill(tmp_path, "a.csv", *_COLUMNS, "--dry-run").stderr


@pytest.mark.slow
def test_a_delimiter_is_found_and_said(tmp_path: Path) -> None:
    """By the header that has the mapped names; an option overrides it."""
    (tmp_path / "a.csv").write_text("u;t\na;2024-01-01\n")
    done = _backfill(tmp_path, "a.csv", *_COLUMNS)
    assert (done.returncode, "a.csv: delimiter ';'" in done.stdout + done.stderr) == (0, True)
    assert "there is no column 'u'" in _backfill(tmp_path, "a.csv", *_COLUMNS, "--delimiter", ",").stderr
    assert "is not a delimiter" in _backfill(tmp_path, "a.csv", *_COLUMNS, "--delimiter", "ab").stderr


@pytest.mark.parametrize(
    ("name", "mapping", "found"),
    [
        ("absent.csv", OTC, "absent.csv: No such file"),
        ("ratings.csv", ColumnMapping("whom", "time", "s", "A"), "no column 'whom'; the columns are 'from', 'to'"),
        ("ratings.txt", OTC, "there is no column 'to'"),
    ],
)
def test_mistakes_name_file_and_remedy(
    busless: Settings, tmp_path: Path, name: str, mapping: ColumnMapping, found: str
) -> None:
    """Nothing is committed."""
    ratings(tmp_path / "ratings.csv", range(5))
    (tmp_path / "ratings.txt").write_text("x")
    with pytest.raises(UsageError, match=found):
        load(busless, tmp_path / name, mapping)
    create_lake(busless.lake_root)
    assert query(busless, "SELECT count(*) FROM commits") == [(0,)]


def test_a_wrong_mapping_stops_instead_of_filling_the_dead_letters(busless: Settings, tmp_path: Path) -> None:
    """If most rows are invalid, the mapping is wrong, not the rows."""
    path = ratings(tmp_path / "ratings.csv", range(6_000))
    with pytest.raises(RejectedError, match="100% of 6,000 records"):
        load(busless, path, ColumnMapping("to", "feature", "iso", "UserRated"))
    assert query(busless, "SELECT count(*) FROM dead_letters") == [(0,)]
