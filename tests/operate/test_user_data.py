"""A copy of everything that names a person: complete, private, and of no one else."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.backfill import backfill
from pipelines.cli import main
from pipelines.cli.user import export
from pipelines.errors import KarmalakeError, UsageError
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.user_data import user_data
from pipelines.settings import IngestSettings, Settings
from pipelines.sources.files import ColumnMapping

_MAPPING = ColumnMapping("user", "t", "iso", "UserRated", None, (("rating", "rating"), ("note", "note")), "id")
_COLUMNS = ["id", "user", "t", "rating", "note"]
_DAY = "2026-03-01T12:00:00Z"
_ROWS = [
    ("e1", "ada", _DAY, "5", '=HYPERLINK("https://evil.example")'),
    ("e2", "ada", _DAY, "-2", "rude"),
    ("e3", "bob", _DAY, "3", "ada"),
    ("e4", "bob", _DAY, "3", "rated by ada, after a ride"),
    ("e5", "bob", _DAY, "3", "adam"),
    ("e6", "ada-2", _DAY, "3", "ada-2"),
    ("e7", "ada", "never", "1", None),
    ("e8", "bob", "never", "1", "ada"),
    ("e9", "bob", "never", "1", "adam"),
]
_CONFLICTS = [("e1", "ada", _DAY, "4", "changed"), ("e3", "bob", _DAY, "4", "ada"), ("e5", "bob", _DAY, "4", "adam")]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings of a lake with these events, dead letters and conflicts."""
    ingest = IngestSettings(max_dead_letter_share=1.0)
    settings = Settings(data_dir=tmp_path_factory.mktemp("user") / "data", ingest=ingest)
    for rows in (_ROWS, _CONFLICTS):
        backfill(settings, pl.DataFrame(rows, _COLUMNS, orient="row"), _MAPPING)
    return settings


def ids(found: dict[str, Any], name: str) -> list[str]:
    return sorted(found[name]["event_id"].to_pylist())


@pytest.mark.slow
def test_everything_that_names_the_user_and_nothing_else(lake: Settings) -> None:
    """Own events, those of others by whole words, conflicts and dead letters of both kinds, scores, explanation."""
    found = user_data(lake, "ada")
    assert {name: len(rows) for name, rows in found.items()} == {
        "events": 2, "events_of_others": 2, "conflicts": 2, "dead_letters": 2, "merged_users": 0,
        "score_changes": 0, "scores": 1, "explanation": 2,
    }  # fmt: skip
    assert (ids(found, "events"), ids(found, "events_of_others")) == (["e1", "e2"], ["e3", "e4"])
    assert ids(found, "conflicts") == ["e1", "e3"]
    assert [json.loads(value)["id"] for value in found["dead_letters"]["value"].to_pylist()] == ["e7", "e8"]
    assert found["scores"]["all_time_score"].to_pylist() == [3]
    assert sum(found["explanation"]["earned"].to_pylist()) == 3


def test_a_person_who_is_only_named_by_others(lake: Settings) -> None:
    """They have no scores and no explanation, and still a copy."""
    found = user_data(lake, "adam")
    assert {name: len(rows) for name, rows in found.items() if len(rows)} == {
        "events_of_others": 1, "conflicts": 1, "dead_letters": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_a_user_without_data(lake: Settings) -> None:
    """The sentence names the user; an erased user has one of their own."""
    with pytest.raises(KarmalakeError, match="nothing in the lake names user 'ad': check the spelling"):
        user_data(lake, "ad")
    erase_without_documents(lake, ["ada-2"])
    with pytest.raises(UsageError, match="user 'ada-2' was erased: nothing is left to export"):
        user_data(lake, "ada-2")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "is a file: name a new or empty folder"),
        ("link", "is a link to gone, which does not exist: name a new or empty folder"),
        ("file/below", "(File exists): name another folder, or let this user write there"),
    ],
)
def test_a_folder_that_cannot_be_written(
    lake: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    """The message says what is there; before, a file was "not empty"."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(lake.data_dir))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UsageError) as refused:
        export("ada", tmp_path / place)
    assert message in str(refused.value)


@pytest.mark.slow
def test_the_command(
    lake: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Private files as JSON and CSV with the same rows, and the counts; a folder with files is refused."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(lake.data_dir))
    folder = tmp_path / "copies" / "ada"
    for code in (0, 2):
        monkeypatch.setattr(sys, "argv", ["karmalake", "user", "export", "ada", "--to", str(folder)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code in ({0, None} if code == 0 else {2})
    printed = capsys.readouterr()
    assert f"{folder} is not empty: name a new or empty folder" in printed.err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["user_id"] == "ada"
    for name, count in summary["rows"].items():
        assert [line.split() for line in printed.out.splitlines() if line.split()[:1] == [name]] == [[name, str(count)]]
        rows = [json.loads(line) for line in (folder / f"{name}.json").read_text().splitlines()]
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            cells = list(csv.DictReader(file))
        assert len(rows) == len(cells) == count
    events = [json.loads(line) for line in (folder / "events.json").read_text().splitlines()]
    assert events[0]["metadata"] == {"rating": "5", "note": '=HYPERLINK("https://evil.example")'}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
