"""The command trend on a small warehouse: the rows of the Python API, and a message for every usage error."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.trends import trends
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Derive a warehouse of two users, three events a day apart."""
    folder = tmp_path_factory.mktemp("data")
    events = [Event(f"e{n}", ("ann", "bob")[n % 2], "TransactionCompleted", NOW - (4 - n) * DAY) for n in range(3)]
    derive(snapshot_of(folder / "lake", events), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, data: Path, *arguments: str) -> int:
    """Run karmalake through its entry point; return the exit code."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(data))
    monkeypatch.setattr("pipelines.cli.output.quiet_libraries", lambda: None)  # loggers outlive a test
    monkeypatch.setattr(sys, "argv", ["karmalake", "trend", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_trend_is_limited_to_the_days(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """CSV of the activity from the second of three days on."""
    second = (AS_OF - timedelta(days=3)).date()
    chosen = ["--since", f"{second}", "--until", f"{second + timedelta(days=1)}", "--set", "action_type=ReviewPosted"]
    assert run(monkeypatch, data, "activity", *chosen[:4], "--format", "csv") == 0
    assert capsysbinary.readouterr().out.decode().splitlines() == [
        "first_day,action_type,active_users,events,counted",
        f"{second},,1,1,1",
        f"{second},TransactionCompleted,1,1,1",
    ]
    assert run(monkeypatch, data, "activity", *chosen, "--format", "csv") == 0
    assert len(capsysbinary.readouterr().out.splitlines()) == 1


def test_trend_without_a_name_lists_all(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The list contains every trend."""
    assert run(monkeypatch, data, "--format", "csv") == 0
    listed = [line.split(b",")[0].decode() for line in capsysbinary.readouterr().out.splitlines()[1:]]
    assert listed == list(trends())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["wether"], "there is no trend 'wether': there are activity, "),
        (["movers", "--set", "top"], "--set 'top' has no value"),
        (["movers", "--set", "high=1"], "movers has no parameter high"),
        (["movers", "--since", "monday"], "'monday' is not a time"),
    ],
)
def test_a_usage_error_is_one_message(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, and a message with a fix."""
    assert run(monkeypatch, data, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_without_a_warehouse_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the file, and how a copy is read."""
    assert run(monkeypatch, tmp_path, "rating") == 2
    assert "there is no warehouse at" in capsys.readouterr().err
