"""Policy files: what is accepted, and the messages about mistakes."""

import re
import tomllib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from textwrap import dedent

import pytest

from pipelines import reputation as policies
from pipelines.boundary.mistakes import tables_of
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
    """The file name is the policy's name."""
    assert load_policy(name).name == name


@pytest.mark.parametrize("name", shipped_policies())
def test_a_policy_survives_json(name: str) -> None:
    """The copy in a warehouse equals the policy."""
    policy = load_policy(name)
    assert Policy.model_validate_json(policy.to_json()) == policy


def test_a_policy_of_a_lake_is_not_checked_for_what_has_no_effect() -> None:
    """It was activated before there was such a check: it stays in force, and its file is refused."""
    text = """
        status = { reinstate = ["R"] }
        actions.A = { points = 1, where = {}, penalties_expire_after_days = 7 }
        caps.c = { maximum = 5, per = [], actions = ["A"], exempt = ["A"] }
        measures.m = { formula = "mean", z = 2, rounding = "floor" }
        raters = { weight = "trust", seeds = ["ann", "ann"] }
    """
    assert len(problem(text).splitlines()) == 9
    policy = Policy.model_validate(tomllib.loads(HEAD + text))
    assert Policy.model_validate_json(policy.to_json()) == policy


def test_texts_numbers_and_several_keys_survive_json() -> None:
    """What a file may abbreviate is the same policy again."""
    text = """
        [actions.A]
        where = { v = "true", n = { minimum = 1.5 } }
        rating = { from = "v", map = { up = 1, down = -0.5 } }
        points = { from = "v", map = { up = 1, 5 = 2, "4.50" = 3 }, missing = 0.25 }
        [actions.B]
        rating = 1
        points = 2
        [caps.pair]
        maximum = 3
        per = ["a", "b"]
    """
    policy = parse_policy(HEAD + text)
    assert Policy.model_validate_json(policy.to_json()) == policy
    assert (policy.versions[0].score_digits, policy.versions[0].rating_digits) == (2, 1)


def test_numbers_are_decimals() -> None:
    """0.1 is exactly a tenth, not the nearest float."""
    policy = parse_policy(HEAD + "[actions.A]\npoints = 0.1")
    assert policy.versions[0].actions["A"].emissions[0].points.fixed == Decimal("0.1")
    assert policy.versions[0].score_digits == 1


