"""Notifications of changes of the feed: which rules apply, and each change with the same id however often it comes."""

import json
import re
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from pipelines.contract.change_causes import CAUSES, START
from pipelines.contract.registry import Format
from pipelines.errors import ConfigurationError, TransientError
from pipelines.feed_causes import possible_causes
from pipelines.lake.tables import create_lake
from pipelines.notify.changes import Change
from pipelines.notify.conditions import PolicyNames
from pipelines.notify.events import decode_changes
from pipelines.notify.rule_file import parse_rules
from pipelines.notify.rules import Quiet, Rule, RuleFile
from pipelines.notify.run import plans
from pipelines.notify.template import fill
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import FeedSettings, Settings
from tests.conftest import REPOSITORY
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import command, notifying
from tests.notify.receiver import Receiver
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.test_feed import info, of_frame, opened
from tests.test_feed_relay import consumed_as_documented, in_format, relay, relayed, with_feed

_LEVEL = ["level.changed"]
_RULE = {"name": "r", "text": "{user_id}", "to": ["app"]}
_FILE = """
[destinations.ops]
kind = "webhook"
url = "{url}"
secret_env = "NOTIFY_TEST_SECRET"
begin = "earliest"

[[rules]]
name = "level"
changes = ["level.changed"]
text = "You are {{metadata.after}} now"
to = ["ops"]
[[rules.when]]
key = "direction"
equal = "up"

[[rules]]
name = "mean"
changes = ["score.changed"]
column = "all_time_stars"
falls_below = 4.6
text = "{{metadata.before}} to {{metadata.after}}"
to = ["ops"]
"""


def change(before: dict[str, Any] | None, after: dict[str, Any] | None, *causes: str) -> Change:
    at, causes = "2026-11-27T12:00:00.000000Z", causes or ("new event",)
    return Change(7, "ann", at, "default@1", causes, before or {}, after or {})


def applied(change: Change, **keys: Any) -> dict[str, str] | None:
    """Return the metadata of the event if a rule with these keys applies, without what is the same for all."""
    event = Rule.model_validate(_RULE | keys).event_of(change)
    return event and {key: value for key, value in event.metadata.items() if key not in {"number", "policy", "causes"}}


@pytest.mark.parametrize(
    ("keys", "before", "after", "metadata"),
    [
        ({"changes": ["score.changed"]}, 3, 5, {"before": "3", "after": "5", "direction": "up"}),
        ({"changes": ["score.changed"]}, 3, 3, None),
        ({"changes": ["score.changed"]}, None, 3, {"before": "", "after": "3"}),
        ({"changes": ["level.changed"]}, 3, 5, None),
        ({"changes": ["score.changed"], "falls_below": 5}, 5, 4, {"before": "5", "after": "4", "direction": "down"}),
        ({"changes": ["score.changed"], "falls_below": 5}, 4, 3, None),
        ({"changes": ["score.changed"], "falls_below": 5}, 6, 5, None),
        ({"changes": ["score.changed"], "falls_below": 5}, 6, None, None),
        ({"changes": ["score.changed"], "rises_above": 5}, 5, 6, {"before": "5", "after": "6", "direction": "up"}),
        ({"changes": ["score.changed"], "rises_above": 5}, None, 6, None),
        ({"changes": ["score.changed"], "rises_above": 5, "falls_below": 4}, 6, 3,
         {"before": "6", "after": "3", "direction": "down"}),
    ],
)  # fmt: skip
def test_a_threshold_is_crossed_from_a_number_to_a_number(
    keys: dict[str, Any], before: int | None, after: int | None, metadata: dict[str, str] | None
) -> None:
    """Exactly at the threshold is not below and not above it."""
    assert applied(change({"all_time_score": before}, {"all_time_score": after}), **keys) == metadata


