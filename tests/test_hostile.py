"""Users, events and metadata with hostile names, end to end: each is found by its own name only."""

import json
import sys
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from pipelines.boundary.text import escape_text
from pipelines.cli import main
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.emit.producer import Record
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase
from pipelines.operate.verify import verify
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.client import connect
from pipelines.serving.keys import key_pattern
from pipelines.serving.read import read_rank, read_reputation
from pipelines.settings import Settings
from tests.draining import NOON, drain_all, query, send, with_ingest

HOSTILE = [
    " ",
    "'; DROP TABLE events; --",
    '"quoted" and \\ and `ticks`',
    "new\nline\r\n$3\r\nfoo\r\n",
    "\0nul\0inside",
    "../../etc/passwd",
    "*",
    "[a-z]?\\",
    ".publication",
    "{0} %s ${HOME} {{user_id}}",
    "--help",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\u0645\u0631\u062d\u0628\u0627 \u202e gnirts",
    "\x1b]0;title\x07\x1b[31mred\x9b2J",
    "\ufeffmark",
    "<script>alert(1)</script>",
    "e\u0301",
    "\u00e9",
    "\u200e\u200f\u061cmarks\u2069\u2028\x85\x7f",
    "[bold red]markup[/bold red][link=https://evil.example]x[/link]",
    '=HYPERLINK("https://evil.example")',
    "![x](https://evil.example/x.png)|`code`",
    "long" * 64,
]
TOO_LONG = "x" * 65_536


@pytest.fixture
def bus(settings: Settings) -> Settings:
    """Return settings with a lake, a warehouse and documents of these users: the n-th has n + 1 events."""
    redis = settings.redis.model_copy(update={"leaderboards": ("all_time",)})
    bus = with_ingest(settings.model_copy(update={"redis": redis}))
    events = [_event(user, f"{n}-{user[:100]}", n) for user in HOSTILE for n in range(HOSTILE.index(user) + 1)]
    send(bus, [*events, _event(TOO_LONG, "too long", 0), _event("u", TOO_LONG, 0)])
    drain_all(bus)
    refresh_warehouse(bus)
    publish_warehouse(bus)
    return bus


def _event(user: str, event_id: str, n: int) -> Record:
    metadata = [("rating", "5"), (user[:200], user[:200]), ("n", str(n))]
    row = {"event_id": event_id, "user_id": user, "action_type": "DriverRated", "event_time": NOON}
    [value] = encode(pa.Table.from_pylist([row | {"metadata": metadata}], EVENT)).to_pylist()
    return Record(user.encode(), value)


def test_every_user_is_served_their_own_document(bus: Settings) -> None:
    """In the lake, the warehouse, SQL, Redis and the leaderboard; oversized names are dead letters (`once`)."""
    counts = {user: number + 1 for number, user in enumerate(HOSTILE)}
    assert dict(query(bus, "SELECT user_id, count(*) FROM events GROUP BY ALL")) == counts
    reasons = "SELECT reason, count(*) FROM dead_letters GROUP BY ALL ORDER BY ALL"
    assert query(bus, reasons) == [("oversized_event_id", 1), ("oversized_user_id", 1)]
    with Warehouse(bus.warehouse_path) as warehouse:
        scores = {user: _score(warehouse, user) for user in HOSTILE}
    assert all(first < second for first, second in pairwise(scores.values()))
    documents: dict[str, Any] = {user: read_reputation(user, bus) for user in HOSTILE}
    assert {user: document["user_id"] for user, document in documents.items()} == {user: user for user in HOSTILE}
    assert {user: document["reputation_all_time"]["score"] for user, document in documents.items()} == scores
    ranks = [read_rank(user, "all_time", bus) for user in HOSTILE]
    assert ranks == list(range(len(HOSTILE), 0, -1))
    with connect(bus.redis) as client:
        keys = {key.decode().removeprefix(bus.redis.prefix) for key in client.scan_iter(key_pattern(bus.redis.prefix))}
    assert {f":{user}" for user in HOSTILE} < keys
    assert [check for check in verify(bus) if check.passed is False] == []
    assert audit(bus).passed


def _score(warehouse: Warehouse, user: str) -> int:
    [[score]] = warehouse.sql("SELECT all_time_score FROM reputation WHERE user_id = ?", [user]).rows()
    return score


@pytest.mark.slow
def test_every_user_can_be_explained_and_shown(
    bus: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands find exactly that user and print no control characters or line breaks of a name."""
    assert bus.redis.url is not None
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(bus.data_dir))
    monkeypatch.setenv("KARMALAKE_REDIS_URL", bus.redis.url.get_secret_value())
    monkeypatch.setenv("KARMALAKE_REDIS_PREFIX", bus.redis.prefix)
    monkeypatch.setattr("pipelines.cli.output.quiet_libraries", lambda: None)  # loggers outlive a test
    for number, user in enumerate(HOSTILE):
        if "\0" in user:  # impossible on a command line
            continue
        output = _run(monkeypatch, capsys, "explain", "--", user)
        counted = f"{number + 1} contributions add up" if number else "1 contribution adds up"
        assert f"\n{escape_text(user)}: {counted} to a score of" in output
        assert len(output.splitlines()) == number + 4
        assert [character for character in output if ord(character) < 32 and character != "\n"] == []
        assert not set(output) & set("\x9b\u202e\ufeff")
        assert json.loads(_run(monkeypatch, capsys, "show", "--", user))["user_id"] == user
    assert "oversized_user_id" in _run(monkeypatch, capsys, "dead-letters", "list")


def _run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["karmalake", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert ended.value.code in {0, None}, output.err
    return output.out


def test_every_user_can_be_erased_separately(bus: Settings) -> None:
    """An erasure affects no other user, also none whose name looks the same (`erasable`)."""
    erased = [
        user for user in HOSTILE if user in {"*", "[a-z]?\\", "../../etc/passwd", "\0nul\0inside", "e\u0301", " "}
    ]
    assert erase(bus, erased).rows.events == sum(HOSTILE.index(user) + 1 for user in erased)
    remaining = [user for user in HOSTILE if user not in erased]
    assert {user for (user,) in query(bus, "SELECT DISTINCT user_id FROM events")} == set(remaining)
    assert [user for user in HOSTILE if read_reputation(user, bus)] == remaining
    assert [check for check in verify(bus) if check.passed is False] == []