def test_a_path_is_read_and_a_missing_one_lists_shipped_policies(tmp_path: Path) -> None:
    """A policy is given by name or by path."""
    path = tmp_path / "mine.toml"
    path.write_text(HEAD)
    assert load_policy(path) == load_policy(str(path))
    with pytest.raises(PolicyError, match=r"no policy 'nothing': name a TOML file, .*default"):
        load_policy("nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw_days = [7]", "p.toml:3: windw_days: is not a key here: did you mean 'windows_days'?"),
        ("[action.A]\npoints = 1", "p.toml:3: action: is not a key here: did you mean 'actions'?"),
        ("\n[times.x]\npoints = 1", "p.toml:4: times: is not a key here: did you mean 'time'?"),
        ("[scoring]\nfloor = 0", "p.toml:3: scoring: is not a key here: did you mean 'score'?"),
        ("[points.A]\nx = 1", "p.toml:3: points: is not a key here: it belongs to [actions.NAME] and [adjustment]"),
        ("[caps.v]\naction = ['A']", "p.toml:4: caps.v.action: is not a key here: did you mean 'actions'?"),
        ("\n\nzzz = 1", "p.toml:5: zzz: is not a key here: remove it"),
        ("descriptions = 'x'", "p.toml:3: descriptions: is not a key here: did you mean 'description'?"),
        ("[caps.v]\nmaxmum = 3", "p.toml:4: caps.v.maxmum: is not a key here: did you mean 'maximum'?"),
        ("[caps.v]\npoint = 3", "p.toml:4: caps.v.point: is not a key here: remove it"),
        ("[caps.v]\nfloor = 3", "p.toml:4: caps.v.floor: is not a key here: it belongs to [score]"),
        ("[score]\nper = 'x'", "p.toml:4: score.per: is not a key here: it belongs to [once.NAME] and [caps.NAME]"),
        (
            "[actions.A]\nscale = 2",
            "scale: is not a key here: it belongs to [actions.NAME.points] and [adjustment.points]",
        ),
        ("[actions.A]\npoint = 2", "p.toml:4: actions.A.point: is not a key here: did you mean 'points'?"),
        ("[score]\nversions = 1", "p.toml:4: score.versions: is not a key here: it belongs to the top level"),
        ("[caps]\nday = 3", "p.toml:4: caps.day: has to be a table, not 3"),
        ("[status]\nsuspend = 'x'", "p.toml:4: status.suspend: has to be an array in brackets, not x"),
        (
            "[actions.A]\npoints = { from = 'x', map = { a = 'x' } }",
            "p.toml:4: actions.A.points.map.a: has to be a number, not x",
        ),
        (
            "[actions.A]\nrating = { from = 'r', minimum = 0.5, maximum = 5 }",
            "maximum 5 need digits = 1, and digits is 0",
        ),
        (
            "[actions.A]\npoints = { from = 'r', minimum = 0, maximum = 0.25, digits = 1 }",
            "need digits = 2, and digits is 1",
        ),
        (
            "[actions.A]\nwhere = { v = true }\npoints = 1",
            "p.toml:4: actions.A.where.v: has to be a text in quotes, not true",
        ),
        (
            "[actions.A]\nwhere = { v = 'x', w = {} }",
            "p.toml:4: actions.A.where.w: give either a text, or a table with",
        ),
        ("[actions.A]\nwhere.w = { minimum = 2, maximum = 1 }", "actions.A.where.w: minimum 2 is above maximum 1"),
        (
            "[actions.A]\nwhere.w = { minimums = 2 }",
            "actions.A.where.w.minimums: is not a key here: did you mean 'minimum'",
        ),
        (
            "[actions.A]\npoints = { from = 'x', map = { '' = 1 } }",
            "a key of a map has 1 to 256 characters: shorten it",
        ),
        ("[actions.A]\npoints = { fixed = 1, missing = 1 }", 'missing belongs to a table with "from"'),
        ("[actions.A]\nrating = 'x'", "p.toml:4: actions.A.rating: has to be a number, not x"),
        (
            "[actions.A]\nrating = { from = 'r', map = { 5 = 1 } }",
            "p.toml:4: actions.A.rating.map: 5 is a number, which",
        ),
        (
            "[actions.A]\nrating = { from = 'r', map = { a = 1 }, minimum = 1 }",
            "are of a number in the metadata: remove",
        ),
        ("[actions.A]\nrating = { map = { a = 1 } }", "p.toml:4: actions.A.rating: give either a number, or a table"),
        (
            "[actions.A]\nrating = { from = 'r', minimum = 1, maximum = 5, missing = 6 }",
            "p.toml:4: actions.A.rating.missing: 6 is no rating: choose one from 1 to 5",
        ),
        (
            "[actions.A]\nrating = { from = 'r', map = { up = 1, down = -1 }, missing = 1.5 }",
            "p.toml:4: actions.A.rating.missing: 1.5 is no rating: choose one from -1 to 1",
        ),
        ("[actions.A]\nrating = { fixed = 1, missing = 0 }", 'missing belongs to a table with "from"'),
        ("[actions.A]\nrating = { from = 'r', map = {} }", "p.toml:4: actions.A.rating.map: "),
        (
            "[actions.A]\nrating = { from = 'r', minimum = 1, maximum = 5, weight = { from = 'h', minimum = 0 } }",
            "p.toml:4: actions.A.rating.weight.maximum: is missing: add it",
        ),
        (
            "[actions.A]\nrating = { fixed = 1, weight = { from = 'h', minimum = 0, maximum = 1, missing = 2 } }",
            "p.toml:4: actions.A.rating.weight.missing: 2 is above maximum 1: choose one from 0 to it",
        ),
        (
            "[actions.A]\nrating = { fixed = 1, weight = { from = 'h', minimum = 0, maximum = 0.5 } }",
            "p.toml:4: actions.A.rating.weight: minimum 0 and maximum 0.5 need digits = 1, and digits is 0",
        ),
        ("[actions.A]\nrating = { fixed = 1, weight = -1 }", "actions.A.rating.weight: has to be at least 0"),
        (
            "[actions.A]\nrating = { fixed = 1, weight = { fixed = 1, unreadable = 0 } }",
            "minimum, maximum, digits and unreadable are of a number in the metadata: remove them",
        ),
        (
            "[actions.A]\nrating = { fixed = 5, weight = 1000000 }",
            "p.toml:4: actions.A.rating.weight: a rating times a weight exceeds 1000000: give a smaller maximum",
        ),
        ("windows_days = [true]", "p.toml:3: windows_days.0: has to be a whole number, not true"),
        ("[scopes.city]\nfrom = 'city'\nlimit = true", "scopes.city.limit: has to be a whole number, not true"),
        ("windows_days = [-7]", "p.toml:3: windows_days.0: has to be at least 1, not -7"),
        ("decay_step_minutes = 7", "p.toml:3: decay_step_minutes: 7 does not divide a day of 1440 minutes"),
        ("decay_step_minutes = 2880", "p.toml:3: decay_step_minutes: has to be at most 1440"),
        (
            "decay_step_minutes = 1440\n[actions.A]\npoints = 1\nhalf_life_days = 0.5",
            "p.toml:3: decay_step_minutes: 1440 is longer than a half-life of the policy: shorten it",
        ),
        ("[caps.v]\nmaximum = 2\nper = []", "p.toml:5: caps.v.per: is empty: say what it is of, or remove it"),
        ("[caps.v]\nmaximum = 2\nper = ['a', 'b', 'a']", "p.toml:5: caps.v.per: names a 2 times: once is enough"),
        ("[status]\nsuspend = ['S', 'S']", "p.toml:4: status.suspend: S is already in status.suspend"),
        ("[actions.A]\npoints = 1\nwhere = {}", "p.toml:5: actions.A.where: is empty: say what it is of, or remove it"),
        ("[actions.A]\npoints = { from = 'x', map = {} }", "p.toml:4: actions.A.points.map: is empty: say"),
        ("[actions.A]\nemit = []", "p.toml:4: actions.A.emit: is empty: say what it is of, or remove it"),
        ("[raters]\nweight = 'trust'\nseeds = ['a', 'a']", "p.toml:5: raters.seeds: names a 2 times: once is enough"),
        ("[raters]\nweight = 'trust'\nseeds = 'a'", "p.toml:3: raters: weighs ratings, and no action has one"),
        ("# \u2028 \x85\n[actions]\n'ö b' = { pints = 1 }", "p.toml:5: actions.ö b.pints: "),
        (
            'description = """\n[score]\nfloor = 1\n"""\n[score]\nfloor = "x"',
            "p.toml:8: score.floor: has to be a number",
        ),
        ('[actions."a[b]"]\npints = 1', "p.toml:4: actions.a[b].pints: "),
        ("[status]\nreinstate = ['R']", "p.toml:3: status: has no effect without suspend: add it, or remove [status]"),
        ("[retraction]\ntarget = 't'", "p.toml:3: retraction: has no effect without actions: add it, or remove"),
        ("decay_step_minutes = 30", "p.toml:3: decay_step_minutes: is of points that decay: add half_life_days"),
        (
            "[actions.A]\npoints = 1\n[caps.v]\nmaximum = 2\nactions = ['A']\nexempt = ['A']",
            "p.toml:8: caps.v.exempt: is of a rule for all actions: remove it, and leave them out of actions",
        ),
        (
            "[actions.A]\npoints = 1\npenalties_expire_after_days = 7",
            "p.toml:5: actions.A.penalties_expire_after_days: is of points below zero, and there are none: remove it",
        ),
        (
            "[measures]\nm = { formula = 'mean', z = 2 }",
            "p.toml:4: measures.m.z: is of wilson, and the formula is mean: remove it",
        ),
        (
            "[measures]\nm = { formula = 'mean', rounding = 'floor' }",
            "p.toml:4: measures.m.rounding: rounds to digits: add digits, or remove it",
        ),
        ("windows_days = [7, 7]", "p.toml:3: windows_days: contains a length twice: remove one"),
        ("[status]\nrule = 'frozen'", "p.toml:4: status.rule: has to be 'freeze'"),
        ("[actions.A]\npoints = 'many'", "p.toml:4: actions.A.points: has to be a number, not many"),
        ("[actions.A]\npoints = { from = 'x', maximum = 2, scal = 3 }", "p.toml:4: actions.A.points.scal: "),
        ("[actions.A]\npoints = { }", 'give either a number, or a table with "from"'),
        ("[actions.A]\nrating = { from = 'r', minimum = 1 }", "p.toml:4: actions.A.rating.maximum: is missing: add it"),
        ("[actions.A]\nrating = { from = 'r', minimum = 5, maximum = 1 }", "minimum 5 is above maximum 1: swap them"),
        ("[actions.A]\npoints = { from = 'r', digits = 6, scale = 0.1 }", "points would not be exact"),
        ("[actions.A]\npoints = { from = 'r', scale = 2 }", "scale times a bound exceeds 1000000 points"),
        ("[actions.A]\npoints = { from = 'r', map = { 1 = 1 }, scale = 2 }", "map excludes scale"),
        ("[actions.A]\npoints = 1e9", "has to be at most 1000000"),
        ("[actions.A]\npoints = nan", "p.toml:4: "),
        ("[actions.'A.B'.rating]\nfrom = 'r'\nminimum = 'x'", "p.toml:5: actions.A.B.rating.minimum: "),
        ("[status]\nsuspend = ['A']\n[actions.A]\npoints = 1", "p.toml:5: actions.A: A is already in status.suspend"),
        ("[[actions.A.emit]]\npoints = 1\n[[actions.A.emit]]\npints = 1", "p.toml:6: actions.A.emit.1.pints: "),
        ("[status]\nrule = 'hide'", "p.toml:3: status: shown belongs to rule"),
        ("[caps.votes]\nperiod = 'day'", "p.toml:3: caps.votes.maximum: is missing: add it"),
        ("[caps.votes]\nmaximum = 2\nper = 3", "p.toml:5: caps.votes.per: has to be an array in brackets, not 3"),
        ("[caps.votes]\nperiod = 'day'\nmaximum = -1", "p.toml:5: caps.votes.maximum: has to be at least 0"),
        (
            "[caps.votes]\nperiod = 'day'\nmaximum = 1\nactions = ['B']\n[actions.A]\npoints = 1",
            "p.toml:6: caps.votes.actions: B is not an action of this policy (A)",
        ),
        ("[adjustment]\naction = 'A'", "p.toml:3: adjustment.points: is missing: add it"),
        ("[adjustment]\npoints = { from = 'p', maximum = 5 }", "p.toml:3: adjustment: points need a minimum and a"),
        ("[adjustment]\npoints = 5", "p.toml:3: adjustment: points of an adjustment are a table with"),
        (
            "[adjustment]\naction = 'A'\npoints = { from = 'p', minimum = 0, maximum = 1 }\n[actions.A]\npoints = 1",
            "p.toml:6: actions.A: A is already in adjustment.action",
        ),
        ("[once.x]\nkeep = 'last'", "p.toml:3: once.x: actions is missing: say which actions compete"),
        ("[completion.x]\nby = []\nkey = 'k'", "p.toml:4: completion.x.by: "),
        ("[score]\nfloor = 2\nceiling = 1", "p.toml:3: score: floor 2 is above ceiling 1: swap them"),
        ("[actions.A]\npoints = 1\nhalf_life_days = 0", "p.toml:5: actions.A.half_life_days: "),
        (
            "[measures.score]\nformula = 'mean'",
            "p.toml:3: measures.score: every view already has a column of this name",
        ),
        ("[measures.m]\nformula = 'wilson'", "p.toml:3: measures.m: wilson needs positive_from"),
        ("[measures.m]\nformula = 'mode'", "p.toml:4: measures.m.formula: "),
        (
            "[measures.m]\nformula = 'median'\nhalf_life_days = 7",
            "p.toml:5: measures.m.half_life_days: belongs to a mean, and the formula is median: remove it",
        ),
        ("[measures.m]\nformula = 'mean'\nhalf_life_days = 0", "p.toml:5: measures.m.half_life_days: "),
        (
            "[measures.m]\nformula = 'median'\n[actions.A]\nrating = { fixed = 1, weight = 2 }",
            "p.toml:4: measures.m.formula: a median is of ratings that count alike, and this policy has weights",
        ),
        (
            "[measures.m]\nformula = 'median'\n[raters]\nweight = 'trust'\nseeds = ['ann']",
            "p.toml:4: measures.m.formula: a median is of ratings that count alike, and this policy has weights",
        ),
        ("mode = 'both'", "p.toml:3: mode: has to be 'retroactive' or 'prospective'"),
        (
            "[actions.A]\n[actions.A]\npoints = 1",
            "p.toml is not TOML: a key or table is there twice (at line 4, column 11)",
        ),
        (
            "[actions.A]\nrating = { from = 'r', key = 's', minimum = 1, maximum = 5 }",
            "p.toml:4: actions.A.rating.key: is not a key here: did you mean 'from'?",
        ),
        (
            "[actions.A]\npoints = { key = 'r' }",
            "p.toml:4: actions.A.points.key: is not a key here: did you mean 'from'?",
        ),
        ("[scopes.a]\nfrom = 'r'\nkey = 's'", "p.toml:5: scopes.a.key: is not a key here: did you mean 'from'?"),
        ("[actions.A]\nrating = { from = 'r', min = 1 }", "rating.min: is not a key here: did you mean 'minimum'?"),
        (
            "[actions.A]\npoints = { from = 'r', map = { 1 = 1, 1.5 = 2 } }",
            'there twice (at line 4, column 46); if 1.5 is one name, put it in quotes: "1.5"',
        ),
        (
            "[actions.A]\npoints = { from = 'r', map = { 1.5 = 2, 1 = 1 } }",
            'there twice (at line 4, column 46); if 1.5 is one name, put it in quotes: "1.5"',
        ),
        (
            "[actions.A.points]\nfrom = 'r'\nmap.-1.5 = 2",
            'map.-1: is a table here, since a point divides a key: if -1.5 is one name, put it in quotes: "-1.5"',
        ),
        (
            "[actions.A]\nwhere = { a.b = 'x' }\npoints = 1",
            'A.where.a.b: is not a key here: if a.b is one name, put it in quotes: "a.b"',
        ),
        (
            "[actions.order.paid]\npoints = 1",
            'order.paid: is not a key here: if order.paid is one name, put it in quotes: [actions."order.paid"]',
        ),
        (
            "[actions.order.status.paid]\nrating = 1",
            'if order.status.paid is one name, put it in quotes: [actions."order.status.paid"]',
        ),
        ("[actions.A]\npoints = 1\n[actions.A.status]\nrule = 'hide'", "status: is not a key here: it belongs to"),
        (
            "[levels]\nv1.2 = 3",
            "p.toml:4: levels.v1: is a table here, since a point divides a key: if v1.2 is one name",
        ),
        ("[levels]\nhigh.falls_below = 3", 'p.toml:4: levels.high: needs "at": the score that reaches the level'),
        ("[score]\nstart.x = 1", "p.toml:4: score.start: has to be a number"),
        ("x = = 1", "p.toml is not TOML: Invalid value (at line 3, column 5)"),
    ],
)
def test_a_mistake_is_explained_by_file_line_and_remedy(text: str, message: str) -> None:
    """The message points to the mistake in the file."""
    assert message in problem(text)


