"""Policy files: what is accepted, and what is said about a mistake."""

from decimal import Decimal
from pathlib import Path

import pytest

from pipelines.errors import PolicyError
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy, parse_policy, shipped_policies

HEAD = 'name = "p"\nversion = "1"\n'


def problem(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_policy(HEAD + text, "p.toml")
    return str(caught.value)


@pytest.mark.parametrize("name", shipped_policies())
def test_shipped_policies_load_under_their_own_name(name: str) -> None:
    """The file name and the name in it are one."""
    assert load_policy(name).name == name


@pytest.mark.parametrize("name", shipped_policies())
def test_a_policy_survives_json(name: str) -> None:
    """The copy in a warehouse is the policy."""
    policy = load_policy(name)
    assert Policy.model_validate_json(policy.model_dump_json(exclude_unset=True, by_alias=True)) == policy


def test_numbers_are_decimals() -> None:
    """0.1 is a tenth, not the float beside it."""
    policy = parse_policy(HEAD + "[actions.A]\npoints = 0.1")
    assert policy.actions["A"].emissions[0].points.fixed == Decimal("0.1")
    assert policy.score_digits == 1


def test_a_path_is_read_and_a_missing_one_names_what_there_is(tmp_path: Path) -> None:
    """A policy is named or given as a path."""
    path = tmp_path / "mine.toml"
    path.write_text(HEAD)
    assert load_policy(path) == load_policy(str(path))
    with pytest.raises(PolicyError, match=r"no policy 'nothing': name a TOML file, .*default"):
        load_policy("nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw_days = [7]", "p.toml:3: windw_days: is not a key of a policy: did you mean 'windows_days'?"),
        ("\n\nzzz = 1", "p.toml:5: zzz: is not a key of a policy: remove it"),
        ("windows_days = [-7]", "p.toml:3: windows_days.0: Input should be greater than or equal to 1, not -7"),
        ("windows_days = [7, 7]", "p.toml:3: windows_days: names a length twice: remove one"),
        ("[status]\nrule = 'frozen'", "p.toml:4: status.rule: Input should be 'freeze'"),
        ("[actions.A]\npoints = 'many'", "p.toml:4: actions.A.emit.0.points.fixed: "),
        ("[actions.A]\npoints = { from = 'x', maximum = 2, scal = 3 }", "p.toml:4: actions.A.emit.0.points.scal: "),
        ("[actions.A]\npoints = { }", 'give either a number, or a table with "from"'),
        ("[actions.A]\nrating = { from = 'r', minimum = 1 }", "p.toml:4: actions.A.rating.maximum: is missing: add it"),
        ("[actions.A]\nrating = { from = 'r', minimum = 5, maximum = 1 }", "minimum 5 is above maximum 1: swap them"),
        ("[actions.A]\npoints = { from = 'r', digits = 6, scale = 0.1 }", "points would not be exact"),
        ("[actions.A]\npoints = { from = 'r', scale = 2 }", "scale times the bounds passes 1000000 points"),
        ("[actions.A]\npoints = { from = 'r', map = { 1 = 1 }, scale = 2 }", "map says everything"),
        ("[actions.A]\npoints = 1e9", "less than or equal to 1000000"),
        ("[actions.A]\npoints = nan", "p.toml:4: "),
        ("[actions.'A.B'.rating]\nfrom = 'r'\nminimum = 'x'", "p.toml:5: actions.A.B.rating.minimum: "),
        ("[status]\nsuspend = ['A']\n[actions.A]\npoints = 1", "p.toml:5: actions.A: A is in status.suspend already"),
        ("[[actions.A.emit]]\npoints = 1\n[[actions.A.emit]]\npints = 1", "p.toml:6: actions.A.emit.1.pints: "),
        ("[status]\nrule = 'hide'", "p.toml:3: status: shown belongs to rule"),
        ("[caps.votes]\nmaximum = 200", "p.toml:3: caps.votes.period: is missing: add it"),
        ("[caps.votes]\nperiod = 'day'\nmaximum = -1", "p.toml:5: caps.votes.maximum: Input should be greater than"),
        (
            "[caps.votes]\nperiod = 'day'\nmaximum = 1\nactions = ['B']\n[actions.A]\npoints = 1",
            "p.toml:6: caps.votes.actions: B is no action of this policy (A)",
        ),
        ("[once.x]\nkeep = 'last'", "p.toml:3: once.x: actions is missing: say which actions compete"),
        ("[completion.x]\nby = []\nkey = 'k'", "p.toml:4: completion.x.by: "),
        ("[score]\nfloor = 2\nceiling = 1", "p.toml:3: score: floor 2 is above ceiling 1: swap them"),
        ("[actions.A]\npoints = 1\nhalf_life_days = 0", "p.toml:5: actions.A.emit.0.half_life_days: "),
        ("[measures.score]\nformula = 'mean'", "p.toml:3: measures.score: every view has a column of this name"),
        ("[measures.m]\nformula = 'wilson'", "p.toml:3: measures.m: wilson needs positive_from"),
        ("[measures.m]\nformula = 'median'", "p.toml:4: measures.m.formula: "),
        ("x = = 1", "p.toml is not TOML: Invalid value (at line 3, column 5)"),
    ],
)
def test_a_mistake_is_explained_by_file_line_and_remedy(text: str, message: str) -> None:
    """Whoever wrote the policy finds the place without searching."""
    assert message in problem(text)


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody mends one line at a time."""
    assert len(problem("a = 1\nb = 2\n[status]\nc = 3").splitlines()) == 3
