"""A team: it sends its records to its topic, and keeps books of what it sent."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaProducer

RIDER = "rider-0"
"""The rider whose score the demo explains."""
PEOPLE = [*(f"rider-{n}" for n in range(25)), *(f"driver-{n}" for n in range(15))]
_START = datetime(2025, 1, 6, 8, tzinfo=UTC)
_MAX_STEP_US = 600_000_000
_RESEND_SHARE = 0.03
_PARTITIONS = 2


@dataclass(frozen=True, slots=True)
class Record:
    """A record, and the lines of the books about it: one for each person that it concerns."""

    value: bytes | None
    lines: tuple[dict[str, str], ...] = ()
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    is_again: bool = False
    """Whether it was sent before: teams send again what they are not sure about."""


def moments(rng: random.Random) -> Iterator[datetime]:
    """Yield the times of a team's records: on average five minutes apart."""
    at = _START
    while True:
        at += timedelta(microseconds=rng.randrange(_MAX_STEP_US))
        yield at


def line(person: str, what: str, ref: str, at: datetime, **more: str) -> dict[str, str]:
    """Return a line of the books: what happened to whom and when, and the team's own reference for it."""
    return {"person": person, "what": what, "ref": ref, "at": at.isoformat(timespec="microseconds"), **more}


class Team:
    """A team with an endless sequence of records. `books` has a line of JSON for each one that the broker has."""

    def __init__(self, topic: str, records: Iterator[Record], brokers: str, folder: Path) -> None:
        self.topic = topic
        self.books = folder / f"{topic}.jsonl"
        self._records = _with_resends(records, random.Random(topic))  # noqa: S311 - reproducible
        client: Any = KafkaAdminClient
        with client(bootstrap_servers=brokers) as admin:
            admin.create_topics({topic: {"num_partitions": _PARTITIONS, "replication_factor": 1}})
            admin.wait_for_topics([topic])
        self._producer: Any = KafkaProducer(bootstrap_servers=brokers, acks="all")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._producer.close()

    def work(self, count: int) -> None:
        """Send the next records."""
        self.send(islice(self._records, count))

    def send(self, records: Iterable[Record]) -> None:
        """Send records, and write the books when the broker has all of them."""
        sent = list(records)
        futures = [self._producer.send(self.topic, r.value, r.key, list(r.headers)) for r in sent]
        self._producer.flush()
        for future in futures:
            future.get(0)
        with self.books.open("a", encoding="utf-8") as books:
            books.writelines(json.dumps({"again": r.is_again, "lines": r.lines}) + "\n" for r in sent)


def _with_resends(records: Iterator[Record], rng: random.Random) -> Iterator[Record]:
    for record in records:
        yield record
        if rng.random() < _RESEND_SHARE:
            yield replace(record, is_again=True)
