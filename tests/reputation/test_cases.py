"""Cases of a policy: what is expected and what is not, and messages about invalid files."""

import re
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import pytest

from pipelines.cli import main
from pipelines.errors import PolicyError, UsageError
from pipelines.reputation import case_results
from pipelines.reputation.case_results import CaseResult, run_cases
from pipelines.reputation.cases import case_files, parse_cases
from tests.conftest import REPOSITORY

_PAGE = (REPOSITORY / "docs" / "changing-a-policy.md").read_text(encoding="utf-8")
_POLICY = """
name = "p"
version = "1"
windows_days = [7]
[adjustment]
points = { from = "points", minimum = -10, maximum = 10, digits = 1 }
[status]
suspend = ["Suspended"]
[actions]
Up.points = 1
Rated.rating = { from = "stars", minimum = 1, maximum = 5 }
[[actions.Both.emit]]
points = 1
[[actions.Both.emit]]
points = { from = "bonus", minimum = 0, maximum = 5 }
[time.membership]
points = 1
every = "day"
since = ["Joined"]
[scopes.stars]
from = "stars"
[scopes.city]
from = "city"
default = "elsewhere"
[levels]
bronze = 5
silver = 10
"""
_CASES = """
as_of = 2026-03-11

[[cases]]
name = "everything that can be expected"
events = [
    { user_id = "ann", action_type = "Up", timestamp = 2026-03-01, repeat = 2 },
    { event_id = "some", ANN, action_type = "PointsAdjusted", metadata = { points = 2.5 } },
    { event_id = "first", ANN, action_type = "Rated", metadata = { stars = 5, by = "eve" } },
    { event_id = "rated", ANN, action_type = "Rated", metadata = { stars = 4 }, repeat = 2 },
    { event_id = "both", ANN, action_type = "Both", metadata = { bonus = 3 } },
    { event_id = "future", user_id = "ann", action_type = "Up", timestamp = 2026-03-11 },
    { user_id = "bob", action_type = "Suspended", timestamp = 2026-03-10 },
    { user_id = "cid", action_type = "Joined", timestamp = 2026-03-07T12:00:00Z },
]
expect.cid = { time.membership = 3, all_time_score = 3 }
[cases.expect.ann]
all_time_score = 8.5
all_time_rating_average = 4.333333
last_7_days_score = 6.50
status = "active"
level = "bronze"
next_level = "silver"
scopes."city=elsewhere".all_time_events = 7
reasons = { event-001-002 = "granted", both = "granted", future = "none" }
earned = { both = 4, some = 2.5 }
scopes."stars=4" = { all_time_events = 2, last_7_days_rating_average = 4 }
[cases.expect.bob]
status = "suspended"
all_time_rating_average = "none"
[cases.expect.eve]
all_time_score = "none"

[[cases]]
name = "nothing of it"
as_of = 2026-03-12
events = [
    { event_id = "up", ANN, action_type = "Up" },
    { event_id = "rated", ANN, action_type = "Rated", metadata = { stars = 4 } },
    { event_id = "again", ANN, action_type = "Rated", metadata = { stars = 5 }, repeat = 2 },
    { user_id = "bob", action_type = "Rated", timestamp = 2026-03-10, metadata = { stars = 1, by = "eve" } },
]
[cases.expect.ann]
all_time_score = 2
level = "silver"
all_time_rating_average = 4.67
last_7_days_score = "1"
scopes."stars=5".all_time_events = 3
scopes."stars=1".status = "active"
reasons = { up = "capped" }
earned = { up = 0.5 }
time.membership = 2
[cases.expect.eve]
status = "active"
""".replace("ANN", 'user_id = "ann", timestamp = 2026-03-10')


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[CaseResult], Mock]:
    """Return the results of the cases, and the calls that computed scores."""
    folder = tmp_path_factory.mktemp("cases")
    (folder / "p.toml").write_text(_POLICY, encoding="utf-8")
    (folder / "p.test.toml").write_text(_CASES, encoding="utf-8")
    (file,) = case_files(str(folder))
    with patch.object(case_results, "scores", wraps=case_results.scores) as computed:
        return run_cases(file), computed


@pytest.fixture
def results(run: tuple[list[CaseResult], Mock]) -> list[CaseResult]:
    return run[0]


@pytest.mark.slow
def test_a_scope_is_computed_once_for_all_users_and_values(run: tuple[list[CaseResult], Mock]) -> None:
    """The second case asks for two values of one: its scores are computed once overall, and once in the scope."""
    assert [call.kwargs.get("scope") for call in run[1].call_args_list] == [None, "city", "stars", None, "stars"]


