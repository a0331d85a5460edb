"""Files as events: exact, equal in every format, and errors name the place."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bus.topics import describe_topic, ensure_topic
from pipelines.contract.schema import EVENT
from pipelines.contract.times import read_times
from pipelines.emit.producer import produce
from pipelines.errors import UsageError
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping, read_events, row_digests
from pipelines.sources.rows import read_rows
from tests.conftest import REPOSITORY

OTC = ColumnMapping(
    user_id="to",
    time="time",
    time_unit="s",
    action_type="UserRated",
    metadata=(("rating", "feature"), ("rater_id", "from")),
)
CSV = "from,to,feature,time\n6,2,4,1289241911.72836\n6,5,2,1289241941.53378\n1,15,-1,1289243140.39049\n"


def _read(path: Path, mapping: ColumnMapping = OTC) -> pa.Table:
    return pa.concat_tables([EVENT.empty_table(), *read_events(path, mapping)]).combine_chunks()


def _write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def _microseconds(events: pa.Table) -> list[int]:
    return events["event_time"].cast(pa.int64()).to_pylist()


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "__index_level_0__"])
def test_the_index_of_a_frame_is_not_part_of_a_row(tmp_path: Path, index: str) -> None:
    """The same rows with and without it, or with another one, have the same ids, by options and by a source."""
    rows = pl.read_csv(CSV.encode(), schema_overrides={"time": pl.String})
    kinds = [rows, rows.with_row_index(index or "i", 1), rows.with_row_index(index or "i", 7)]
    ids, digests = set[str](), set[str]()
    for number, frame in enumerate(kinds):
        text = frame.write_csv().replace("i,", ",", 1) if number and not index else frame.write_csv()
        path = _write(tmp_path, f"{number}.csv", text)
        ids |= set(_read(path)["event_id"].to_pylist())
        digests |= {digest for chunk in read_rows(path) for digest in row_digests(chunk).to_pylist()}
    assert (len(ids), len(digests)) == (3, 3)


def test_csv_rows_become_events_to_the_microsecond(tmp_path: Path) -> None:
    """Columns are mapped to fields; decimal seconds keep every digit."""
    events = _read(_write(tmp_path, "ratings.csv", CSV))
    assert events.schema == EVENT
    assert _microseconds(events) == [1289241911728360, 1289241941533780, 1289243140390490]
    assert events["user_id"].to_pylist() == ["2", "5", "15"]
    assert set(events["action_type"].to_pylist()) == {"UserRated"}
    assert events["metadata"].to_pylist()[2] == [("rating", "-1"), ("rater_id", "1")]
    assert len({len(event_id) for event_id in events["event_id"].to_pylist()} | {32}) == 1


@pytest.mark.slow
def test_three_formats_give_identical_events(tmp_path: Path, bitcoin_otc: Path) -> None:
    """35,592 real rows as CSV, Parquet (integers and floats) and NDJSON (numbers), ids included."""
    source = bitcoin_otc / "ratings.csv"
    frame = pl.read_csv(source)
    assert frame.dtypes == [pl.Int64, pl.Int64, pl.Int64, pl.Float64]
    frame.write_parquet(tmp_path / "ratings.parquet")
    frame.write_ndjson(tmp_path / "ratings.ndjson")
    expected = _read(source)
    assert len(expected) == 35_592
    assert len(set(expected["event_id"].to_pylist())) == len(expected)
    times = pl.read_csv(source, infer_schema=False)["time"]
    assert _microseconds(expected) == [int(Decimal(time) * 1_000_000) for time in times]
    assert _read(tmp_path / "ratings.parquet").equals(expected)
    assert _read(tmp_path / "ratings.ndjson").equals(expected)


def test_real_ratings_arrive_on_the_topic(settings: Settings, bitcoin_otc: Path) -> None:
    """Every row of the file is a record of the topic."""
    ensure_topic(settings.kafka)
    produced = produce(settings.kafka, read_events(bitcoin_otc / "ratings.csv", OTC))
    topic = describe_topic(settings.kafka)
    assert topic is not None
    assert produced.records == sum(state.end_offset for state in topic.partitions) == 35_592


def test_compressed_text_is_read(tmp_path: Path) -> None:
    """A .csv.gz file gives the rows of the .csv file."""
    path = tmp_path / "ratings.csv.gz"
    path.write_bytes(gzip.compress(CSV.encode()))
    assert _read(path).equals(_read(_write(tmp_path, "ratings.csv", CSV)))


@pytest.mark.parametrize("write", [pl.DataFrame.write_csv, pl.DataFrame.write_parquet, pl.DataFrame.write_ndjson])
def test_all_fields_from_columns(tmp_path: Path, write: Callable[[pl.DataFrame, Path], None]) -> None:
    """event_id and action_type may be columns; empty and missing metadata values are omitted; text is unchanged."""
    frame = pl.DataFrame(
        {
            "id": ["a", "b"],
            "who": ["zoë 🚗", 'quo"te,\nline'],
            "what": ["question_upvoted", "bounty_offered"],
            "when": ["2018-03-12T00:00:00.000Z", "2018-03-12T01:00:00.1234569+01:00"],
            "amount": [None, 50],
        }
    )
    path = tmp_path / f"events.{write.__name__.removeprefix('write_')}"
    write(frame, path)
    mapping = ColumnMapping("who", "when", "iso", None, "what", (("amount", "amount"),), "id")
    assert _read(path, mapping).to_pydict() == {
        "event_id": ["a", "b"],
        "user_id": ["zoë 🚗", 'quo"te,\nline'],
        "action_type": ["question_upvoted", "bounty_offered"],
        "event_time": pa.array([1520812800000000, 1520812800123456], EVENT.field("event_time").type).to_pylist(),
        "metadata": [[], [("amount", "50")]],
    }


@pytest.mark.slow
def test_parquet_timestamps_say_their_own_unit(tmp_path: Path) -> None:
    """Timestamps of any unit and zone, and dates, ignore time_unit; without a zone they are UTC."""
    microseconds = 1289241911728361
    columns = {
        "ns": pa.array([microseconds * 1000 + 999], pa.timestamp("ns")),
        "zoned": pa.array([microseconds], pa.timestamp("us", "Asia/Kolkata")),
        "s": pa.array([microseconds // 1_000_000], pa.timestamp("s")),
        "date": pa.array([14921], pa.date32()),
    }
    path = tmp_path / "times.parquet"
    pl.from_arrow(pa.table({"to": ["u"]})).write_parquet(path)
    pa.parquet.write_table(pa.table({"to": ["u"], **columns}), path)
    found = {name: _microseconds(_read(path, ColumnMapping("to", name, "s", "A")))[0] for name in columns}
    whole = microseconds // 1_000_000 * 1_000_000
    assert found == {"ns": microseconds, "zoned": microseconds, "s": whole, "date": 14921 * 86_400_000_000}


def test_unusual_parquet_columns_are_read(tmp_path: Path) -> None:
    """Unmapped columns may have any type; they only distinguish rows."""
    table = pa.table(
        {
            "to": pa.array(["u", "u"]).dictionary_encode(),
            "time": pa.array([1, 1], pa.uint32()),
            "tags": [["a"], ["b"]],
            "raw": [b"\xff", None],
            "flag": [True, None],
            "amount": [2.0, float("nan")],
        }
    )
    path = tmp_path / "odd.parquet"
    pa.parquet.write_table(table, path)
    events = _read(path, ColumnMapping("to", "time", "s", "A", metadata=(("amount", "amount"), ("flag", "flag"))))
    assert events["metadata"].to_pylist() == [[("amount", "2"), ("flag", "true")], []]
    assert len(set(events["event_id"].to_pylist())) == 2


def test_the_digest_is_of_the_row_and_of_nothing_else(tmp_path: Path) -> None:
    """The order of columns and rows and a new empty column change no id; any value, user or action does."""
    first = _read(_write(tmp_path, "a.csv", CSV))["event_id"].to_pylist()
    reordered = "time,note,feature,to,from\n1289241941.53378,,2,5,6\n1289241911.72836,,4,2,6\n"
    assert _read(_write(tmp_path, "b.csv", reordered))["event_id"].to_pylist() == [first[1], first[0]]
    other = _read(_write(tmp_path, "c.csv", CSV.replace("6,2,4", "6,2,5")))["event_id"].to_pylist()
    assert [old == new for old, new in zip(first, other, strict=True)] == [False, True, True]
    raters = replace(OTC, user_id="from", action_type="UserRatedOther")
    assert not set(first) & set(_read(tmp_path / "a.csv", raters)["event_id"].to_pylist())


def test_identical_rows_are_one_event(tmp_path: Path) -> None:
    """Two equal rows get the same id: to count both, the file needs an id column."""
    row = "6,2,4,1289241911.72836\n"
    first, second = _read(_write(tmp_path, "a.csv", "from,to,feature,time\n" + row + row))["event_id"].to_pylist()
    assert first == second


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999), st.text("0123456789", max_size=12))
def test_decimal_seconds_are_exact(microseconds: int, finer: str) -> None:
    """Any microsecond of 9,999 years survives as decimal seconds; further digits are truncated."""
    whole, fraction = divmod(microseconds, 1_000_000)
    text = f"{whole}.{fraction:06d}{finer}" if whole >= 0 else str(Decimal(microseconds) / 1_000_000)
    written = {"s": text, "us": str(microseconds), "ms": str(Decimal(microseconds) / 1000)}
    for unit, number in written.items():
        times, errors = read_times(pa.array([number]), unit)
        assert (times.cast(pa.int64()).to_pylist(), errors) == ([microseconds], {})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "to,time\nu,1\n,2\n", "row 2, column 'to': it is empty"),
        ("a.csv", "to,time\nu,1\nu,soon\n", "row 2, column 'time': 'soon' is not a time in s"),
        ("a.csv", "to,time\nu,1289241911728\n", "row 1, .* outside the years 1 to 9999: check the unit"),
        ("a.csv", "to,time\nu,1e99\n", "row 1, .* outside the years"),
        ("a.csv", "to,time\nu,nan\n", "row 1, .* is not a time in s"),
        ("a.csv", "to,time\nu\n", r"row 1 \(line 2\): has 1 value, and the header names 2 columns: write an empty"),
        ("a.csv", "to,time\nu,1,2\n", r"row 1 \(line 2\): has 3 values, and the header names 2 columns: quote a value"),
        ("a.csv", "to,to,time\nu,v,1\n", "several columns are named 'to'"),
        ("a.csv", "user,time\nu,1\n", "no column 'to'; the columns are 'user', 'time'"),
        ("a.csv", "", "it is empty: the first line must name the columns"),
        ("a.ndjson", "{}\n", "no column 'to'; the columns are"),
        ("a.ndjson", '{"to": "u", "time": 1}\n{"to": \n', "row 2 is not one JSON object"),
        ("a.ndjson", '{"to": "u", "time": 1}\n// old\n', "row 2 .* a comment, .*remove those lines, grep"),
        ("a.ndjson", '\x1e{"to": "u", "time": 1}\n', "row 1 .*RFC 7464.*: remove its separators, tr"),
        ("a.ndjson", "[1]\n", "row 1 is not one JSON object in UTF-8: it is another value, 1"),
        ("a.json", "[null]", "row 1 is not one JSON object in UTF-8: it is another value, null"),
        ("a.ndjson", '{"to": "\\ud800", "time": 1}\n', "row 1 is not one JSON object in UTF-8"),
        ("a.ndjson", '{"to": "u", "time": 1}\n{"to": "u"}\n', "row 2, column 'time': '' is not a time in s"),
        ("a.parquet", "no parquet", "a.parquet: .*Parquet"),
    ],
)
def test_errors_name_file_row_and_column(tmp_path: Path, name: str, text: str, message: str) -> None:
    """No value is guessed and no row skipped: the first invalid row ends the reading."""
    with pytest.raises(UsageError, match=message) as caught:
        _read(_write(tmp_path, name, text), ColumnMapping("to", "time", "s", "A"))
    assert name in str(caught.value)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(UsageError, match=r"none\.csv"):
        _read(tmp_path / "none.csv")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a chunk of NDJSON a few lines long."""
    monkeypatch.setattr("pipelines.sources.ndjson._BLOCK_BYTES", 100)