@pytest.mark.parametrize(
    "text",
    [
        "[score]\nstart = -100\nfloor = 0",
        "[score]\nstart = 120\nceiling = 100",
        "[score]\nfloor = 1",
    ],
)
def test_a_start_outside_the_bounds_has_an_effect(text: str) -> None:
    """The bounds are of the sum: the first points only lead up to the floor, the first losses down to the ceiling."""
    assert parse_policy(HEAD + text)


VERSIONS = """
name = "p"
[[versions]]
version = "1"
[versions.actions.A]
points = 1
[[versions]]
version = "2"
effective_from = 2024-01-01T00:00:00Z
[versions.actions.A]
points = 2
[[versions]]
version = "3"
effective_from = 2025-01-01T00:00:00Z
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2025-01", "2024-01", "p.toml:14: versions.2.effective_from: must be after that of version 2, 2024-01-01"),
        ("2025-01", "2023-01", "p.toml:14: versions.2.effective_from: must be after that of version 2, 2024-01-01"),
        ('"p"\n', '"p"\nversion = "1"\n', "p.toml:3: version: is not a key here: it belongs to [[versions]]"),
        ("00:00:00Z\n[ver", "00:00:00\n[ver", "p.toml:9: versions.1.effective_from: has no time zone"),
        ('"3"', '"1"', "p.toml:13: versions.2.version: 1 is already used"),
        ("effective_from = 2025-01-01T00:00:00Z", "", "p.toml:12: versions.2: effective_from is missing"),
        (
            "points = 2",
            "pints = 2",
            "p.toml:11: versions.1.actions.A.pints: is not a key here: did you mean 'points'?",
        ),
    ],
)
def test_mistakes_in_versions_are_found_in_their_version(old: str, new: str, message: str) -> None:
    """Two versions with one date, versions out of order, and a typo in the second one."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(VERSIONS.replace(old, new), "p.toml")
    assert message in str(caught.value)