def test_a_case_passes_if_everything_is_as_expected(results: list[CaseResult]) -> None:
    """Numbers are compared by value, means to six digits, rows of an event together; events to come are none."""
    assert (results[0].differences, results[0].line, results[0].contributions) == ((), 4, {})


def test_each_difference_is_reported_with_the_contributions(results: list[CaseResult]) -> None:
    """As the file would write it, by user; a mean of two digits is not the mean, and a text is not a number."""
    failed = results[1]
    assert [(each.user_id, each.name, each.expected, each.got) for each in failed.differences] == [
        ("ann", "all_time_score", "2", "1"),
        ("ann", "level", '"silver"', '"none"'),
        ("ann", "all_time_rating_average", "4.67", "4.666666666666667"),
        ("ann", "last_7_days_score", '"1"', "1"),
        ("ann", 'scopes."stars=5".all_time_events', "3", "2"),
        ("ann", 'scopes."stars=1".status', '"active"', '"none"'),
        ("ann", "reasons.up", '"capped"', '"granted"'),
        ("ann", "earned.up", "0.5", "1"),
        ("ann", "time.membership", "2", "0"),
        ("eve", "status", '"active"', '"none"'),
    ]
    assert set(failed.contributions["ann"]["event_id"]) == {"up", "rated", "again-001", "again-002"}
    assert failed.contributions["eve"].height == 0