@pytest.mark.usefixtures("small_blocks")
def test_a_late_error_counts_the_rows_before_it(tmp_path: Path) -> None:
    """Rows before the bad chunk have been yielded; the error counts them."""
    lines = [json.dumps({"to": f"u{number:02}", "time": 10 + number}) for number in range(20)]
    lines[13] = json.dumps({"to": "", "time": 1})
    path = _write(tmp_path, "a.ndjson", "\n".join(lines))
    chunks = read_events(path, ColumnMapping("to", "time", "s", "A"))
    passed_on: list[int] = []
    with pytest.raises(UsageError, match="row 14, column 'to'") as caught:
        passed_on.extend(map(len, chunks))
    assert 0 < sum(passed_on) < 13
    assert f"({sum(passed_on)} rows before it were passed on" in str(caught.value)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rows", [1, 20])
def test_a_file_that_changes_while_it_is_emitted_is_refused(tmp_path: Path, rows: int) -> None:
    """Its last row may be a part of one; also if the change comes after the last chunk."""
    path = _write(tmp_path, "a.csv", "to,time\n" + "".join(f"u{number:02},10\n" for number in range(rows)))
    chunks = read_events(path, ColumnMapping("to", "time", "s", "A"))
    next(chunks)
    with path.open("a") as file:
        file.write("u9,1")
    with pytest.raises(UsageError, match=r"a\.csv: it changed while it was read: give it again .*rows? before it w"):
        next(chunks)


