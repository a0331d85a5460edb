"""The command line end to end: the whole pipeline, and a message for every usage error."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.scores import scores
from pipelines.settings import Settings
from tests import commands
from tests.commands import KARMALAKE
from tests.reputation.history import events_table
from tests.reputation.test_shipped_policies import exchange_events

_RATINGS = """who,whom,stars,at
rider-1,driver-1,5,2026-01-01T10:00:00Z
rider-2,driver-1,1,2026-01-02T10:00:00Z
rider-1,driver-2,4,2026-01-03T10:00:00.000001Z
"""
_COLUMNS = ["--user-id", "whom", "--time", "at", "--metadata", "rating=stars", "--metadata", "rater_id=who"]
_BITCOIN = ["--user-id", "to", "--time", "time", "--time-unit", "s", "--action-type", "UserRated"]
_BITCOIN += ["--metadata", "rating=feature", "--metadata", "rater_id=from"]
_HEAVY = {"polars", "duckdb", "numba", "pyarrow", "deltalake", "dagster", "kafka", "redis"}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def karmalake(settings: Settings, tmp_path: Path) -> Run:
    """Return a function that runs a command in an empty folder, against the embedded servers."""
    assert settings.redis.url is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")} | {
        "KARMALAKE_DATA_DIR": str(settings.data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
        "KARMALAKE_REDIS_URL": settings.redis.url.get_secret_value(),
        "KARMALAKE_REDIS_PREFIX": settings.redis.prefix,
        "COLUMNS": "100",
    }

    def run(*arguments: str, code: int = 0, **changed: str) -> subprocess.CompletedProcess[str]:
        done = commands.run([*KARMALAKE, *arguments], env=environment | changed, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def ratings(tmp_path: Path) -> str:
    (tmp_path / "ratings.csv").write_text(_RATINGS, encoding="utf-8")
    return "ratings.csv"


@pytest.mark.slow
def test_the_counts_of_a_drain_add_up(karmalake: Run, ratings: str) -> None:
    """Events of erased users have a count of their own, printed where there are any (`nothing-lost`)."""
    emit = ["emit", ratings, *_COLUMNS, "--action-type", "DriverRated"]
    karmalake(*emit)
    assert "erased" not in karmalake("drain").stdout
    karmalake("erase", "driver-1", "--yes")
    karmalake(*emit)
    printed = dict(line.rsplit(maxsplit=1) for line in karmalake("drain").stdout.splitlines())
    assert (printed["read"], printed["duplicates"], printed["erased"]) == ("3", "1", "2")


@pytest.mark.slow
def test_the_pipeline_end_to_end(karmalake: Run, ratings: str, settings: Settings, tmp_path: Path) -> None:
    """From a file to Redis: each command reports its outcome, and a file sent twice counts once (`once`)."""
    emit = ["emit", ratings, *_COLUMNS, "--action-type", "DriverRated"]
    assert "3 events sent" in karmalake(*emit).stdout
    assert "accepted      3" in karmalake("drain").stdout
    karmalake(*emit)
    assert "duplicates    3" in karmalake("drain").stdout
    assert "users scored  2" in karmalake("rebuild").stdout
    ranked = {"KARMALAKE_REDIS_LEADERBOARDS": "all_time"}
    assert "written    2" in karmalake("publish", **ranked).stdout
    assert re.search(r"1 +driver-2 +5.00\n +2 +driver-1 +0.00", karmalake("leaderboard").stdout)
    assert karmalake("leaderboard", "--user", "driver-1").stdout == "2\n"
    assert "not on the leaderboard" in karmalake("leaderboard", "--user", "nobody", code=1).stderr
    document = json.loads(karmalake("show", "driver-1").stdout)
    assert document["reputation_all_time"]["rating_average"] == 3
    rows = list(csv.DictReader(io.StringIO(karmalake("scores").stdout)))
    assert [row["user_id"] for row in rows] == ["driver-1", "driver-2"]
    karmalake("scores", "--format", "parquet", "--output", "scores.parquet")
    assert pl.read_parquet(tmp_path / "scores.parquet")["user_id"].to_list() == ["driver-1", "driver-2"]
    assert [json.loads(line)["user_id"] for line in karmalake("scores", "--format", "json").stdout.splitlines()] == [
        "driver-1",
        "driver-2",
    ]
    assert "3" in karmalake("sql", "SELECT count(*) FROM events").stdout
    assert "0 records and 0.0 s behind" in karmalake("lag").stdout
    assert "FAILED" not in karmalake("verify").stdout
    assert re.findall(r"^(?!ok).+", karmalake("doctor").stdout, re.MULTILINE) == []
    assert settings.kafka.topic in karmalake("topics", "describe").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["drian"], 2, "No such command"),
        (["merge", "ada", "bo"], 2, "Did you mean 'user merge'"),
        (["show"], 2, "Missing argument"),
        (["scores"], 2, "there is no lake"),
        (["scores", "--as-of", "yesterday"], 2, "is not a time"),
        (["scores", "--policy", "nonsense"], 80, "nonsense"),
        (["sql", "SELECT 1"], 2, "there is no warehouse"),
        (["rebuild"], 2, "there is no lake"),
        (["verify"], 2, "there is no lake"),
        (["publish"], 2, "there is no warehouse"),
        (["show", "no'body\n"], 1, "no document"),
        (["leaderboard"], 2, "no leaderboard is published for 'all_time'"),
        (["drain"], 2, "does not exist"),
        (["lag"], 2, "does not exist"),
        (["emit", "absent.csv", *_COLUMNS, "--action-type", "X"], 2, "absent.csv"),
        (["emit", "ratings.csv", *_COLUMNS], 2, "action_type"),
        (["emit", "ratings.csv", "--user-id", "x", "--time", "at", "--action-type", "X"], 2, "whom"),
        (["emit", "ratings.csv", *_COLUMNS, "--action-type", "X", "--metadata", "y"], 2, "NAME=COL"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("ratings")
def test_a_usage_error_has_a_message(karmalake: Run, arguments: list[str], code: int, sentence: str) -> None:
    """No traceback: exit code 2 for a usage error, 80 for a policy error, 1 for something not found."""
    done = karmalake(*arguments, code=code)
    assert sentence in done.stderr + done.stdout


def test_unreachable_servers_are_named(karmalake: Run) -> None:
    """An unreachable broker or cache is reported within seconds, by address and without its password."""
    assert "127.0.0.1:1" in karmalake("drain", code=75, KARMALAKE_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1").stderr
    done = karmalake("show", "x", code=75, KARMALAKE_REDIS_URL="redis://:hush-hush@127.0.0.1:1/0")
    assert "127.0.0.1:1" in done.stderr
    assert "hush-hush" not in done.stderr


def test_help_imports_no_slow_library() -> None:
    """`karmalake --help` imports no data library, which would take a second."""
    program = f"""
