"""The commands explain and policy on a small lake: their output equals that of the engine."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import polars as pl
import pyarrow as pa
import pytest

from pipelines.cli import main
from pipelines.contract.schema import EVENT, POSITION
from pipelines.lake.tables import create_lake
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.warehouse import Warehouse
from tests.lake.builders import commit

START = datetime(2026, 3, 1, tzinfo=UTC)
COLUMNS = pa.schema([*EVENT, *POSITION])
RULES = """
name = "votes"
version = "3"
windows_days = [30]
score = { start = 1, floor = 1 }

[caps.votes]
period = "day"
maximum = 25
actions = ["Up"]

[actions.Up]
points = 10

[actions.Down]
points = -5
penalties_expire_after_days = 5

[scopes.stars]
from = "rating"
"""


_WINDOW = "last_30_days"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


def events(*happened: tuple[str, str, float], offset: int = 0) -> pa.Table:
    """Return events of (user, action, days after START); each has the rating 4."""
    rows = [
        {
            "event_id": f"e{offset + n:05}",
            "user_id": user,
            "action_type": action,
            "event_time": START + timedelta(days=days),
            "metadata": [("rating", "4")],
            "topic_id": "topic-id",
            "topic": "events",
            "topic_partition": 0,
            "offset": offset + n,
            "bus_time": START,
        }
        for n, (user, action, days) in enumerate(happened)
    ]
    return pa.Table.from_pylist(rows, COLUMNS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a lake of a few events of ann in March 2026, and 3,000 of max."""
    folder = tmp_path_factory.mktemp("data")
    lake = create_lake(folder / "lake")
    few = [("ann", "Up", i / 100) for i in range(3)] + [("ann", "Down", 1), ("ann", "Waved", 2), ("ann", "Up", 8)]
    many = [("max", "Up", i / 100) for i in range(3000)]
    commit(lake, lake.table("events"), "first", events(*few, *many, ("bob", "DriverRated", 1)))
    return folder


