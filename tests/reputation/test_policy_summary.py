"""The summary of a policy, as `karmalake policy check` shows it: it leaves out nothing that the file says."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipelines import reputation
from pipelines.boundary.mistakes import tables_of
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.numbers import Section
from pipelines.reputation.policy_file import parse_policy
from pipelines.reputation.policy_summary import summarize

_PAGE = Path(reputation.__file__).parent / "policies" / "README.md"
_REST = """
name = "rest"
version = "1"
[score]
floor = 0
[correction]
actions = ["Corrected"]
target = "corrected_id"
[actions.A]
rating = { fixed = 3, weight = { fixed = 0.5 } }
points = { fixed = 7 }
where = { a = { equals = "two words" }, b = { maximum = 9 } }
[levels]
first = { at = 11, falls_below = 10 }
[measures]
m = { formula = "beta", positive_from = 4, prior_positive = 2, prior_negative = 3 }
d = { formula = "mean", default = 5 }
[scopes.city]
from = "city"
[caps.all]
maximum = 4
actions = ["A"]
"""
"""What the examples of the page leave out."""
_ALONE = {"fixed", "equals", "at", "emit", "versions", "effective_from"}
"""Keys of which the summary has the values only: a file may abbreviate them, or they are said in words."""
_REFUSED = {("Completion", "exempt"), ("Once", "exempt")}
"""Keys that only contradict `actions`, which these tables need."""


def policies() -> list[Policy]:
    examples = re.findall(r"```toml\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [*map(parse_policy, examples), parse_policy(_REST)]


def said(value: Any, table: str = "Policy") -> Iterator[tuple[str, str, Any]]:
    """Yield table, key and value of everything that a policy's file says."""
    match value:
        case Section():
            for name in value.model_fields_set:
                key = type(value).model_fields[name].alias or name
                yield type(value).__name__, key, getattr(value, name)
                yield from said(getattr(value, name))
        case Mapping():
            for key, each in value.items():
                yield table, str(key), each
                yield from said(each, table)
        case tuple():
            for each in value:
                yield from said(each, table)


def test_the_policies_of_this_test_use_every_key_of_the_language() -> None:
    """A new key fails here until an example has it, and then below unless the summary says it."""
    used = {(table, key) for policy in policies() for table, key, _ in said(policy)}
    known = {
        (table.__name__, f.alias or name) for _, table in tables_of(Policy) for name, f in table.model_fields.items()
    }
    assert known - used == _REFUSED


def test_a_summary_says_everything_that_the_policy_says() -> None:
    """Each key and name of the file, and each value as the file writes it."""
    for policy in policies():
        text = "\n".join(f"{key} {value}" for key, value in summarize(policy))
        for table, key, value in said(policy):
            assert key in text or key in _ALONE, (table, key)
            if isinstance(value, str | int | float | Decimal):
                assert str(value) in text, (table, key, value)
            if isinstance(value, datetime):
                assert f"from {value:%Y-%m-%d %H:%M}" in text


def test_a_summary_reads_like_the_file() -> None:
    """A line for each table, with its keys; what every policy has is there, too."""
    assert summarize(parse_policy(_REST)) == [
        ("name", "rest"),
        ("description", "(no description)"),
        ("version", "1"),
        ("  windows_days", "7, 30, 90, 365"),
        ("  score", "floor 0"),
        ("  correction", "actions Corrected, target corrected_id"),
        ("  actions.A", 'where (a: "two words", b: (maximum 9)), rating (3, weight 0.5), points 7'),
        ("  caps.all", "actions A, maximum 4"),
        ("  measures.rating_average", "formula mean"),
        ("  measures.m", "formula beta, positive_from 4, prior_positive 2, prior_negative 3"),
        ("  measures.d", "formula mean, default 5"),
        ("  levels.first", "11, falls_below 10"),
        ("  scopes.city", "from city"),
    ]
