"""The payments team: JSON as providers send it. A payment concerns payer and payee, and a ping no one."""

import json
import random
from collections import deque
from collections.abc import Iterator
from datetime import datetime

from examples.foreign.teams.team import PEOPLE, Record, line, moments

TOPIC = "payments"
_KINDS, _WEIGHTS = ("payment.succeeded", "payment.refunded", "ping"), (80, 8, 12)
_FEE_SHARE = 0.1


def payments(seed: int) -> Iterator[Record]:
    """Yield payments, refunds of recent payments, and pings."""
    rng = random.Random(f"payments {seed}")  # noqa: S311 - reproducible
    recent = deque([("payment-0", PEOPLE[0])], maxlen=20)
    for number, time in enumerate(moments(rng), start=1):
        at = time.replace(microsecond=0)
        (kind,) = rng.choices(_KINDS, _WEIGHTS)
        if kind == "payment.succeeded":
            payer, payee = rng.sample(PEOPLE, 2)
            recent.append((f"payment-{number}", payer))
            yield _payment(f"payment-{number}", payer, None if rng.random() < _FEE_SHARE else payee, at)
        elif kind == "payment.refunded":
            yield _refund(f"refund-{number}", *rng.choice(recent), at)
        else:
            yield _record(kind, f"ping-{number}", at, {})


def _payment(name: str, payer: str, payee: str | None, at: datetime) -> Record:
    """Return a payment; one without a payee is a fee."""
    accounts = {"payer": {"account": payer}, "payee": payee and {"account": payee}}
    lines = [line(payer, "paid", name, at)] + ([line(payee, "received", name, at)] if payee else [])
    return _record("payment.succeeded", name, at, {"payment": {**accounts, "amount_cents": 1250}}, *lines)


def _refund(name: str, payment: str, payer: str, at: datetime) -> Record:
    payload = {"refund": {"of": payment, "account": payer}}
    return _record("payment.refunded", name, at, payload, line(payer, "refunded", name, at))


def _record(kind: str, name: str, at: datetime, payload: dict[str, object], *lines: dict[str, str]) -> Record:
    return Record(json.dumps({"id": name, "type": kind, "created": int(at.timestamp()), **payload}).encode(), lines)