import sys
sys.argv = ["karmalake", "--help"]
from pipelines.cli import main
from tests.services.waiting import PATIENCE_SECONDS
try:
    main()
except SystemExit as done:
    assert done.code in (0, None)
assert not {_HEAVY} & set(sys.modules), {_HEAVY} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout


@pytest.mark.slow
def test_bitcoin_otc(karmalake: Run, bitcoin_otc: Path) -> None:
    """Sent three times and drained: all 9,913 expected rows, and 71,184 duplicates."""
    ratings = str(bitcoin_otc / "ratings.csv")
    for _ in range(3):
        karmalake("emit", ratings, *_BITCOIN)
    karmalake("drain")
    compared = 0
    for year in ("2012", "2013", "2014"):
        as_of = f"{year}-01-01T00:00:00Z"
        answer = karmalake("scores", "--as-of", as_of).stdout
        assert answer.startswith("user_id,"), answer[:500]
        found = {row["user_id"]: row for row in csv.DictReader(io.StringIO(answer))}
        with (bitcoin_otc / "expected_scores.csv").open(encoding="utf-8") as file:
            expected = [row for row in csv.DictReader(file) if row["as_of"] == as_of]
        assert set(found) == {row["user_id"] for row in expected}
        for row in expected:
            scores = found[row["user_id"]]
            assert Decimal(scores["all_time_score"]) == Decimal(row["sum_all_time"])
            assert scores["all_time_events"] == scores["all_time_rating_count"] == row["n_all_time"]
            assert Decimal(scores["last_30_days_score"]) == Decimal(row["sum_last_30_days"])
            assert scores["last_30_days_events"] == row["n_last_30_days"]
            compared += 1
    assert compared == 9_913
    assert "duplicates     71,184" in karmalake("verify").stdout


