"""The commands of docs/files.md, each on a file of the shape that it is for: every row becomes its event."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.settings import Settings
from tests.conftest import REPOSITORY
from tests.draining import query
from tests.sources.workbook import write_workbook

_COMMANDS = re.findall(
    r"^\$ (.*?)(?=^\$|^```)", (REPOSITORY / "docs" / "files.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
_REVIEW = {
    "rating": 4.5,
    "product": {"asin": "B01"},
    "reviewer": {"id": "A1"},
    "timestamp": 1588687728923,
    "images": [],
}
_VOTES = """<?xml version="1.0" encoding="utf-8"?>
<votes>
  <row Id="1" PostId="7" VoteTypeId="2" CreationDate="2014-05-13T00:00:00.000" />
  <row Id="2" PostId="7" VoteTypeId="3" CreationDate="2014-05-14T00:00:00.000" />
</votes>
"""
_AIRBNB = (
    'listing_id,id,date,reviewer_id,reviewer_name,comments\n42,1,2019-03-04,9,Ana,"Lovely, ""really"".\r\nAgain!"\n'
)


def _write_all(folder: Path) -> None:
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n")
    (folder / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
    (folder / "Books.jsonl.gz").write_bytes(gzip.compress(f"{json.dumps(_REVIEW)}\n".encode()))
    (folder / "Votes.xml").write_text(_VOTES)
    (folder / "reviews.csv.gz").write_bytes(gzip.compress(_AIRBNB.encode()))
    (folder / "bewertungen.csv").write_bytes("Seller;Datum;Note\nJürgen;31.12.2024;4,5\n".encode("cp1252"))
    rows: list[list[object]] = [["Order", "Seller", "Rating", "Date"], [1, "Ana", 5, "2024-01-01"]]
    write_workbook(folder / "ratings.xlsx", rows)


def _run(folder: Path, command: str) -> None:
    """Run a printed command in a folder; it must succeed."""
    script = (
        f'karmalake() {{ "{sys.executable}" -m karmalake "$@"; }}\npython() {{ "{sys.executable}" "$@"; }}\n{command}'
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "KARMALAKE_DATA_DIR": str(folder / "data")}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("ratings.csv", [("296", "Rated", "2006-05-17 15:34:04+00", "{rating=5.0, rater_id=1}")]),
        (
            "ratings.dat",
            [
                ("1193", "Rated", "2000-12-31 22:12:40+00", "{rating=5, rater_id=1}"),
                ("661", "Rated", "2000-12-31 22:35:09+00", "{rating=3, rater_id=1}"),
            ],
        ),
        ("Books.jsonl.gz", [("B01", "Reviewed", "2020-05-05 14:08:48.923+00", "{rating=4.5, rater_id=A1}")]),
        ("Votes.xml", [("7", "2", "2014-05-13 00:00:00+00", "{}"), ("7", "3", "2014-05-14 00:00:00+00", "{}")]),
        ("reviews.csv.gz", [("42", "Reviewed", "2019-03-04 00:00:00+00", "{reviewer_id=9}")]),
        ("bewertungen.csv", [("Jürgen", "Rated", "2024-12-31 00:00:00+00", "{rating=4.5}")]),
        ("ratings.xlsx", [("Ana", "Rated", "2024-01-01 00:00:00+00", "{rating=5}")]),
    ],
)
def test_a_documented_command_loads_its_file(tmp_path: Path, name: str, events: list[tuple[str, ...]]) -> None:
    """As printed, in a folder with the file."""
    if name.endswith(".xlsx"):
        pytest.importorskip("fastexcel", reason="karmalake[excel] is not installed")
    _write_all(tmp_path)
    (command,) = [text for text in _COMMANDS if name in text]
    _run(tmp_path, command)
    found = "SELECT user_id, action_type, event_time::VARCHAR, metadata::VARCHAR FROM events ORDER BY ALL"
    assert query(Settings(data_dir=tmp_path / "data"), found) == events


@pytest.mark.slow
def test_two_tables_that_count_from_1_have_separate_events(tmp_path: Path) -> None:
    """The documented command, then the same one for another table with the same numbers, users and actions."""
    _write_all(tmp_path)
    (command,) = [text for text in _COMMANDS if "Votes.xml" in text]
    (tmp_path / "Posts.xml").write_text(_VOTES)
    _run(tmp_path, f"{command}\n{command.replace('Votes', 'Posts')}")
    assert query(Settings(data_dir=tmp_path / "data"), "SELECT count(*) FROM events") == [(4,)]