@pytest.fixture
def run(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run karmalake with arguments as the entry point does."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(data))
    monkeypatch.setattr("pipelines.cli.output.quiet_libraries", lambda: None)  # loggers outlive a test

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["karmalake", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        return Answer(int(exit_.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def rules(tmp_path: Path) -> str:
    path = tmp_path / "votes.toml"
    path.write_text(RULES, encoding="utf-8")
    return str(path)


def ledger(answer: Answer) -> list[dict[str, object]]:
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


_TIMES = ("scores --as-of", "scores --known-at", "explain ann --as-of", "explain ann --known-at", "explain ann --from")


@pytest.mark.parametrize("option", [*_TIMES, "policy diff default decayed-karma --as-of"])
def test_a_time_option_reads_now(run: Run, option: str) -> None:
    """`now` is a time for every option that takes one; another word is refused."""
    answer = run(*option.split(), "now")
    assert "is not a time" not in answer.err
    assert answer.code == (2 if "--from" in option else 0), answer.err  # --from now is not before the end, which is now
    assert "'yesterday' is not a time: write it like" in " ".join(run(*option.split(), "yesterday").err.split())


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["votes", "default", "decayed-karma", "stackexchange-2018"])
def test_the_explanation_ends_with_the_score(run: Run, rules: str, policy: str) -> None:
    """For every user and policy, the sum of `earned` and the last running score equal the score of `scores`."""
    chosen = ["--policy", rules if policy == "votes" else policy, "--as-of", "2026-03-12"]
    scores = pl.read_csv(io.StringIO(run("scores", *chosen).out))
    assert set(scores["user_id"]) == {"ann", "bob", "max"}
    for user, score in scores.select("user_id", "all_time_score").iter_rows():
        rows = pl.read_csv(io.StringIO(run("explain", user, *chosen, "--format", "csv").out), infer_schema_length=None)
        assert rows["earned"].sum() == pytest.approx(score, abs=1e-9)
        assert rows["score"].to_list()[-1] == pytest.approx(score, abs=1e-9)


def test_the_table_shows_event_reason_rule_and_version(run: Run, rules: str) -> None:
    """A capped vote, an expired penalty and an event without a rule, with the total below."""
    answer = run("explain", "ann", "--policy", rules, "--as-of", "2026-03-12")
    lines = {line.split()[2]: " ".join(line.split()[3:]) for line in answer.out.splitlines() if " e00" in line}
    assert lines["e00002"] == "Up 10 - +5 26 capped (votes) 3"
    assert lines["e00003"] == "Down -5 - 0 26 expired 3"
    assert lines["e00004"] == "Waved - - 0 26 no rule -"
    assert "ann: 6 contributions add up to a score of 36 as of 2026-03-12 00:00:00Z" in answer.out


def test_one_contribution_adds_up(run: Run, rules: str) -> None:
    answer = run("explain", "ann", "--policy", rules, "--as-of", f"{START + timedelta(seconds=1):%FT%TZ}")
    assert "ann: 1 contribution adds up to a score of 11 as of " in answer.out


def test_json_is_one_document_per_line(run: Run, rules: str) -> None:
    """Every line is a document with the columns of the engine's ledger."""
    rows = ledger(run("explain", "ann", "--policy", rules, "--as-of", "2026-03-12", "--format", "json"))
    assert [row["reason"] for row in rows] == ["start", *["granted"] * 2, "capped", "expired", "no rule", "granted"]
    assert {"event_time", "event_id", "points", "policy_version", "rule", "earned", "score"} <= rows[0].keys()


def test_parquet_is_written_to_a_file(run: Run, rules: str, tmp_path: Path) -> None:
    """The file has the same rows."""
    path = tmp_path / "ann.parquet"
    answer = run("explain", "ann", "--policy", rules, "--format", "parquet", "--output", str(path))
    assert (answer.code, pl.read_parquet(path)["earned"].sum()) == (0, 36)


def test_many_contributions_are_summarized(run: Run, rules: str) -> None:
    """The newest forty rows, one line that sums up the older ones, and the total number."""
    answer = run("explain", "max", "--policy", rules, "--as-of", "2026-06-01")
    shown = [line.split()[2] for line in answer.out.splitlines() if " e0" in line]
    assert shown == [f"e{n:05}" for n in range(2966, 3006)]
    assert answer.out.startswith("... 2,961 older rows add up to ")
    assert "max: 3,000 contributions add up to a score of " in answer.out


@pytest.mark.slow
def test_a_change_shows_gained_and_expired_points(run: Run, rules: str) -> None:
    """Between two dates ann gained a vote, and a penalty was over."""
    answer = run("explain", "ann", "--policy", rules, "--from", "2026-03-02T12:00", "--to", "2026-03-12")
    assert "ann: 21 as of 2026-03-02 12:00:00Z, 36 as of 2026-03-12 00:00:00Z: +15 by 3 changes" in answer.out
    assert "expired, was granted: 1, +5" in answer.out
    assert "new: 2, +10" in answer.out
    rows = ledger(run("explain", "ann", "--policy", rules, "--from", "2026-03-02T12:00", "--format", "json"))
    assert sum(row["change"] for row in rows) == 15


@pytest.mark.slow
def test_a_window_is_explained(run: Run, rules: str) -> None:
    """Its score is what the events of its days earned, without the start; an unknown window is named."""
    window = ["--policy", rules, "--view", "last_30_days"]
    answer = run("explain", "ann", *window, "--as-of", "2026-03-12")
    assert "ann: 6 contributions add up to a score of 35 in last_30_days as of 2026-03-12 00:00:00Z" in answer.out
    answer = run("explain", "ann", *window, "--as-of", "2027-03-12")
    assert "ann: 0 contributions add up to a score of 0 in last_30_days" in answer.out
    answer = run("explain", "ann", *window, "--from", "2026-03-02T12:00", "--to", "2026-04-01")
    assert "ann in last_30_days: 20 as of 2026-03-02 12:00:00Z, 10 as of 2026-04-01" in answer.out
    answer = run("explain", "ann", "--policy", rules, "--view", "last_31_days")
    assert (answer.code, answer.out) == (2, "")
    assert "has no view 'last_31_days': there are all_time, last_30_days" in answer.err


def test_a_value_that_no_user_has_is_no_empty_table(run: Run, rules: str) -> None:
    """The closest value of the scope is named, as the closest user is elsewhere."""
    answer = run("scores", "--policy", rules, "--scope", "stars=44")
    assert (answer.code, answer.out) == (1, "")
    assert "no user has stars=44: check the spelling: did you mean '4'?" in " ".join(answer.err.split())


def test_a_dry_run_refuses_what_the_rollback_would(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that pins a policy rolls nothing back, whatever is in force."""
    monkeypatch.setenv("KARMALAKE_LAKE_URI", str(tmp_path / "lake"))
    monkeypatch.setenv("KARMALAKE_REPUTATION_PINNED", "true")
    monkeypatch.setenv("KARMALAKE_REDIS_PREFIX", "own")
    create_lake(tmp_path / "lake")
    for options in ([], ["--dry-run"]):
        answer = run("policy", "rollback", "--why", "x", *options)
        assert (answer.code, answer.out) == (2, "")
        assert "this configuration pins the policy default" in " ".join(answer.err.split())


def test_a_scope_is_explained(run: Run, rules: str) -> None:
    """Its score is what the events of its value earned, as in `scores --scope`."""
    chosen = ["--policy", rules, "--as-of", "2026-03-12"]
    answer = run("explain", "ann", *chosen, "--scope", "stars=4")
    assert "ann: 5 contributions add up to a score of 35 with stars=4 as of" in answer.out
    scores = pl.read_csv(io.StringIO(run("scores", *chosen, "--scope", "stars").out))
    assert scores.filter(user_id="ann").select("value", "all_time_score").rows() == [(4, 35)]
    answer = run("explain", "ann", *chosen, "--scope", "star=4")
    assert (answer.code, answer.out) == (2, "")
    assert "the policy votes has no scope 'star': did you mean 'stars'?" in answer.err
    told = "the policy votes has no scope '4': there is only stars; a value is written as stars=4"
    for command in (["explain", "ann"], ["scores"]):
        answer = run(*command, *chosen, "--scope", "4")
        assert (answer.code, answer.out) == (2, "")
        assert told in " ".join(answer.err.split())


def test_levels_are_of_the_overall_score(run: Run, tmp_path: Path) -> None:
    """Within a scope, as in a view, there is none."""
    path = tmp_path / "levels.toml"
    path.write_text(f"{RULES}\n[levels.bronze]\nat = 20\n", encoding="utf-8")
    chosen = ["explain", "ann", "--policy", str(path), "--as-of", "2026-03-12"]
    assert "level: bronze" in run(*chosen).out
    answer = run(*chosen, "--scope", "stars=4")
    assert (answer.code, "level:" in answer.out) == (0, False), answer.err


@pytest.mark.parametrize("options", [("--as-of", "2026-03-12"), ("--from", "2026-03-01", "--to", "2026-03-12")])
def test_a_value_that_no_event_of_the_user_has(run: Run, rules: str, options: tuple[str, ...]) -> None:
    """The closest value of the user is named, or which there are; one without an event in the view is no mistake."""
    chosen = ["explain", "ann", "--policy", rules, *options]
    answer = run(*chosen, "--scope", "stars=44")
    assert (answer.code, answer.out) == (1, "")
    assert "no event of the user has stars=44: did you mean '4'?" in " ".join(answer.err.split())
    answer = run(*chosen, "--scope", "stars=\x1b[31m", "--format", "csv")
    assert (answer.code, answer.out) == (1, "")
    assert r"no event of the user has stars=\x1b[31m: there is only 4" in " ".join(answer.err.split())
    answer = run("explain", "ann", "--policy", rules, "--as-of", "2027-03-12", "--scope", "stars=4", "--view", _WINDOW)
    assert "0 contributions add up to a score of 0 in last_30_days with stars=4" in answer.out
    assert (answer.code, answer.err) == (0, "")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a folder with a lake, and a moment after which a late event arrived and another policy came into force."""
    folder = tmp_path_factory.mktemp("changed")
    lake = create_lake(folder / "lake")
    commit(lake, lake.table("events"), "first", events(("ann", "Up", 1), ("ann", "Up", 2)))
    moment = datetime.now(UTC).isoformat()
    commit(lake, lake.table("events"), "second", events(("ann", "Down", 1.5), offset=2))
    activate(lake, parse_policy(RULES.replace("points = 10", "points = 4").replace('"3"', '"4"')))
    return folder, moment


@pytest.fixture
def shown(run: Run, rules: str, changed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Explain what was shown of ann since the moment, by the rules of `votes` at first."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(changed[0]))
    monkeypatch.setenv("KARMALAKE_REPUTATION_POLICY", rules)

    def explain_shown(user: str = "ann", *options: str) -> Answer:
        return run("explain", user, "--shown-from", changed[1], *options)

    return explain_shown


@pytest.mark.slow
def test_the_policy_of_the_settings_is_read_only_if_it_was_in_force(
    shown: Callable[..., Answer], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for moments after an activation: its file may be gone by then."""
    after = datetime.now(UTC).isoformat()
    monkeypatch.setenv("KARMALAKE_REPUTATION_POLICY", "gone.toml")
    assert shown().code == 80
    assert "ann, all_time: 0 by 0 changes" in run("explain", "ann", "--shown-from", after).out


def test_an_activation_by_an_account_without_a_login_name(
    run: Run, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under any UID: the policy is in force, and the record names no operator."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path / "new"))
    monkeypatch.setattr("getpass.getuser", Mock(side_effect=OSError("no entry in the password database")))
    assert run("policy", "activate", rules).code == 0
    assert re.search(r"in force: votes, version 3, since \S+ \S+$", run("policy", "list").out, re.MULTILINE)


def test_an_activation_without_a_document_store(
    run: Run, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is complete: the scores are in the warehouse, and nothing is said to have failed."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path / "new"))
    answer = run("policy", "activate", rules)
    assert answer.code == 0
    assert "in force from now on: votes, version 3" in answer.out
    assert "nothing is published, since no document store is configured" in answer.out


def test_a_pinned_policy_is_not_activated(
    run: Run, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration serves it beside the one in force, which others activate."""
    for name, value in {
        "REPUTATION_PINNED": "true",
        "REPUTATION_POLICY": rules,
        "LAKE_URI": f"{tmp_path}/lake",
        "REDIS_PREFIX": "votes",
    }.items():
        monkeypatch.setenv(f"KARMALAKE_{name}", value)
    answer = run("policy", "activate", "default")
    assert (answer.code, "this configuration pins the policy" in answer.err) == (2, True)
    listed = run("policy", "list").out
    assert "pinned by this configuration, whatever is in force: votes, version 3" in listed


@pytest.mark.slow
def test_a_canary(run: Run, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed beside the policy in force, listed, and ended by a rollback or an activation, on the record."""
    folder = tmp_path / "new"
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(folder))
    lake = create_lake(folder / "lake")
    commit(lake, lake.table("events"), "first", events(("ann", "Up", 1)))
    in_force = run("policy", "activate", "default", "--canary")
    assert (in_force.code, "is in force already: a canary is another policy" in in_force.err) == (2, True)
    assert run("policy", "rollback", "--why", "none", "--canary").code == 2
    begun = run("policy", "activate", rules, "--canary", "--operator", "olga", "--why", "to see it")
    assert (begun.code, "canary: votes, version 3" in begun.out) == (0, True)
    with Warehouse(folder / "canary" / "warehouse.duckdb") as warehouse:
        assert warehouse.scores()["all_time_score"].to_list() == [11]
    listed = run("policy", "list").out
    assert re.search(r"in force: default, version \S+$", listed, re.MULTILINE)
    assert re.search(r"canary: votes, version 3, since \S+ \S+ by olga: to see it$", listed, re.MULTILINE)
    assert re.search(r"canary/warehouse.duckdb reflects lake version \d+ as of ", listed)
    (folder / "canary" / "warehouse.duckdb").write_text("of another release")
    assert "\n  not computed on this machine yet: " in run("policy", "list").out
    assert "already the canary: votes" in run("policy", "activate", rules, "--canary").out
    assert "reflects lake version" in run("policy", "list").out
    assert "would end: votes, version 3" in run("policy", "rollback", "--why", "x", "--canary", "--dry-run").out
    ended = run("policy", "rollback", "--why", "x", "--canary")
    assert (ended.code, "ended, its documents and warehouse are removed: votes, version 3" in ended.out) == (0, True)
    assert run("policy", "activate", rules, "--canary").code == 0
    assert run("policy", "activate", rules).code == 0
    assert "canary" not in run("policy", "list").out
    assert not (folder / "canary" / "warehouse.duckdb").exists()
    assert run("policy", "activate", "default", "--canary").code == 0
    again = run("policy", "activate", rules)
    assert (again.code, "is already in force\nthe canary remains: default, version" in again.out) == (0, True)


@pytest.mark.parametrize("options", [[], ["--canary"]])
def test_a_policy_that_cannot_be_published_is_not_recorded(
    run: Run, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """One that lacks what a leaderboard ranks: each publication would fail until another one is in force."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("KARMALAKE_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("KARMALAKE_REDIS_LEADERBOARDS", "all_time.city=berlin")
    create_lake(tmp_path / "new" / "lake")
    answer = run("policy", "activate", rules, *options)
    assert (answer.code, answer.out) == (78, "")
    assert "names 'all_time.city=berlin', but the policy has no such scope: it has stars" in " ".join(
        answer.err.split()
    )
    listed = run("policy", "list").out
    assert "votes, version" not in listed
    assert "in force: default" in listed


def test_a_canary_that_cannot_be_served_is_not_recorded(
    run: Run, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document store is asked first: else each publication and erasure would fail until it allows the prefix."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("KARMALAKE_REDIS_URL", "redis://127.0.0.1:1")
    create_lake(tmp_path / "new" / "lake")
    assert run("policy", "activate", rules, "--canary").code != 0
    assert "canary" not in run("policy", "list").out


@pytest.mark.slow
def test_a_rollback(run: Run, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns to the policy before, on the record; a dry run changes nothing."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path / "new"))
    assert run("policy", "rollback", "--why", "x").code == 2
    assert run("policy", "activate", rules, "--operator", "olga").code == 0
    Path(rules).unlink()
    assert "would be in force: default, version" in run("policy", "rollback", "--why", "x", "--dry-run").out
    assert "votes, version 3, since" in run("policy", "list").out
    assert run("policy", "rollback", "--why", "  ").code == 2
    assert run("policy", "rollback", "--why", "too strict", "--operator", "olga").code == 0
    assert re.search(r"in force: default, version \S+, since \S+ \S+ by olga: too strict", run("policy", "list").out)
    assert "in force from now on: votes, version 3" in run("policy", "rollback", "--why", "again").out


@pytest.mark.slow
def test_what_was_shown_is_explained(shown: Callable[..., Answer]) -> None:
    """Both scores, and every cause with its points: the late penalty is expired by now, the policy took 12."""
    out = shown().out
    table = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines()}
    assert table["score"] == ["21", "9"]
    assert table["policy"] == ["votes@3", "votes@4"]
    assert "ann, all_time: -12 by 3 changes\n  policy: 2, -12\n  late event: 1, 0\n" in out
    assert re.search(r"e00002 +Down +\S+ \S+ +0 +0 +0 +late event +-$", out, re.MULTILINE)
    assert re.search(r"e00000 +Up +\S+ \S+ +10 +4 +-6 +policy +votes@4$", out, re.MULTILINE)
    rows = ledger(shown("ann", "--format", "json"))
    assert sum(float(str(row["change"])) for row in rows) == -12
    assert {row["cause"] for row in rows} == {"late event", "policy"}


@pytest.mark.parametrize(
    ("user", "options", "code", "message"),
    [
        ("ann", ["--shown-to", "2026-01-01"], 2, "is not before 2026-01-01 00:00:00Z: swap them"),
        ("ann", ["--shown-to", "2999-01-01"], 2, "is in the future: nothing has been shown then"),
        ("ann", ["--view", "last_8_days"], 2, "has no view 'last_8_days': there are all_time, last_30_days"),
        ("ann", ["--policy", "default"], 2, "--shown-from uses the policies that were in force: leave out --policy"),
        ("ann", ["--known-at", "2026-01-01"], 2, "--shown-from and --shown-to cannot be combined with --as-of and"),
        ("ann", ["--from", "2026-01-01"], 2, "cannot be combined with --from and --to"),
        ("nobody", [], 1, "nothing was shown of user 'nobody'"),
    ],
)
def test_mistakes_about_what_was_shown(
    shown: Callable[..., Answer], user: str, options: list[str], code: int, message: str
) -> None:
    """One sentence that says what to do."""
    answer = shown(user, *options)
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.err


def test_nothing_was_shown_before_the_first_commit(run: Run) -> None:
    """The message names the first commit."""
    answer = run("explain", "ann", "--shown-from", "2020-01-01")
    assert answer.code == 2
    assert "nothing was shown at 2020-01-01 00:00:00Z: the first commit is of 20" in answer.err


@pytest.mark.parametrize("span", [[], ["--from", "2026-03-01"]])
def test_an_unknown_user_is_an_error(run: Run, span: list[str]) -> None:
    """Exit code 1, and a message that names the user."""
    answer = run("explain", "nobody", *span)
    assert (answer.code, answer.out) == (1, "")
    assert "no event of user 'nobody' before 20" in answer.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "2026-03-01"], "--to needs --from"),
        (["--shown-to", "2026-03-01"], "--shown-to needs --shown-from"),
        (["--from", "2026-03-01", "--known-at", "2026-03-01"], "cannot be combined with"),
        (["--from", "2026-03-02", "--to", "2026-03-01"], "is not before --to"),
        (["--as-of", "yesterday"], "is not a time"),
    ],
)
def test_contradicting_options_are_refused(run: Run, options: list[str], message: str) -> None:
    """Exit code 2, and advice."""
    answer = run("explain", "ann", *options)
    assert answer.code == 2
    assert message in answer.err


@pytest.mark.slow
def test_known_at_selects_by_commit_time(run: Run, rules: str) -> None:
    """Before the first commit no user has a score, whatever the event times."""
    early, late = ["--known-at", "2026-03-20"], ["--known-at", "2999-01-01"]
    as_of = ["--policy", rules, "--as-of", "2026-03-12"]
    assert len(run("scores", *as_of, *early).out.splitlines()) == 1
    assert run("scores", *as_of, *late).out == run("scores", *as_of).out
    answer = run("explain", "ann", *as_of, *early)
    assert answer.code == 1
    assert "committed before 2026-03-20 00:00:00Z" in answer.err
    assert run("explain", "ann", *as_of, *late).out == run("explain", "ann", *as_of).out


def test_shipped_policies_are_listed_and_described(run: Run) -> None:
    """Each with its version and description, and the one in force."""
    answer = run("policy", "list")
    for name in ("default", "ride-hailing", "stackexchange-2018"):
        assert re.search(rf"^{name} +\S+ +\w.{{20}}", answer.out, re.MULTILINE), name
    assert "in force: default" in answer.out


def test_a_valid_policy_is_summarized(run: Run, rules: str) -> None:
    """Name, version, windows, actions, bounds and caps; `test_policy_summary.py` checks that nothing is left out."""
    answer = run("policy", "check", rules)
    text = " ".join(answer.out.split())
    assert answer.code == 0
    said = ("name votes", "version 3", "windows_days 30", "actions.Down", "start 1, floor 1", "period day, maximum 25")
    for phrase in said:
        assert phrase in text


VERSIONS = """name = "two"
[[versions]]
version = "1"
effective_from = 2026-01-01T00:00:00Z
actions.Up.points = 1
[[versions]]
version = "2"
effective_from = 2026-01-01T00:00:00Z
actions.Up.points = 2
"""


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (RULES.replace("points = 10", "point = 10"), 13, r"actions\.Up\.point: .*did you mean 'points'"),
        (RULES.replace("[30]", "[-30]"), 4, r"windows_days.*has to be at least 1, not -30"),
        (VERSIONS, 8, r"must be after that of version 1"),
        (RULES.replace('["Up"]', '["Upp"]'), 10, r"Upp is not an action of this policy \(Up, Down\)"),
        (RULES.replace("maximum = 25\n", ""), 7, r"caps\.votes\.maximum: is missing: add it"),
        ("name = \n", 1, r"is not TOML: .*line 1"),
    ],
    ids=["unknown key", "negative window", "two versions of one date", "unknown action", "cap without maximum", "TOML"],
)
def test_a_policy_error_names_file_and_line(run: Run, tmp_path: Path, text: str, line: int, message: str) -> None:
    """The message starts with file and line, and ends with a fix."""
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    answer = run("policy", "check", str(path))
    assert (answer.code, answer.out) == (80, "")
    assert str(path) in answer.err
    assert f"{path}:{line}: " in answer.err or f"line {line}" in answer.err
    assert re.search(message, answer.err)


def test_a_missing_policy_is_an_error(run: Run) -> None:
    """Exit code 80, and the names of the shipped policies."""
    answer = run("policy", "check", "defualt")
    assert answer.code == 80
    assert "there is no policy 'defualt'" in answer.err
    assert "stackexchange-2018" in answer.err


def test_a_policy_compared_with_itself_changes_nothing(run: Run, rules: str) -> None:
    """No score and no rank changes."""
    answer = run("policy", "diff", rules, rules, "--as-of", "2026-03-12")
    assert re.findall(r"^(gain|lose|unchanged|rank up|rank down) +(\d+)", answer.out, re.MULTILINE) == [
        *(("gain", "0"), ("lose", "0"), ("unchanged", "3"), ("rank up", "0"), ("rank down", "0"))
    ]
    assert "no change: the two policies" in answer.out


@pytest.mark.slow
def test_a_diff_shows_gains_losses_and_ranks(run: Run, rules: str, tmp_path: Path) -> None:
    """Without the cap max gains, with penalties for rides bob loses; CSV has one row per user."""
    other = tmp_path / "other.toml"
    changed_rules = RULES.replace("maximum = 25", "maximum = 90").replace(
        "start = 1, floor = 1", "start = 0, floor = -5"
    )
    other.write_text(changed_rules + "\n[actions.DriverRated]\npoints = -3\n", encoding="utf-8")
    answer = run("policy", "diff", rules, str(other), "--as-of", "2026-03-12")
    assert re.findall(r"^(gain|lose|unchanged) +(\d+)", answer.out, re.MULTILINE) == [
        *(("gain", "2"), ("lose", "1"), ("unchanged", "0"))
    ]
    gained, lost = answer.out.split("most gained (2 of 2)")[1].split("most lost (1 of 1)")
    assert [line.split()[0] for line in gained.splitlines()[2:4]] == ["max", "ann"]
    assert lost.splitlines()[2].split() == ["bob", "1", "-3", "-4", "3", "3"]
    assert re.search(r"^ +lowest +10 % +median", answer.out, re.MULTILINE)
    csv = run("policy", "diff", rules, str(other), "--as-of", "2026-03-12", "--format", "csv").out
    assert pl.read_csv(io.StringIO(csv))["user_id"].to_list() == ["max", "ann", "bob"]


@pytest.mark.parametrize("command", [["scores", "--policy", "{rules}", "--as-of", "2026-03-12"], ["refresh"]])
def test_events_that_earn_nothing_are_counted(
    run: Run, rules: str, data: Path, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their action and why, beside the scores."""
    shutil.copytree(data / "lake", tmp_path / "lake")
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("KARMALAKE_REPUTATION_POLICY", rules)
    answer = run(*(word.format(rules=rules) for word in command))
    assert answer.code == 0, answer.err
    assert "events that earn nothing: 1 of Waved: no rule in the policy votes" in " ".join(answer.err.split())


@pytest.mark.slow
def test_gates_of_a_diff(run: Run, rules: str, tmp_path: Path) -> None:
    """One that does not hold makes the command fail with its value, in every format; a mistake reads no lake."""
    other = tmp_path / "other.toml"
    other.write_text(RULES.replace("points = -5", "points = -6"), encoding="utf-8")
    compared = ["policy", "diff", rules, str(other), "--as-of", "2026-03-03"]
    answer = run(*compared, "--gate", "largest_loss <= 1", "--gate", "moved < 10%")
    assert answer.code == 1
    assert re.search(r"^ok +largest_loss <= 1 \(1\)\nFAILED +moved < 10% \(33.33 %\)", answer.out, re.MULTILINE)
    assert "1 of 2 gates failed: moved < 10% (it is 33.33 %)" in " ".join(answer.err.split())
    rows = run(*compared, "--gate", "moved < 1", "--format", "json")
    assert (rows.code, len(rows.out.splitlines())) == (1, 3)
    assert run(*compared, "--gate", "moved < 2").code == 0
    assert run(*compared, "--gate", "mooved < 2").code == 2
