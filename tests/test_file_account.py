"""What a load says, and what of a file counts: equal rows, other mappings, corrected files (`once`, `nothing-lost`)."""

import io
import os
from dataclasses import replace
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from pipelines.backfill import backfill, history_mapping, load, open_input, other_loads
from pipelines.cli.file_options import column_mapping
from pipelines.cli.previews import show_preview
from pipelines.errors import UsageError
from pipelines.inputs import InputFile, local_file
from pipelines.operate.dead_letters import Selection, close_accepted, count_dead_letters
from pipelines.operate.loads import list_loads, loads_of_file
from pipelines.preview import preview
from pipelines.settings import ContractSettings, HistorySettings, IngestSettings, Settings
from pipelines.sources.files import ColumnMapping, read_events
from tests.draining import assert_verified, query
from tests.sources.workbook import write_workbook
from tests.test_backfill import _backfill

_MAPPING = ColumnMapping("u", "t", "iso", "Voted", None, (("n", "n"),))
_NUMBERED = replace(_MAPPING, metadata=(), number_rows=True)


@pytest.fixture
def busless(tmp_path: Path) -> Settings:
    """Return settings without a bus."""
    return Settings(data_dir=tmp_path / "data")


def _votes(path: Path, lines: str, header: str = "u,t") -> Path:
    path.write_text(f"{header}\n{lines}")
    return path


def _accepted(settings: Settings, path: Any, mapping: ColumnMapping) -> int:
    accepted: list[int] = []
    backfill(settings, path, mapping, lambda record: accepted.append(record.total("accepted")))
    return sum(accepted)


def test_equal_rows_are_counted_and_may_be_numbered(busless: Settings, tmp_path: Path) -> None:
    """The n-th equal row is its own event, the same on every reload and after a kill; the first keeps its id."""
    path = _votes(tmp_path / "a.csv", "a,2024-01-01\nb,2024-01-01\n" * 6)
    plain = replace(_NUMBERED, number_rows=False)
    source = open_input(InputFile(path), plain, busless)
    load(busless, source, lambda _: None)
    assert source.equal_rows() == 10
    assert _accepted(busless, path, _NUMBERED) == 10
    path.write_text(path.read_text() + "a,2024-01-01\n")
    assert _accepted(busless, path, _NUMBERED) == 1
    assert query(busless, "SELECT user_id, count(*) FROM events GROUP BY ALL ORDER BY ALL") == [("a", 7), ("b", 6)]
    assert_verified(busless)