@pytest.mark.usefixtures("small_blocks")
def test_columns_that_come_and_go_in_ndjson(tmp_path: Path) -> None:
    """A member that first appears in a late line may be mapped, and changes nothing for other rows."""
    lines = [{"to": "u", "time": number} for number in range(50)]
    path = _write(tmp_path, "a.ndjson", "\n".join(map(json.dumps, lines)))
    mapping = ColumnMapping("to", "time", "s", "A")
    before = _read(path, mapping)
    lines[-1]["note"] = "x"
    with_note = replace(mapping, metadata=(("note", "note"),))
    after = _read(_write(tmp_path, "b.ndjson", "\n".join(map(json.dumps, lines))), with_note)
    assert after.slice(0, 49).equals(before.slice(0, 49))
    assert after["metadata"].to_pylist()[-1] == [("note", "x")]


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_a_file_without_rows_has_no_events(tmp_path: Path, ending: str) -> None:
    """An empty table is allowed."""
    path = tmp_path / f"a.{ending}"
    getattr(pl.DataFrame({"to": [], "time": []}), f"write_{ending}")(path)
    assert len(_read(path, ColumnMapping("to", "time", "s", "A"))) == 0


def test_an_invalid_mapping_is_refused() -> None:
    """Both or neither of action_type and its column, or a repeated metadata name."""
    with pytest.raises(UsageError, match="either one action_type"):
        ColumnMapping("to", "time", "s")
    with pytest.raises(UsageError, match="either one action_type"):
        ColumnMapping("to", "time", "s", "A", "kind")
    with pytest.raises(UsageError, match="given twice"):
        ColumnMapping("to", "time", "s", "A", metadata=(("a", "x"), ("a", "y")))


def test_a_parquet_file_with_fewer_rows_than_declared_is_refused(tmp_path: Path) -> None:
    """A damaged page may read as zero rows without an error: missing rows are detected."""
    damaged = REPOSITORY / "tests" / "fuzz" / "seeds" / "parquet" / "fewer-rows-than-named.bin"
    path = tmp_path / "ratings.parquet"
    shutil.copy(damaged, path)
    with pytest.raises(UsageError, match="it declares 100 rows and has 0: it is damaged"):
        list(read_rows(path))
