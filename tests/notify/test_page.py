"""The examples of docs/notifications.md work."""

import os
import re
import sqlite3
from base64 import b64encode
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import Record
from pipelines.notify.changes import Change
from pipelines.notify.delivery import Notification
from pipelines.notify.rule_file import parse_rules
from pipelines.notify.rules import RedisStream, RuleFile, Webhook
from pipelines.notify.template import Event, fill
from pipelines.notify.webhook import open_webhook
from pipelines.settings import FeedSettings, Settings
from tests.commands import Started
from tests.conftest import REPOSITORY
from tests.draining import send, valid_records
from tests.notify.notifiers import command
from tests.notify.receiver import SECRET, Receiver
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for


def _blocks(language: str) -> list[str]:
    page = (REPOSITORY / "docs" / "notifications.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_rule_file_of_the_page_is_valid() -> None:
    """It contains every kind of destination, with the default values."""
    (block,) = _blocks("toml")
    rules = parse_rules(block)
    ops, app = rules.destinations["ops"], rules.destinations["app"]
    assert isinstance(ops, Webhook)
    assert isinstance(app, RedisStream)
    assert (ops.request_seconds, ops.attempts, ops.lanes, app.max_length) == (10, 8, 4, 100_000)
    assert ops == Webhook(kind="webhook", url=ops.url, secret_env=ops.secret_env)
    rated = Event("e", "ada", "DriverRated", "", {"rating": "5"})
    assert [rule.name for rule in rules.rules_for("app") if rule.matches(rated)] == ["rated"]
    assert _of_gold(rules, "new event") == ("gold", "You are Gold now")
    assert _of_gold(rules, "new event", "policy") == ("gold", "You are Gold now")
    assert _of_gold(rules, "policy") is None
    assert _of_gold(rules, "reinstatement", "decay") is None


def test_the_example_is_valid_as_it_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`examples/notify.toml`, with what its head asks for."""
    monkeypatch.setenv("SUPPORT_WEBHOOK_SECRET", "secret")
    rules, fed = (
        REPOSITORY / "examples" / "notify.toml",
        settings.model_copy(update={"feed": FeedSettings(enabled=True)}),
    )
    with ended(command(fed, rules, "--check")) as process:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output.splitlines()[-1]) == (
        0,
        f"{rules} is valid; destinations: support, drivers.scores",
    )


def _of_gold(rules: RuleFile, *causes: str) -> tuple[str, str] | None:
    """Return the rule that applies to a driver who became gold for some causes, and the text."""
    below, gold = {"level": "Silver", "all_time_score": 9}, {"level": "Gold", "all_time_score": 10}
    risen = Change(1, "ada", "", "default@1", causes, below, gold)
    found = ((rule, event) for rule in rules.rules_for("app") if (event := rule.event_of(risen)))
    return next(((rule.name, fill(rule.text, event)) for rule, event in found), None)


def test_the_receiver_of_the_page_accepts_genuine_requests(receiver: Receiver) -> None:
    """It accepts signed requests, and rejects changed or replayed ones."""
    names: dict[str, Any] = {}
    exec(_blocks("python")[1], names)  # noqa: S102 # our own page
    transport = open_webhook(Webhook(kind="webhook", url=receiver.url, secret_env="S"), SECRET.encode())  # noqa: S106
    transport.attempt(Notification(Event("e-1", "ada", "Rated", "", {}), "low", "ada"))
    transport.close()
    (request,) = receiver.requests
    is_genuine, secret = names["is_genuine"], SECRET.encode()
    assert is_genuine(secret, request.headers, request.body)
    assert not is_genuine(b"another", request.headers, request.body)
    assert not is_genuine(secret, request.headers, request.body + b" ")
    assert not is_genuine(secret, request.headers | {"Karmalake-Timestamp": "1"}, request.body)


def test_the_library_of_the_page_accepts_genuine_requests(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a secret in the form of the page; changed or foreign requests give None."""
    names: dict[str, Any] = {}
    exec(_blocks("python")[0], names)  # noqa: S102 # our own page
    secret = "whsec_" + b64encode(bytes(range(32))).decode()
    monkeypatch.setenv("OPS_WEBHOOK_SECRET", secret)
    transport = open_webhook(Webhook(kind="webhook", url=receiver.url, secret_env="S"), secret.encode())  # noqa: S106
    transport.attempt(Notification(Event("e.1 ", "ada", "Rated", "", {}), "low", "ada"))
    transport.close()
    (request,) = receiver.requests
    verified = names["verified"]
    assert verified(request.headers, request.body) == request.payload
    assert verified(request.headers, request.body + b" ") is None
    for changed in ({"webhook-id": "e.1"}, {"webhook-timestamp": "1"}, {"webhook-signature": "?"}):
        assert verified(request.headers | changed, request.body) is None
    assert verified({}, request.body) is None


@pytest.mark.jvm
def test_the_branch_of_the_page_runs(bus: Settings, tmp_path: Path) -> None:
    """Repeats count once, malformed records are skipped, and it resumes where it stopped."""
    code = _blocks("python")[2]
    assert sum(map(bool, map(str.strip, code.splitlines()))) <= 30
    send(bus, [*_ratings(0, 5), *_ratings(3, 8), *valid_records(range(3)), Record(b"k", b"\xff"), Record(b"k", None)])
    _run_until(8, code, bus, tmp_path)
    send(bus, _ratings(6, 12))
    _run_until(12, code, bus, tmp_path)


def _run_until(rows: int, code: str, settings: Settings, folder: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
    }
    with ended(Started(["-c", code], env=environment, cwd=folder)) as branch:
        wait_for(f"{rows} ratings", lambda: branch.poll() is not None or _count(folder) == rows)
        branch.terminate()
        assert branch.wait(PATIENCE_SECONDS) == 0
    assert _count(folder) == rows


def _count(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "ratings.db", timeout=10)) as database:
        exists = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'ratings'").fetchone()[0]
        return database.execute("SELECT count(*) FROM ratings").fetchone()[0] if exists else 0


def _ratings(start: int, end: int) -> list[Record]:
    rows = [
        {
            "event_id": f"r-{number}",
            "user_id": "ada",
            "action_type": "DriverRated",
            "event_time": datetime(2026, 3, 1, tzinfo=UTC),
            "metadata": [("rating", "5")],
        }
        for number in range(start, end)
    ]
    return [Record(b"ada", value) for value in encode(pa.Table.from_pylist(rows, EVENT)).to_pylist()]