def test_raters_weigh_the_ratings_of_an_earlier_version() -> None:
    """Each event of a prospective policy keeps the rating of its version; the version in force weighs them all."""
    rated = VERSIONS.replace("points = 1", "rating = { from = 'r', minimum = 1, maximum = 5 }")
    text = f"mode = 'prospective'\n{rated}[versions.raters]\nweight = 'trust'\nseeds = 'ann'\n"
    assert parse_policy(text)


def test_a_version_is_in_force_from_its_date_on() -> None:
    """The first one always, each later one from its first microsecond."""
    policy = parse_policy(VERSIONS)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    assert policy.at(start - timedelta(microseconds=1)).rules.version == "1"
    assert policy.at(start).rules.version == "2"
    assert policy.at(start + timedelta(days=366)).rules.version == "3"
    assert policy.version == "3"


def test_all_mistakes_are_reported_at_once() -> None:
    """One run of the check lists every mistake."""
    assert len(problem("a = 1\nb = 2\n[status]\nc = 3").splitlines()) == 3


@pytest.mark.parametrize("points", ["true", "2024-01-01", "[1]", "inf", "0.0000001"])
def test_points_are_numbers(points: str) -> None:
    """Anything but a decimal of at most six digits is rejected with its line."""
    assert "p.toml:4: actions.A.points" in problem(f"[actions.A]\npoints = {points}")


