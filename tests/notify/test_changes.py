"""Notifications of changes of the feed: which rules apply, and each change with the same id however often it comes."""

import json
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from pipelines.errors import ConfigurationError, TransientError
from pipelines.feed import Shown
from pipelines.lake.tables import create_lake
from pipelines.notify.changes import Change
from pipelines.notify.events import decode_changes
from pipelines.notify.rule_file import parse_rules
from pipelines.notify.rules import Quiet, Rule
from pipelines.notify.run import plans
from pipelines.reputation.recent_events import RECENT
from pipelines.settings import FeedSettings, Settings
from tests.notify.conftest import WriteRules
from tests.notify.notifiers import notifying
from tests.notify.receiver import Receiver
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import wait_for
from tests.test_feed import info, opened
from tests.test_feed_relay import consumed_as_documented, relay, relayed, with_feed

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


def change(before: dict[str, Any] | None, after: dict[str, Any] | None) -> Change:
    return Change(7, "ann", "2026-11-27T12:00:00.000000Z", "default@1", before or {}, after or {})


def applied(change: Change, **keys: Any) -> dict[str, str] | None:
    """Return the metadata of the event if a rule with these keys applies, without what is the same for all."""
    event = Rule.model_validate(_RULE | keys).event_of(change)
    return event and {key: value for key, value in event.metadata.items() if key not in {"number", "policy"}}


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
    ("old", "new", "message"),
    [
        ('["level.changed"]', '["level.changes"]', r"rules\.0\.changes\.0: has to be 'score\.changed'"),
        ('changes = ["level.changed"]', "", r"rules\.0: needs either actions, for events, or changes"),
        ('["score.changed"]', '["level.changed"]', r'rules\.1: has column, which needs changes = \["score\.changed"\]'),
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


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"7", b"{}", b'{"causes":[1]}', b'{"causes":[]}', b"[" * 9_999])
def test_what_is_no_change_is_counted(value: bytes) -> None:
    """Nothing of it ends the notifier; a record without a value is of an erased user, and no mistake."""
    contract = Settings().contract
    assert decode_changes([SimpleNamespace(value=value)], contract).malformed == 1
    assert decode_changes([SimpleNamespace(value=None)], contract).malformed == 0


@pytest.mark.jvm
def test_a_driver_gets_gold(
    bus: Settings, receiver: Receiver, write_rules: WriteRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the table to the receiver: what is relayed again has the same id, and what came in quiet time follows."""
    fed, quiet = with_feed(bus), quieted(monkeypatch)
    create_lake(fed.lake_root)
    with opened(fed) as feed:
        for version, row in enumerate([_row("Silver", "4.7"), _row("Gold", "4.7"), _row("Gold", "4.50")], start=1):
            shown = pl.DataFrame({"user_id": ["ann"], "shown": [row]})
            feed.record(
                Shown(lambda _users, shown=shown: shown, lambda _: pl.DataFrame(schema=RECENT)), None, info(version)
            )
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.feed_relay.mark_relayed", _fail)
        with pytest.raises(TransientError):
            relay(fed)
    relay(fed)
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
            feed.record(Shown(lambda _: frame, lambda _: pl.DataFrame(schema=RECENT)), None, info(next(versions)))
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
