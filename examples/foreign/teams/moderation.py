"""The moderation team: CloudEvents 1.0 over Kafka, in structured mode from one service and in binary mode from another.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

import json
import random
from collections.abc import Iterator
from datetime import datetime

from examples.foreign.teams.team import PEOPLE, RIDER, Record, line, moments

TOPIC = "moderation"
_SOURCE = "/moderation/eu"
_WARNED_SHARE = 0.6


def decisions(seed: int) -> Iterator[Record]:
    """Yield warnings, suspensions and reinstatements. `RIDER` is warned at most."""
    rng, suspended = random.Random(f"moderation {seed}"), set[str]()  # noqa: S311 - reproducible
    for number, at in enumerate(moments(rng)):
        person, verdict = rng.choice(PEOPLE), "warned"
        if person != RIDER and rng.random() > _WARNED_SHARE:
            verdict = "reinstated" if person in suspended else "suspended"
            suspended ^= {person}
        yield decision(f"decision-{number}", person, verdict, at, is_binary=rng.random() < 0.5)


def decision(name: str, person: str, verdict: str, at: datetime, *, is_binary: bool) -> Record:
    """Return a decision about a person that is in force from `at` on, in one of the two modes."""
    time = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    kind, data = f"com.example.account.{verdict}", {"account": person, "by": "moderator-7"}
    attributes = {"specversion": "1.0", "id": name, "source": _SOURCE, "type": kind, "time": time}
    lines = (line(person, verdict, f"{_SOURCE}/{name}", at),)
    if is_binary:
        headers = [(f"ce_{key}", value.encode()) for key, value in attributes.items()]
        content_type = ("content-type", b"application/json")
        return Record(json.dumps(data).encode(), lines, person.encode(), (*headers, content_type))
    value = json.dumps(attributes | {"datacontenttype": "application/json", "data": data}).encode()
    return Record(value, lines, person.encode(), (("content-type", b"application/cloudevents+json; charset=UTF-8"),))
