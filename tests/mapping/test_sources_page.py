"""The examples of docs/sources.md are sources, and do what the page says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from tests.conftest import REPOSITORY
from tests.mapping.sources import events, mapping, reasons, records

_PAGE = (REPOSITORY / "docs" / "sources.md").read_text(encoding="utf-8")
_FILE = "[sources]"
"""The beginning of an example of `karmalake.toml`; the others are files of sources."""
_EXAMPLES = [text for text in re.findall(r"```toml\n(.*?)```", _PAGE, re.DOTALL) if not text.startswith(_FILE)]
_RIDE = b'{"id": 7, "driver": {"id": "d1"}, "stars": 4.50, "at": "2026-01-31T12:00:00Z", "x": 1}'


@pytest.mark.slow
@pytest.mark.parametrize("text", _EXAMPLES)
def test_every_example_is_a_source(tmp_path: Path, text: str) -> None:
    """Each is accepted, and maps what is no record of it to a dead letter."""
    with mapping(tmp_path, text) as decode:
        assert reasons(decode(records([b"{"]))) == {0: "undecodable"}


@pytest.mark.slow
def test_the_first_examples(tmp_path: Path) -> None:
    """The plain fields and the SELECT make the events that the page describes."""
    with mapping(tmp_path, _EXAMPLES[0]) as decode:
        assert events(decode(records([_RIDE]))) == [("7", "d1", "DriverRated", {"rating": "4.50"})]
    both = _RIDE.replace(b'"x": 1', b'"rider": {"id": "r1"}, "rider_stars": 5')
    with mapping(tmp_path, _EXAMPLES[1]) as decode:
        found = decode(records([_RIDE, both, b"{}"]))
    assert [row[:2] for row in events(found)] == [("7/driver", "d1"), ("7/driver", "d1"), ("7/rider", "r1")]
    assert found.filtered["offset"].to_pylist() == [2]


@pytest.fixture(name="run")
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "rides.toml").write_text(_EXAMPLES[0])

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["sources", *arguments], env={"COLUMNS": "200"})
        return result.exit_code, result.output

    return run


@pytest.mark.slow
def test_check_shows_what_becomes_of_records(tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
    """First events, fates, reasons with an example by its line, and unused fields."""
    (tmp_path / "values").write_bytes(b"\xef\xbb\xbf" + _RIDE + b"\r\n\r\n{}\n\n")
    code, output = run("check", "rides", "--records", "values")
    assert code == 1
    for shown in ("d1", "DriverRated", "4.50", "missing_event_id", "rides-0@3", "unused fields: x"):
        assert shown in output
    (tmp_path / "values").write_bytes(_RIDE + b"\n")
    assert run("check", "rides", "--records", "values")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\x0b", b"\x0c"])
def test_check_accepts_no_record_that_ingest_rejects(
    tmp_path: Path, run: Callable[..., tuple[int, str]], before: bytes
) -> None:
    """A byte order mark is the file's on its first line only, and JSON has four kinds of white space."""
    (tmp_path / "values").write_bytes(_RIDE + b"\n" + before + _RIDE + b"\n")
    with mapping(tmp_path, _EXAMPLES[0]) as decode:
        assert reasons(decode(records([before + _RIDE]))) == {0: "undecodable"}
    code, output = run("check", "rides", "--records", "values")
    assert code == 1
    assert "undecodable" in output
    assert "rides-0@2" in output


def test_list_shows_the_sources(run: Callable[..., tuple[int, str]]) -> None:
    """Name, topic and digest."""
    code, output = run("list")
    assert code == 0
    assert "rides" in output
    assert "json" in output