def test_a_rule_has_the_first_kind_that_applies() -> None:
    """One change makes at most one event of a rule."""
    became_gold = change({"level": "Silver", "status": "active"}, {"level": "Gold", "status": "suspended"})
    assert applied(became_gold, changes=["status.changed", "level.changed"]) == {
        "before": "active",
        "after": "suspended",
    }
    gold = {"key": "after", "equal": "Gold"}
    assert applied(became_gold, changes=["status.changed", "level.changed"], when=[gold]) == {
        "before": "Silver", "after": "Gold"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "applies"),
    [
        ({}, [True, True, True]),
        ({"causes": ["new event", "correction"]}, [True, False, True]),
        ({"not_causes": ["policy", "decay"]}, [True, False, False]),
        ({"causes": ["policy"], "not_causes": ["new event"]}, [False, True, False]),
        ({"causes": ["account merged"]}, [False, False, False]),
    ],
)
def test_causes_restrict_a_rule(keys: dict[str, Any], applies: list[bool]) -> None:
    """At least one of `causes`, and none of `not_causes`, whichever of several causes moved the score."""
    causes = [("new event",), ("policy",), ("new event", "policy")]
    found = [applied(change({"level": "Silver"}, {"level": "Gold"}, *each), changes=_LEVEL, **keys) for each in causes]
    assert [metadata is not None for metadata in found] == applies


def test_causes_are_read_from_the_topic_and_told() -> None:
    """Each once, in the order of the record: two events are one cause."""
    causes = [("new event", "a"), ("new event", "b"), ("policy", None)]
    record = {"number": 7, "user_id": "ann", "as_of": "2026-11-27T12:00:00.000000Z", "policy": "p@2", "before": None}
    record |= {"after": {"level": "Gold"}, "causes": [{"cause": cause, "event_id": id_} for cause, id_ in causes]}
    read = decode_changes([SimpleNamespace(value=json.dumps(record).encode())], Settings().contract)
    ((_, found),) = read.events
    rule = Rule.model_validate(_RULE | {"changes": _LEVEL, "text": "{metadata.after} by {metadata.causes}"})
    event = rule.event_of(found)
    assert event is not None
    assert fill(rule.text, event) == "Gold by new event, policy"