def test_numbers_continue_after_a_stop(busless: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows before the checkpoint are counted again, so the next ones have the ids that they would have had."""
    monkeypatch.setattr("pipelines.sources.csv_rows._BLOCK_BYTES", 40)
    path = _votes(tmp_path / "a.csv", "a,2024-01-01\n" * 20)
    small = busless.model_copy(update={"ingest": IngestSettings(max_batch_records=4)})
    source = open_input(InputFile(path), _NUMBERED, small)
    first = source.poll(lambda *_: None)
    assert first is not None
    resumed = open_input(InputFile(path), _NUMBERED, busless)
    rest = resumed.poll(lambda *_: len(first.records))
    assert rest is not None
    ids = [*first.decoded.events["event_id"].to_pylist(), *rest.decoded.events["event_id"].to_pylist()]
    assert ids == [row for table in read_events(path, _NUMBERED) for row in table["event_id"].to_pylist()]
    assert len(set(ids)) == 20


def test_what_is_found_about_a_file_is_logged(
    busless: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no command prints it, as in Python and in Dagster, which shows warnings; a frame has no form."""
    pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    write_workbook(tmp_path / "a.xlsx", [["u", "t"], ["a", "2024-01-01"]], [["other"]])
    assert _accepted(busless, tmp_path / "a.xlsx", _NUMBERED) == 1
    said = "1 of 2 sheets are read: 'sheet1'; without the columns: 'sheet2'"
    assert caplog.messages == [f"{tmp_path / 'a.xlsx'}: {said}"]
    assert _accepted(busless, pl.DataFrame({"u": ["b"], "t": ["2024-01-01"]}), _NUMBERED) == 1
    assert len(caplog.messages) == 1


def test_a_file_that_changes_while_it_is_read_is_refused(
    busless: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is still written: its last row would be a part of one. The complete file loads, each event once."""
    monkeypatch.setattr("pipelines.sources.csv_rows._BLOCK_BYTES", 40)
    path = _votes(tmp_path / "a.csv", "".join(f"a,2024-01-01T00:00:{n}Z\n" for n in range(10, 30)))
    small = busless.model_copy(update={"ingest": IngestSettings(max_batch_records=4)})
    source = open_input(InputFile(path), _NUMBERED, small)
    first = source.poll(lambda *_: None)
    assert first is not None
    with path.open("a") as file:
        file.write("b,2024-01-0")
    with pytest.raises(UsageError, match=r"a\.csv: it changed while it was read: give it again when it is complete"):
        source.poll(source.next_checkpoint())
    path.write_text(f"{path.read_text()}2\n")
    assert _accepted(busless, path, _NUMBERED) == 21


def test_a_later_export_with_one_more_column_counts_nothing_twice_by_its_identity(
    busless: Settings, tmp_path: Path
) -> None:
    """Named columns make a row an event, whatever is beside them."""
    mapping = replace(_MAPPING, metadata=(), identity=("t",))
    assert _accepted(busless, _votes(tmp_path / "a.csv", "a,2024-01-01\nb,2024-01-02\n"), mapping) == 2
    more = _votes(tmp_path / "b.csv", "a,2024-01-01,x\nb,2024-01-02,y\nc,2024-01-03,z\n", "u,t,new")
    assert _accepted(busless, more, mapping) == 1
    with pytest.raises(UsageError, match="there is no column 'other'"):
        _accepted(busless, more, replace(mapping, identity=("other",)))


@pytest.mark.slow
def test_a_change_of_the_contract_reads_a_file_again(busless: Settings, tmp_path: Path) -> None:
    """What was too early is accepted, and its dead letter is closed."""
    path = _votes(tmp_path / "a.csv", "a,1999-01-01\nb,2024-01-01\nc,never\n")
    assert _accepted(busless, path, replace(_MAPPING, metadata=())) == 1
    earlier = busless.model_copy(update={"contract": ContractSettings(earliest=datetime(1990, 1, 1, tzinfo=UTC))})
    source = open_input(InputFile(path), replace(_MAPPING, metadata=()), earlier)
    assert load(earlier, source, lambda _: None) == 1
    assert close_accepted(earlier, [(source.topic_id, source.topic)]) == 1
    assert close_accepted(earlier, [(source.topic_id, source.topic)]) == 0
    open_letters = [(each.reason, each.records) for each in count_dead_letters(earlier, Selection())]
    assert open_letters == [("undecodable", 2)]
    assert load(earlier, open_input(InputFile(path), replace(_MAPPING, metadata=()), earlier), lambda _: None) == 0
    assert_verified(earlier)


@pytest.mark.slow
def test_a_load_under_another_mapping_fails_and_says_why(tmp_path: Path) -> None:
    """Only conflicts: what was loaded first counts."""
    _votes(tmp_path / "a.csv", "a,2024-01-01,5\n", "u,t,n")
    columns = ("--user-id", "u", "--time", "t", "--action-type", "Voted")
    assert _backfill(tmp_path, "a.csv", *columns, "--metadata", "n=n").returncode == 0
    again = _backfill(tmp_path, "a.csv", *columns)
    assert again.returncode == 65
    assert "a.csv: none of its 1 row was added, and 1 are in the lake with other content" in again.stderr
    assert again.stderr.startswith(
        "warning: a.csv: it was loaded before by other columns or another text of its source (f"
    )


@pytest.mark.slow
def test_what_was_committed_of_a_refused_file_is_said(tmp_path: Path) -> None:
    """The rows before the place where the file breaks stay."""
    lines = "".join(f"user-{n},2024-01-01\n" for n in range(600_000))
    _votes(tmp_path / "a.csv", f'{lines}"b,2024-01-01\n')
    done = _backfill(tmp_path, "a.csv", "--user-id", "u", "--time", "t", "--action-type", "Voted")
    assert done.returncode == 2
    assert "row 600001 (line 600002): it has an unclosed quote" in done.stderr
    assert "rows before it are committed, and stay: load the corrected file" in done.stderr


@pytest.mark.slow
def test_a_preview_commits_nothing(busless: Settings, tmp_path: Path) -> None:
    """First events, fates against the lake, reasons with an example, unused columns, equal rows, the policy."""
    path = _votes(tmp_path / "a.csv", "a,2024-01-01,1,x\na,2024-01-01,1,x\nb,soon,2,y\nc,2024-01-03,3,z\n", "u,t,n,m")
    mapping = replace(_MAPPING, action_type="question_upvoted")
    before = preview(busless, InputFile(path), mapping)
    assert not (busless.data_dir / "lake").exists()
    assert dict(before.fates) == {
        "rows": 4, "accepted": 2, "duplicates": 1, "conflicts": 0, "dead letters": 1, "erased": 0
    }  # fmt: skip
    assert [row[0] for row in before.first_events] == ["a", "c"]
    assert before.reasons == [("undecodable", 1, "row 3, column 't': 'soon' is not an ISO 8601 time.")]
    equal, unused = before.notes
    assert equal.startswith("1 row equals an earlier row of the file and counts once. If they are separate events,")
    assert unused == "unused columns: 'm'"
    assert sum(row[-1] for row in before.scored) == 2
    _accepted(busless, path, mapping)
    assert dict(preview(busless, InputFile(path), mapping).fates)["duplicates"] == 3
    assert dict(preview(busless, InputFile(path), replace(mapping, metadata=())).fates)["conflicts"] == 2
    assert query(busless, "SELECT count(*) FROM commits") == [(1,)]


@pytest.mark.slow
def test_a_preview_gives_the_next_step_of_the_load(busless: Settings, tmp_path: Path) -> None:
    """Rows with one event_id are called equal only if they are, and no option is named that is refused beside it."""
    mapping = replace(_MAPPING, event_id="n", metadata=())
    path = _votes(tmp_path / "conflict.csv", "a,2024-01-01,1\nb,2024-01-01,1\n", "u,t,n")
    assert preview(busless, InputFile(path), mapping).notes == [
        "1 row has the event_id of an earlier row of the file, with other content"
    ]
    path = _votes(tmp_path / "equal.csv", "a,2024-01-01,1\na,2024-01-01,1\n", "u,t,n")
    assert preview(busless, InputFile(path), mapping).notes == [
        "1 row has the event_id of an earlier row of the file with the same content, and counts once"
    ]


@pytest.mark.slow
def test_a_preview_says_nothing_of_the_points_of_known_events(
    busless: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They count already; with others, the sentence says how many are known."""
    path = _votes(tmp_path / "a.csv", "a,2024-01-01\n")
    mapping = replace(_MAPPING, metadata=())
    _accepted(busless, path, mapping)
    show_preview("a", preview(busless, InputFile(path), mapping))
    assert "would count as" not in capsys.readouterr().out
    path = _votes(tmp_path / "b.csv", "a,2024-01-01\nb,2024-01-01\n")
    show_preview("b", preview(busless, InputFile(path), mapping))
    assert "they, with 1 that the lake has already, would count as" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_of_either_command_changes_nothing(tmp_path: Path) -> None:
    """Without a lake and without a bus."""
    _votes(tmp_path / "a.csv", "a;2024-01-01\nb;\n", "u;t")
    done = _backfill(tmp_path, "a.csv", "--user-id", "u", "--time", "t", "--action-type", "Voted", "--dry-run")
    assert (done.returncode, "nothing was changed" in done.stdout) == (0, True), done.stderr
    assert "a.csv (delimiter ';'): the first of 2 rows as events" in done.stdout
    assert "1 row would be a dead letter, undecodable: row 2, column 't'" in done.stderr
    assert not (tmp_path / "data" / "lake").exists()


def _frames() -> list[Any]:
    table = pa.table({"u": ["a", "b"], "t": [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2)], "n": [1.5, 2]})
    frame = pl.DataFrame(table)
    return [table, frame, frame.lazy(), table.to_reader(), duckdb.from_arrow(table)]


@pytest.mark.slow
def test_frames_and_relations_are_loaded(busless: Settings) -> None:
    """From polars, Arrow and DuckDB, as a file with the same rows: the second is known by its content."""
    assert [_accepted(busless, frame, _MAPPING) for frame in _frames()] == [2, 0, 0, 0, 0]
    assert query(busless, "SELECT user_id, metadata::VARCHAR FROM events ORDER BY ALL") == [
        ("a", "{n=1.5}"),
        ("b", "{n=2}"),
    ]
    with pytest.raises(UsageError, match="int cannot be loaded: give a path, a frame"):
        _accepted(busless, 7, _MAPPING)
    assert_verified(busless)


def test_a_frame_of_pandas_is_loaded(busless: Settings) -> None:
    """An id that pandas made a float, because of a gap, keeps its digits."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"u": [31234567890, None], "t": ["2024-01-01", "2024-01-02"]})
    assert _accepted(busless, frame, replace(_MAPPING, metadata=())) == 1
    assert query(busless, "SELECT user_id FROM events") == [("31234567890",)]


@pytest.mark.slow
def test_a_frame_has_the_name_that_it_is_given(busless: Settings, tmp_path: Path) -> None:
    """By which its loads are found; another name is another load of the same events. A path has a name."""
    mapping = replace(_MAPPING, metadata=())
    frame = pl.DataFrame({"u": ["a", "b"], "t": ["2024-01-01", "2024-01-02"]})
    assert backfill(busless, frame, mapping, name="votes of May") == 1
    assert backfill(busless, frame, mapping, name="votes of May") == 0
    assert backfill(busless, frame, mapping) == 1
    assert [(load["origin"], load["accepted"]) for load in list_loads(busless)] == [("votes of May", 2), ("frame", 0)]
    assert len(loads_of_file(busless, "votes of May")) == 1
    swapped = replace(mapping, user_id="t", time="u", time_unit="s")
    with local_file(frame, "votes of May") as file:
        assert other_loads(busless, open_input(file, swapped, busless)) == loads_of_file(busless, "votes of May")
    with local_file(frame) as file:
        assert other_loads(busless, open_input(file, swapped, busless)) == []
    for data, name, message in (("a.csv", "b", "a.csv has a name"), (frame, "a\x1b[2J", "control characters")):
        with pytest.raises(UsageError, match=message):
            backfill(busless, data if data is frame else _votes(tmp_path / "a.csv", ""), mapping, name=name)


def test_standard_input_is_known_by_its_content(
    busless: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same content again is skipped, and its copy is removed, which no error names."""
    for accepted in (1, 0):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"u,t\na,2024-01-01\n")))
        assert _accepted(busless, "-", replace(_MAPPING, metadata=())) == accepted
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"u,t\n")))
    with local_file("-") as file:
        assert file.path.exists()
    assert not file.path.exists()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"u,t\na,2024-01-01\nb\n")))
    with pytest.raises(UsageError, match=r"^votes: row 2 \(line 3\): has 1"), local_file("-", "votes") as file:
        preview(busless, file, replace(_MAPPING, metadata=()))