@pytest.mark.slow
def test_the_demo_twice(karmalake: Run) -> None:
    """The results equal the simulation; a second demo adds other events and counts none twice.

    It shows the level of its driver and her score in each city, by a policy that is activated once.
    """
    for _ in range(2):
        done = karmalake("demo", "--events", "3000")
        assert "FAILED" not in done.stdout
        assert all(shown in done.stdout for shown in ('"by_city": {', '"name": "silver"', "levels-by-city"))
    assert karmalake("sql", "SELECT name FROM policies").stdout.count("levels-by-city") == 1
    accepted = karmalake("sql", "SELECT count(*) AS n, count(DISTINCT event_id) AS ids FROM events").stdout
    assert accepted.count("6000") == 2


@pytest.mark.slow
def test_stack_exchange(karmalake: Run, stack_exchange: Path, tmp_path: Path) -> None:
    """Sent shuffled, in parts, and some twice: every user's score equals that from the file itself."""
    lines = stack_exchange.read_text(encoding="utf-8").splitlines()
    header, rows = lines[0], sorted(lines[1:], key=lambda line: line[::-1])
    columns = ["--event-id", "event_id", "--user-id", "user_id", "--time", "timestamp"]
    columns += ["--action-type-column", "action_type", "--metadata", "post_id=post_id", "--metadata", "amount=amount"]
    for number, part in enumerate((rows[:5_000], rows[4_000:], rows[:100])):
        (tmp_path / f"{number}.csv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
        karmalake("emit", f"{number}.csv", *columns)
        karmalake("drain")
    as_of = ["--as-of", "2018-09-03T00:00:00Z", "--policy", "stackexchange-2018"]
    found = {
        row["user_id"]: int(row["all_time_score"])
        for row in csv.DictReader(io.StringIO(karmalake("scores", *as_of).stdout))
    }
    with duckdb.connect() as connection:
        connection.register("events", events_table(exchange_events()))
        expected = scores(connection, load_policy("stackexchange-2018"), datetime(2018, 9, 3, tzinfo=UTC))
    assert len(found) == 331
    assert found == dict(expected.select("user_id", "all_time_score").iter_rows())
    assert f"duplicates     {1_000 + 100:,}" in karmalake("verify").stdout


@pytest.mark.slow
def test_a_publication_counts_the_changes_of_the_feed(karmalake: Run, ratings: str) -> None:
    """Only with the feed on, and none where nothing changed."""
    karmalake("emit", ratings, *_COLUMNS, "--action-type", "DriverRated")
    karmalake("drain")
    karmalake("rebuild")
    assert "of the feed" not in karmalake("publish").stdout
    for changes in (2, 0):
        published = karmalake("publish", "--full", KARMALAKE_FEED_ENABLED="true").stdout
        assert re.search(rf"^changes of the feed +{changes}$", published, re.MULTILINE), published


@pytest.mark.slow
def test_activating_a_policy(karmalake: Run, ratings: str, tmp_path: Path) -> None:
    """It is recorded, applied and published in one step; an invalid file leaves the current one in force."""
    rules = 'name = "mine"\nversion = "{}"\n[actions.DriverRated]\npoints = {}\n'
    (tmp_path / "mine.toml").write_text(rules.format(1, 7), encoding="utf-8")
    (tmp_path / "same-version.toml").write_text(rules.format(1, 8), encoding="utf-8")
    (tmp_path / "mistaken.toml").write_text(rules.format(2, 8).replace("points", "pionts"), encoding="utf-8")
    karmalake("emit", ratings, *_COLUMNS, "--action-type", "DriverRated")
    karmalake("drain")
    assert "in force from now on: mine, version 1" in karmalake("policy", "activate", "mine.toml").stdout
    assert "already in force" in karmalake("policy", "activate", "mine.toml").stdout
    assert "mistaken.toml:4" in karmalake("policy", "activate", "mistaken.toml", code=80).stderr
    assert "a version of their own" in karmalake("policy", "activate", "same-version.toml", code=80).stderr
    assert "in force: mine, version 1" in karmalake("policy", "list").stdout
    document = json.loads(karmalake("show", "driver-1").stdout)
    assert document["policy"] == {"name": "mine", "version": "1"}
    assert document["reputation_all_time"]["score"] == 14