def test_causes_of_rules_are_those_of_the_feed() -> None:
    """The page of the feed has each one, and a policy decides which it may have."""
    page = (REPOSITORY / "docs" / "score-changes.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| cause | event_id | when |")
    rows = re.findall(r"^\| (`.*?) \|", table.partition("\n\n")[0], re.MULTILINE)
    assert [cause for row in rows for cause in re.findall(r"`([a-z ]+)`", row)] == [*CAUSES, START]
    plain = possible_causes(load_policy("default").at(datetime(2026, 1, 1, tzinfo=UTC)))
    assert {"new event", "suspension", "policy", "recomputed"} <= plain <= set(CAUSES)
    assert plain.isdisjoint({"decay", "points from time", "penalty expired", "events of others"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'changes = ["level.changed"]',
            'changes = ["level.changed"]\ncauses = ["new evnt"]',
            r"rules:11: rules\.0\.causes: names the cause 'new evnt', which no change has: did you mean 'new event'\?",
        ),
        ('["level.changed"]', '["level.changed"]\nnot_causes = []', r"rules\.0\.not_causes: is empty: give a value"),
        ('["level.changed"]', '["level.changes"]', r"rules\.0\.changes\.0: has to be 'score\.changed'"),
        ('changes = ["level.changed"]', "", r"rules\.0: needs either actions, for events, or changes"),
        ('["score.changed"]', '["level.changed"]', r'rules:20: rules\.1\.column: needs changes = \["score\.changed"\]'),
        ("all_time_stars", "stars", r"rules\.1\.column: "),
        ('begin = "earliest"', 'quiet = { begins = "22:00", ends = "7" }', r"destinations\.ops\.quiet\.ends: "),
        ('begin = "earliest"', 'quiet = { begins = "22:00", ends = "07:00", zone = "Berlin" }', r"like Europe/Berlin"),
        ('begin = "earliest"', 'quiet = { begins = "07:00", ends = "07:00" }', r"never ends: give different times"),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    """A rule file can be corrected from the message alone."""
    text = _FILE.format(url="http://host")
    assert old in text
    with pytest.raises(ConfigurationError, match=message):
        parse_rules(text.replace(old, new))


def test_a_feed_is_needed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules about changes that are not recorded would never apply."""
    monkeypatch.setenv("NOTIFY_TEST_SECRET", "secret")
    rules = parse_rules(_FILE.format(url="http://host"))
    with pytest.raises(ConfigurationError, match=r"set feed\.enabled = true"):
        plans(rules, settings, lambda: pytest.fail("no Redis is needed"))
    fed = settings.model_copy(update={"feed": FeedSettings(enabled=True)})
    (plan,) = plans(rules, fed, lambda: pytest.fail("no Redis is needed"))
    assert (plan.name, plan.kafka.topic) == ("ops.scores", "karmalake.scores")
    monkeypatch.setattr("pipelines.boundary.extras.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"karmalake\[avro\]"):
        plans(rules, in_format(fed, "avro"), lambda: pytest.fail("no Redis is needed"))


@pytest.mark.parametrize(
    ("begins", "ends", "zone", "quiet_hours"),
    [
        ("22:00", "07:00", "UTC", {*range(22, 24), *range(7)}),
        ("01:30", "03:00", "UTC", {2}),
        ("22:00", "07:00", "Europe/Berlin", {*range(21, 24), *range(6)}),
    ],
)
def test_quiet_times(begins: str, ends: str, zone: str, quiet_hours: set[int]) -> None:
    """Each day, in local time, also over midnight."""
    quiet = Quiet(begins=begins, ends=ends, zone=zone)
    assert {hour for hour in range(24) if quiet.contains(datetime(2026, 1, 9, hour, tzinfo=UTC))} == quiet_hours


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"{}",
        b'{"causes":[1]}',
        b'{"causes":[]}',
        b'{"a":' * 9_999,
        b"\x09" + bytes(8),
        b"\x02",
        b"\x09" + b"\xff" * 30,
        b"\xff" * 20,
        b'{"causes":[],"number":1e99999999999999999999}',
        b'{"causes":[],"number":1,"user_id":"u","as_of":"","policy":"","before":[1],"after":null}',
    ],
)
def test_what_is_no_change_is_counted(value: bytes) -> None:
    """None ends the notifier (`not-blocked`); a record without a value is of an erased user, and no mistake."""
    contract = Settings().contract
    assert decode_changes([SimpleNamespace(value=value)], contract).malformed == 1
    assert decode_changes([SimpleNamespace(value=None)], contract).malformed == 0


@pytest.mark.jvm
@pytest.mark.parametrize(("form", "again"), [("json", "avro"), ("protobuf", "protobuf")])
def test_a_driver_gets_gold(
    form: Format,
    again: Format,
    bus: Settings,
    receiver: Receiver,
    write_rules: WriteRules,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the table to the receiver: what is relayed again has the same id, and what came in quiet time follows.

    The notifier reads every format, whatever its settings say.
    """
    fed, quiet = with_feed(bus), quieted(monkeypatch)
    create_lake(fed.lake_root)
    with opened(fed) as feed:
        for version, row in enumerate([_row("Silver", "4.7"), _row("Gold", "4.7"), _row("Gold", "4.50")], start=1):
            shown = pl.DataFrame({"user_id": ["ann"], "shown": [row]})
            feed.record(of_frame(shown), None, info(version))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.feed_relay.mark_relayed", _fail)
        with pytest.raises(TransientError):
            relay(in_format(fed, form))
    relay(in_format(fed, again))
    with notifying(fed, write_rules(_FILE.format(url=receiver.url))):
        wait_for("some turns", lambda: quiet["asked"] > 2)
        assert not receiver.requests
        quiet["now"] = False
        wait_for("all", lambda: len(receiver.keys) == 4)
    texts = {request.key: request.payload["text"] for request in receiver.requests}
    assert list(texts.values()) == ["You are Gold now", "4.7 to 4.50"]
    assert sorted(receiver.keys) == sorted([*texts, *texts])


@pytest.mark.slow
@pytest.mark.jvm
def test_a_compacted_topic(bus: Settings, kafka: KafkaCluster, receiver: Receiver, write_rules: WriteRules) -> None:
    """It has the newest change of each user, which suffices for a plain consumer; no rule applies to older ones.

    Offsets that a compaction removed are no loss (`feed-equals-reputation`).
    """
    fed = with_feed(bus)
    kafka.create_topic(fed.feed.topic, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01")
    create_lake(fed.lake_root)
    shown = dict[str, str]()
    versions = count(1)

    def publish(user_id: str, row: str) -> None:
        shown[user_id] = row
        frame = pl.DataFrame({"user_id": [*shown], "shown": [*shown.values()]})
        with opened(fed) as feed:
            feed.record(of_frame(frame), None, info(next(versions)))
        relay(fed)

    def is_compacted() -> bool:
        publish("zed", f'{{"user_id":"zed","all_time_score":{next(versions)}}}')
        return [key for key, _ in relayed(fed)].count(b"ann") == 1

    for row in (_row("Silver", "4.7"), _row("Gold", "4.7"), _row("Gold", "4.50")):
        publish("ann", row)
    wait_for("a compaction", is_compacted)
    assert consumed_as_documented(fed) == {user_id: json.loads(row) for user_id, row in shown.items()}
    with notifying(fed, write_rules(_FILE.format(url=receiver.url))) as done:
        publish("bob", _row("Silver", "4.7"))
        publish("bob", _row("Gold", "4.7"))
        wait_for("both", lambda: len(receiver.keys) == 2)
    assert sorted(request.payload["text"] for request in receiver.requests) == ["4.7 to 4.50", "You are Gold now"]
    assert done.losses == []


def quieted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make it quiet until a test says otherwise; return the switch, and how often it was asked."""
    quiet = {"now": True, "asked": 0}

    def is_quiet(_plan: object) -> bool:
        quiet["asked"] += 1
        return quiet["now"]

    monkeypatch.setattr("pipelines.notify.branch.Plan.is_quiet", is_quiet)
    return quiet


def _row(level: str, stars: str) -> str:
    score = {"Silver": 40, "Gold": 60}[level]
    return f'{{"user_id":"ann","level":"{level}","all_time_score":{score},"all_time_stars":{stars}}}'


def _fail(*_: object) -> None:
    raise TransientError("killed")


_NAMES = PolicyNames("p", ["all_time_score"], ["Silver", "Gold"], {"new event", "policy"})


def _parsed(**keys: Any) -> RuleFile:
    destination = {"kind": "redis_stream", "key": "app"}
    return RuleFile.model_validate(
        {"destinations": {"app": destination}, "rules": [_RULE | {"changes": ["level.changed"]} | keys]}
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"when": [{"key": "directions", "equal": "up"}]},
            "'directions', which no change has: did you mean 'direction'",
        ),
        ({"causes": ["start"]}, "the cause 'start', of the first publication, which notifies no one: remove it"),
        ({"causes": ["Gold"]}, "'Gold', which no change has: it has new event, retraction, correction, suspension"),
        ({"causes": ["decay", "policy"], "not_causes": ["policy"]}, "names 'policy', as causes does: remove it from"),
        (
            {"when": [{"key": key, "equal": "Gold"} for key in ("before", "after")]},
            "never applies: no change is from 'Gold' to the same value",
        ),
        (
            {"when": [{"key": key, "equal": ""} for key in ("before", "after")]},
            "never applies: no change is from '' to the same value",
        ),
        ({"not_causes": [*CAUSES]}, "never applies: it names every cause that a change can have"),
        (
            {"when": [{"key": "causes", "equal": "policy"}]},
            "a condition on 'causes', which may be several: write causes",
        ),
        (
            {"changes": [], "actions": ["Rated"], "not_causes": ["policy"]},
            "needs changes: events have no causes",
        ),
        ({"when": [{"key": "rating", "at_most": 2}]}, "'rating', which no change has: it has before, after, direction"),
        ({"text": "now {metadata.aftr}"}, "'aftr', which no change has: did you mean 'after'"),
        (
            {"when": [{"key": "direction", "equal": "upp"}]},
            "'direction' in level.changed is never 'upp': did you mean 'up'",
        ),
        (
            {"when": [{"key": "direction", "at_least": 1}]},
            "no value of 'direction' in level.changed .*: it is up or down",
        ),
        ({"changes": ["status.changed"], "when": [{"key": "after", "equal": "suspend"}]}, "did you mean 'suspended'"),
        (
            {"changes": ["score.changed"], "when": [{"key": "after", "at_least": 3, "at_most": 2}]},
            "no value of 'after'",
        ),
        ({"when": [{"key": "after", "equal": "Gold"}, {"key": "after", "equal": "Silver"}]}, "no value of 'after'"),
        ({"changes": [], "actions": ["Rated"], "when": [{"key": "stars", "at_least": 3, "equal": "two"}]}, "'stars'"),
    ],
)
def test_a_rule_that_never_applies_is_refused(keys: dict[str, Any], message: str) -> None:
    """By what is known without a policy: the keys of changes, and the values of direction and status."""
    with pytest.raises(ValidationError, match=message):
        _parsed(**keys)


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ({"when": [{"key": "after", "equal": "Gold"}]}, []),
        ({"when": [{"key": "after", "equal": ""}]}, []),
        ({"changes": ["level.changed", "status.changed"], "when": [{"key": "after", "equal": "suspended"}]}, []),
        ({"changes": ["score.changed"], "when": [{"key": "after", "equal": "3"}]}, []),
        ({"when": [{"key": "after", "equal": "Golt"}]},
         ["rule 'r' never applies: 'after' in level.changed is never 'Golt': did you mean 'Gold'?"]),
        ({"causes": ["policy", "decay"], "not_causes": ["points from time"]}, []),
        ({"causes": ["decay", "suspension"]},
         ["rule 'r' never applies: no change under the policy p has the cause decay or suspension"]),
        ({"changes": ["score.changed"], "column": "all_time_scor"},
         ["rule 'r' names the column 'all_time_scor', which the policy p does not have: did you mean "  # noqa: ISC004
          "'all_time_score'?"]),
        ({"changes": ["score.changed"], "column": "last_7_days_x"},
         ["rule 'r' names the column 'last_7_days_x', which the policy p does not have: it has all_time_score"]),
    ],
)  # fmt: skip
def test_what_a_policy_does_not_have(keys: dict[str, Any], problems: list[str]) -> None:
    """Columns, whose names begin with a view, levels, and causes."""
    assert _parsed(**keys).foreign_names(_NAMES) == problems


def test_a_policy_without_levels_changes_none() -> None:
    """A rule about nothing else never applies."""
    (problem,) = _parsed().foreign_names(PolicyNames("default", ["all_time_score"], [], {"policy"}))
    assert problem == "rule 'r' never applies: the policy default has no levels"


_COLUMN = """
[destinations.app]
kind = "webhook"
url = "https://app.example.com"
secret_env = "NOTIFY_TEST_SECRET"

[[rules]]
name = "mean"
changes = ["score.changed"]
column = "all_time_scor"
text = "{user_id}"
to = ["app"]
"""


def test_the_command_compares_names_with_the_policy_in_force(settings: Settings, write_rules: WriteRules) -> None:
    """`--check` refuses what it does not have, and says so where there is no lake, whose policy is not known."""
    fed, rules = settings.model_copy(update={"feed": FeedSettings(enabled=True)}), write_rules(_COLUMN)
    checked = command(fed, rules, "--check")
    assert "not compared with the policy: there is no lake at" in checked.communicate(timeout=PATIENCE_SECONDS)[0]
    assert checked.returncode == 0
    create_lake(fed.lake_root)
    checked = command(fed, rules, "--check")
    assert "rule 'mean' names the column 'all_time_scor', which the policy default does not have: did you mean" in (
        " ".join(checked.communicate(timeout=PATIENCE_SECONDS)[0].split())
    )
    assert checked.returncode == 78


_ACTIONS = """
[destinations.app]
kind = "webhook"
url = "https://app.example.com"
secret_env = "NOTIFY_TEST_SECRET"

[[rules]]
name = "rated"
actions = ["DriverRated", "UserRatd", "UserReprted", "PasswordForgotten"]
text = "{user_id}"
to = ["app"]
"""


def test_actions_that_resemble_one_of_the_policy_are_named(settings: Settings, write_rules: WriteRules) -> None:
    """By `--check`, as hints: events without points may have any name. Without a lake there is nothing to compare."""
    rules = write_rules(_ACTIONS)
    assert "warning" not in command(settings, rules, "--check").communicate(timeout=PATIENCE_SECONDS)[0]
    create_lake(settings.lake_root)
    checked = command(settings, rules, "--check")
    said = " ".join(checked.communicate(timeout=PATIENCE_SECONDS)[0].split())
    assert checked.returncode == 0
    assert "rule 'rated': the policy default has no action 'UserRatd': did you mean 'UserRated'?" in said
    assert "DriverRated'" not in said
    assert "PasswordForgotten" not in said


def test_a_rule_behind_one_that_always_applies_is_refused() -> None:
    """A destination receives an event or change once, by the first rule."""
    always, column = {"changes": ["score.changed"]}, {"changes": ["score.changed"], "column": "all_time_rating_average"}
    falls = always | {"falls_below": 4}

    def file(*rules: dict[str, Any]) -> dict[str, Any]:
        named = [_RULE | {"name": f"r{number}"} | rule for number, rule in enumerate(rules)]
        return {"destinations": {"app": {"kind": "redis_stream", "key": "app"}}, "rules": named}

    RuleFile.model_validate(file(falls, column, always))
    with pytest.raises(ValidationError, match=r"'r1' never applies to 'app': 'r0' before it .* put 'r1' first"):
        RuleFile.model_validate(file(always, falls))
