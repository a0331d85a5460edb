"""Rules: which events they match, and the errors for an invalid rule file."""

import pytest

from pipelines.errors import ConfigurationError
from pipelines.notify.conditions import Condition
from pipelines.notify.rule_file import load_rules, parse_rules
from pipelines.notify.template import Event, check, fill
from tests.conftest import REPOSITORY

GOOD = """\
[destinations.ops]
kind = "webhook"
url = "https://example.com/hook"
secret_env = "OPS_SECRET"

[destinations.app]
kind = "redis_stream"
key = "notifications"

[[rules]]
name = "low"
actions = ["Rated"]
text = "{user_id} got {metadata.rating}"
to = ["ops", "app"]
[[rules.when]]
key = "rating"
at_most = 2

[[rules]]
name = "any"
actions = ["Rated", "Suspended"]
text = "{action_type} of {user_id}"
to = ["app"]
"""


def _event(action_type: str, **metadata: str) -> Event:
    return Event("e1", "ada", action_type, "2026-01-01T00:00:00+00:00", metadata)


def _first(destination: str, event: Event) -> str | None:
    return next((rule.name for rule in parse_rules(GOOD).rules_for(destination) if rule.matches(event)), None)


def test_the_first_matching_rule_applies() -> None:
    """A destination gets an event at most once, so the event_id can be the idempotency key."""
    assert _first("app", _event("Rated", rating="1.5")) == "low"
    assert _first("app", _event("Rated", rating="3")) == "any"
    assert _first("ops", _event("Rated", rating="3")) is None
    assert _first("app", _event("Rode")) is None


@pytest.mark.parametrize(
    ("demand", "value", "is_met"),
    [
        ({"equal": "2"}, "2", True),
        ({"equal": "2"}, "2.0", False),
        ({"at_least": 2}, "2.0", True),
        ({"at_least": 2}, "1.99", False),
        ({"at_least": 1, "at_most": 3}, "3.01", False),
        ({"at_most": 2}, "few", False),
        ({"at_most": 2}, "NaN", False),
        ({"at_least": 2}, "Infinity", False),
        ({"at_most": 2}, None, False),
    ],
)
def test_a_condition_compares_numbers_as_numbers(demand: dict[str, object], value: str | None, is_met: bool) -> None:
    """A value that is not a number meets neither at_least nor at_most; equality compares text."""
    condition = Condition.model_validate({"key": "rating", **demand})
    assert condition.is_met({} if value is None else {"rating": value}) is is_met


def test_a_template_is_filled_from_the_event() -> None:
    """It can contain every field; braces are doubled; missing metadata is empty."""
    text = check("{{{user_id}}} {action_type} {event_id} {event_time} {metadata.a b}|{metadata.none}|")
    event = _event("Rated", **{"a b": "{user_id}"})
    assert fill(text, event) == "{ada} Rated e1 2026-01-01T00:00:00+00:00 {user_id}||"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("url =", "uri =", r"r.toml:3: destinations.ops.uri: is not a key here: did you mean 'url'\?"),
        (
            'kind = "webhook"',
            'kind = "email"',
            r"r.toml:2: destinations.ops.kind: has to be 'webhook' or 'redis_stream', not email",
        ),
        ('kind = "webhook"', "", r"r.toml:1: destinations.ops.kind: is missing: add it"),
        ("https://", "", r"r.toml:3: destinations.ops.url: must be a URL like https://host/path$"),
        ('secret_env = "OPS_SECRET"', "", r"r.toml:1: destinations.ops: needs a signing secret"),
        ("at_most = 2", "", r"r.toml:15: rules.0.when.0: has no condition: give equal, at_least or at_most"),
        ("at_most = 2", 'at_most = "two"', r"r.toml:17: rules.0.when.0.at_most: .*, not two"),
        ("{user_id} got", "{user} got", r"r.toml:13: rules.0.text: has \{user\}, which is not an event field: write"),
        ("{user_id} got", "user} got", r"r.toml:13: rules.0.text: has an unmatched '\}': write '\}\}'"),
        ('to = ["app"]', 'to = ["apps"]', r"r.toml:23: rules.1.to: rule 'any' names 'apps': add \[destinations.apps\]"),
        ('to = ["ops", "app"]', 'to = ["app"]', r"r.toml:1: destinations.ops: no rule names the destination 'ops'"),
        ('name = "any"', 'name = "low"', r"r.toml:20: rules.1.name: two rules are named 'low': rename one"),
        ('text = "{action_type} of {user_id}"', "", r"r.toml:19: rules.1.text: is missing: add it"),
        ('actions = ["Rated"]', "actions = []", r"r.toml:10: rules.0: needs either actions, for events, or changes"),
        ("[[rules]]", "[[rules", r"r.toml is not TOML: "),
    ],
)
def test_errors_have_line_and_remedy(old: str, new: str, message: str) -> None:
    """A rule file can be corrected from the message alone."""
    assert old in GOOD
    with pytest.raises(ConfigurationError, match=message):
        parse_rules(GOOD.replace(old, new), "r.toml")


def test_an_array_with_a_mistake_is_not_empty() -> None:
    """Its only element is wrong; pydantic says also that none is left."""
    with pytest.raises(ConfigurationError) as caught:
        parse_rules(GOOD[: GOOD.index('[[rules]]\nname = "any"')].replace("at_most = 2", "at_mst = 2"), "r.toml")
    assert str(caught.value) == "r.toml:17: rules.0.when.0.at_mst: is not a key here: did you mean 'at_most'?"


def test_a_missing_file_is_named() -> None:
    """A wrong path is reported like any other error."""
    with pytest.raises(ConfigurationError, match=r"nothing\.toml cannot be read"):
        load_rules(REPOSITORY / "nothing.toml")