def test_a_pipe_is_redirected(busless: Settings, tmp_path: Path) -> None:
    """A file is read several times: a pipe ends at once with what to type, instead of waiting for a writer."""
    os.mkfifo(tmp_path / "a.csv")
    for place in (tmp_path / "a.csv", "/dev/zero"):
        with pytest.raises(UsageError, match=f"{place}: it is a pipe or a device: .* give -"):
            backfill(busless, str(place), _MAPPING)


def test_dagster_has_every_option_of_the_command() -> None:
    """By the same name, in the section `history`; and says the same mapping."""
    options = {name.rstrip("_") for name in signature(column_mapping).parameters}
    assert options <= set(HistorySettings.model_fields)
    section = {
        "user": "shop", "time": "at", "time_format": "%d.%m.%Y", "time_zone": "Europe/Berlin", "action_type": "Rated",
        "identity": ["a", "b"], "number_rows": True, "null": ["NULL"], "format": "csv", "delimiter": "tab",
        "quote": "'", "escape": "\\", "comment": "#", "columns": ["a", "b", "at"], "decimal_comma": True,
        "encoding": "cp1252", "metadata": {"n": "a"},
    }  # fmt: skip
    given: dict[str, Any] = dict.fromkeys(signature(column_mapping).parameters, None) | {
        **section, "identity": "a,b", "columns": "a, b,at", "metadata": ["n=a"], "format_": "csv", "time_unit": "iso"
    }  # fmt: skip
    del given["format"]
    assert history_mapping(HistorySettings.model_validate(section)) == column_mapping(**given)
