"""Consistency of the lake with the books of the teams: each event once, and nothing else."""

import csv
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from io import StringIO
from typing import Any, NamedTuple

import duckdb

from examples.foreign.town import Town
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import is_lake, open_lake
from pipelines.reputation.lake_views import create_lake_views

_EVENTS = """
SELECT topic, event_id, user_id, action_type, epoch_us(event_time), metadata['stars'] FROM events
"""
_ACCOUNT = """
SELECT topic, sum("read")::INT, sum(filtered)::INT, sum(made)::INT, sum(accepted)::INT, sum(duplicates)::INT
FROM (SELECT unnest(ranges, recursive := true) FROM commits)
GROUP BY topic
ORDER BY topic
"""
_NAMES = {
    "rated": ("{ref}", "RideRated"),
    "paid": ("{ref}/payer", "RidePaid"),
    "received": ("{ref}/payee", "FareReceived"),
    "refunded": ("{ref}", "RideRefunded"),
    "warned": ("{ref}", "com.example.account.warned"),
    "suspended": ("{ref}", "com.example.account.suspended"),
    "reinstated": ("{ref}", "com.example.account.reinstated"),
    "reviewed": ("shop.shop.public.reviews/{ref}", "ReviewPosted"),
    "corrected": ("shop.shop.public.reviews/{ref}", "ReviewCorrected"),
    "deleted": ("shop.shop.public.reviews/{ref}", "RatingRetracted"),
}
"""By what a line of the books says happened: the event_id and the action_type that the source files give it."""
Event = tuple[str, str, str, str, int, str | None]
"""Topic, event_id, user_id, action_type, microseconds since 1970, and stars if there are any."""


class Account(NamedTuple):
    """A topic: its records, those that make no event, the events of the others, and how many of those are new."""

    topic: str
    records: int
    filtered: int
    made: int
    accepted: int
    duplicates: int


def accounts(town: Town) -> list[Account]:
    """Return what the lake's commits count for each topic."""
    return [Account(*row) for row in _query(town, _ACCOUNT)]


def remaining_records(town: Town) -> int:
    """Return how many records are in the books and not yet read by a commit."""
    sent = sum(len(lines) for lines in town.books().values())
    if not is_lake(town.settings.lake_root):
        return sent
    [(read,)] = _query(town, "SELECT coalesce(sum(next_offset), 0) FROM checkpoints")
    return sent - int(read)


def disagreements(town: Town) -> list[str]:
    """Return a sentence for each disagreement of the lake with the books, and for each failed command."""
    expected, found = Counter[tuple[Any, ...]](_expected(town)), Counter[tuple[Any, ...]](_query(town, _EVENTS))
    expected.update(_account(topic, lines) for topic, lines in town.books().items())
    found.update(accounts(town))
    problems = [f"in the books, but not in the lake: {each}" for each in expected - found]
    problems += [f"in the lake, but not in the books: {each}" for each in found - expected]
    for command in ("refresh", "publish", "verify", "audit"):
        done = town.command(command)
        problems += [f"{command}: {done.stdout}{done.stderr}"] if done.returncode else []
    return problems


def explained(town: Town, person: str) -> list[dict[str, str]]:
    """Return the rows of `karmalake explain`, each with the topic that the books give the event."""
    topics = {event[1]: event[0] for event in _expected(town)}
    table = town.command("explain", person, "--format", "csv").stdout
    return [row | {"topic": topics[row["event_id"]]} for row in csv.DictReader(StringIO(table))]


def misordered(rows: list[dict[str, str]], suspended: datetime) -> list[str]:
    """Return what is wrong with the explanation of a person who is suspended from some time on."""
    times = [datetime.fromisoformat(row["event_time"]) for row in rows]
    gated = [row for row, time in zip(rows, times, strict=True) if time > suspended]
    problems = [
        (times != sorted(times), "the events are not in the order of their times"),
        (len({row["topic"] for row in rows}) < 3, "the events are of fewer than three topics"),
        (len({row["topic"] for row in gated}) < 2, "the suspension precedes the events of fewer than two topics"),
        (any(float(row["earned"]) for row in gated), "events earn points during the suspension"),
        (not any(row["reason"] == "suspended" for row in gated), "no event is suspended"),
    ]
    return [sentence for is_wrong, sentence in problems if is_wrong]


def _expected(town: Town) -> Iterator[Event]:
    """Yield the events that the books describe, each once."""
    for topic, lines in town.books().items():
        for each in (each for record in lines if not record["again"] for each in record["lines"]):
            event_id, action = _NAMES[each["what"]]
            at = datetime.fromisoformat(each["at"])
            micros = int(at.timestamp()) * 1_000_000 + at.microsecond
            yield topic, event_id.format(ref=each["ref"]), each["person"], action, micros, each.get("stars")


def _account(topic: str, lines: list[dict[str, Any]]) -> Account:
    made = [len(record["lines"]) for record in lines]
    again = sum(len(record["lines"]) for record in lines if record["again"])
    return Account(topic, len(lines), made.count(0), sum(made), sum(made) - again, again)


def _query(town: Town, sql: str) -> list[Any]:
    with duckdb.connect() as connection:
        create_lake_views(connection, take_snapshot(open_lake(town.settings.lake_root)))
        return connection.execute(sql).fetchall()