PAGE = Path(policies.__file__).parent / "policies" / "README.md"


def test_the_page_names_every_shipped_policy() -> None:
    """An undocumented policy fails the test."""
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in shipped_policies() if f"`{name}`" not in text] == []


def test_the_examples_of_the_page_are_policies() -> None:
    """All load, and the first one shows every key that a policy can have."""
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [parse_policy(example).name for example in examples] == ["example", "example", "loyal"]
    optional = {
        "description",
        "effective_from",
        "default",
        "fixed",
        "equals",
        "emit",
        "prior_positive",
        "prior_negative",
    }
    tables = [table for _, table in tables_of(Policy)]
    known = {field.alias or name for table in tables for name, field in table.model_fields.items()}
    assert [key for key in sorted(known - optional) if not re.search(rf"\b{key}\b", "".join(examples))] == []


def test_the_keys_that_a_policy_reads() -> None:
    """Each kind of rule that reads metadata is among them: a merge recomputes the users whom events name there."""
    rules = """
        name = "reading"
        version = "1"
        order_by = "order"
        raters = { weight = "trust", seeds = "ann", key = "rater" }
        adjustment = { points = { from = "adjusted", minimum = 0, maximum = 1 } }
        completion.a = { actions = ["A"], by = ["B"], key = "completed" }
        once.a = { actions = ["A"], per = ["once", "twice"], keep = "first" }
        caps.a = { period = "day", maximum = 1, per = "capped" }
        scopes.a = { from = "scope" }
        [actions.A]
        where = { condition = "x" }
        rating = { from = "rating", map = { x = 1 }, weight = { from = "weight", minimum = 0, maximum = 1 } }
        emit = [{ points = { from = "first" } }, { points = { from = "second" } }, { points = 1 }]
    """
    (version,) = parse_policy(dedent(rules)).versions
    assert version.metadata_keys == {
        *("order", "rater", "adjusted", "completed", "once", "twice", "capped", "scope", "condition", "rating"),
        *("weight", "first", "second"),
    }


def test_an_empty_name_is_no_policy() -> None:
    """It would be the path of the working directory."""
    with pytest.raises(PolicyError, match="there is no policy ''"):
        load_policy("")