_EVENT = '{ user_id = "ann", action_type = "Up", timestamp = 2026-03-01 }'
_NAMED = _EVENT.replace("{", '{ event_id = "a",')
_HEAD = 'as_of = 2026-03-11\n[[cases]]\nname = "c"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f:1: cases: is missing: add it"),
        ("cases = []", "f:1: cases: is empty: give a value, or remove it"),
        (f"{_HEAD}event = [{_EVENT}]", "f:4: cases.0.event: is not a key here: did you mean 'events'?"),
        (f'[[cases]]\nname = "c"\nevents = [{_EVENT}]\nexpect.ann.x = 1', "f:1: cases.0.as_of: is missing: add it"),
        (f"{_HEAD}events = [{_EVENT}]\n", "f:2: cases.0.expect: is missing: add it"),
        (
            f"{_HEAD}events = [{_EVENT}]\n[cases.expect.ann]\nx = 1\nreason = {{ a = 'granted' }}",
            "f:7: cases.0.expect.ann.reason: is not a key here: did you mean 'reasons'?",
        ),
        (f"{_HEAD}events = [{_EVENT}]\nexpect.ann = {{}}", "f:5: cases.0.expect.ann: expects nothing: name a column"),
        (f"{_HEAD}events = [{_EVENT}]\nexpect.ann.reasons = {{}}", "f:5: cases.0.expect.ann.reasons: expects nothing"),
        (f"{_HEAD}events = [{_EVENT}]\nexpect.ann.x = [1]", "must be a number or a text; write no value as"),
        (
            f"{_HEAD}events = [{_EVENT.replace('2026-03-01', '7')}]\nexpect.ann.x = 1",
            "f:4: cases.0.events.0.timestamp: has to be a time, such as 2026-01-31",
        ),
        (
            f"{_HEAD}events = [{_EVENT.replace('2026-03-01', '9999-12-31T23:59:58Z, repeat = 3')}]\nexpect.ann.x = 1",
            "f:4: cases.0.events.0.timestamp: is too late to be repeated",
        ),
        (
            f"{_HEAD}events = [{_NAMED}, {_NAMED}]\nexpect.ann.x = 1",
            "f:4: cases.0.events.1: event_id 'a' occurs twice: an event counts once",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_cases(text, "f")
    assert message in str(error.value)


def test_a_list_of_invalid_entries_is_not_called_empty() -> None:
    with pytest.raises(PolicyError) as error:
        parse_cases(f'[[cases]]\nname = "c"\nevents = [{_EVENT}]\nexpect.ann.x = 1', "f")
    assert str(error.value) == "f:1: cases.0.as_of: is missing: add it"


@pytest.mark.parametrize(
    ("event", "expected", "message"),
    [
        (
            _EVENT,
            "all_time_scor = 1",
            ":5: cases.0.expect.ann.all_time_scor: is not a column of `reputation` under this",
        ),
        (_EVENT, "all_time_scor = 1", "did you mean 'all_time_score'?"),
        (
            _EVENT,
            "reason = 'granted'",
            ":5: cases.0.expect.ann.reason: is not a column of `reputation` under this policy: did you mean 'reasons'?",
        ),
        (_EVENT, 'scopes."star=4".status = "active"', "has no scope 'star': did you mean 'stars'?"),
        (_EVENT, "time.membrship = 1", "is not a rule of [time] in this policy: did you mean 'membership'?"),
        (
            _EVENT,
            'level = "brnze"',
            ":5: cases.0.expect.ann.level: brnze is not a level of this policy: did you mean 'br",
        ),
        (_EVENT, "next_level = 3", "expect.ann.next_level: 3 is not a level of this policy"),
        (_NAMED, "reasons.aa = 'granted'", ":5: cases.0.expect.ann.reasons.aa: is not an event of the case: did you"),
        (_NAMED, "earned.b = 0", ":5: cases.0.expect.ann.earned.b: is not an event of the case"),
        (_EVENT, 'scopes."stars=4".status = "none"', "expect.ann.scopes.stars=4: 4 is in no event of the case"),
        (
            _EVENT.replace("ann", "anne"),
            "x = 1",
            ":5: cases.0.expect.ann: is a user whom no event of the case names: did",
        ),
        (_EVENT, 'scopes."stars=4".events = 1', "is not a column of `reputation_by_stars` under this policy"),
        (_EVENT.replace("ann", ""), "all_time_score = 1", ":4: cases.0.events: event-001: "),
    ],
)
def test_what_the_policy_or_the_contract_refuses_is_named(
    tmp_path: Path, event: str, expected: str, message: str
) -> None:
    """Names that the policy, or no event of the case, has, and an event that would be a dead letter."""
    (tmp_path / "p.toml").write_text(_POLICY, encoding="utf-8")
    file = tmp_path / "p.test.toml"
    file.write_text(f"{_HEAD}events = [{event}]\nexpect.ann.{expected}", encoding="utf-8")
    with pytest.raises(PolicyError) as error:
        run_cases(file)
    assert message in str(error.value)


def test_a_misspelt_action_is_named_and_an_expected_reason_is_not(tmp_path: Path) -> None:
    """An action without a rule may be on purpose: the case that expects its reason says so."""
    (tmp_path / "q.toml").write_text('name = "q"\nversion = "1"\nactions.Voted.points = 1\n', encoding="utf-8")
    event = '{ event_id = "e", user_id = "ann", action_type = "Votd", timestamp = 2026-03-01 }'
    case = f"[[cases]]\nname = 'c'\nevents = [{event}]\nexpect.ann.all_time_score = 0\n"
    file = tmp_path / "q.test.toml"
    file.write_text(f"as_of = 2026-03-11\n{case}{case}expect.ann.reasons.e = 'no rule'\n", encoding="utf-8")
    misspelt, expected = run_cases(file)
    assert misspelt.passed
    assert misspelt.uncounted == (
        "events that earn nothing: 1 of Votd: no rule in the policy q: did you mean 'Voted'?",
    )
    assert (expected.passed, expected.uncounted) == (True, ())


def test_where_cases_are_found(tmp_path: Path) -> None:
    """A folder needs one file at least; a policy needs the file beside it, and that one a policy."""
    with pytest.raises(UsageError, match=r"has no file \*\.test\.toml"):
        case_files(str(tmp_path))
    (tmp_path / "p.toml").write_text(_POLICY, encoding="utf-8")
    with pytest.raises(UsageError, match=r"p\.toml has no cases: write them to .*p\.test\.toml"):
        case_files(str(tmp_path / "p.toml"))
    with pytest.raises(PolicyError, match="there is no policy 'nothing'"):
        case_files("nothing")
    (tmp_path / "q.test.toml").write_text(_CASES, encoding="utf-8")
    assert case_files(str(tmp_path)) == case_files(str(tmp_path / "q.test.toml")) == [tmp_path / "q.test.toml"]
    with pytest.raises(PolicyError, match=r"q\.test\.toml has no policy beside it: there is no .*q\.toml"):
        run_cases(tmp_path / "q.test.toml")


def test_the_example_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of docs/changing-a-policy.md give the output that it shows."""
    policy, cases = re.findall(r"```toml\n(.*?)```", _PAGE, re.DOTALL)[:2]
    (shown,) = re.findall(r"```console\n\$ karmalake policy test votes.toml\n(.*?)```", _PAGE, re.DOTALL)
    (tmp_path / "votes.toml").write_text(policy, encoding="utf-8")
    (tmp_path / "votes.test.toml").write_text(cases, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.cli.output.quiet_libraries", lambda: None)  # loggers outlive a test
    monkeypatch.setattr(sys, "argv", ["karmalake", "policy", "test", "votes.toml"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "".join(capsys.readouterr()) == shown
