"""Answers of a webhook: every attempt ends in a verdict, within the time that the rule file grants."""

import math
import random
import time
from pathlib import Path

from pipelines.notify.delivery import Notification, Outcome, backoff_seconds
from pipelines.notify.rules import Webhook
from pipelines.notify.template import Event
from pipelines.notify.webhook import open_webhook
from tests.fuzz.loopback_server import respond_with
from tests.fuzz.target import Target, demand
from tests.fuzz.targets import http

_REQUEST_SECONDS = 1.0
_GRACE_SECONDS = 3.0
"""What a busy machine may add."""
_LONGEST_REASON = 2_000
_IDS = ("e-1", " e ", "\r\nX: y", "\x00", "\u4e16\U0001f600", "", "%", "x" * 256)


def generate(rng: random.Random) -> bytes:
    """Return an answer; its first byte chooses the event_id, which stands in a header."""
    return bytes([rng.randrange(256)]) + http.generate(rng, _body)


def _body(rng: random.Random) -> bytes:
    return rng.choice((b"", b"ok", b"\xff" * 100, b"x" * 200_000))


def _expected(data: bytes) -> Outcome | None:
    """Return what a well-formed answer means."""
    head, _, body = data.partition(b"\r\n\r\n")
    status = head[9:12]
    if head != b"HTTP/1.1 %b x\r\nContent-Length: %d" % (status, len(body)) or not status.isdigit():
        return None
    if status.startswith(b"2") and (status != b"204" or not body):
        return Outcome.DELIVERED
    return Outcome.RETRY if status.startswith(b"5") or status in {b"408", b"429"} else None


def check(data: bytes) -> str:
    """Deliver a notification to it."""
    chosen, payload = data[:1], data[1:]
    event = Event(_IDS[(chosen or b"\0")[0] % len(_IDS)], "u", "A", "2026-03-01T12:00:00Z", {"k": "\u4e16"})
    with respond_with(payload) as port:
        url = f"http://127.0.0.1:{port}/hook"
        webhook = Webhook(kind="webhook", url=url, secret_file=Path("secret"), request_seconds=_REQUEST_SECONDS)
        transport = open_webhook(webhook, b"secret")
        started = time.monotonic()
        answer = transport.attempt(Notification(event, "rule", "text"))
        took = time.monotonic() - started
        transport.close()
    demand(took < _REQUEST_SECONDS + _GRACE_SECONDS, f"an attempt of {_REQUEST_SECONDS:g} s took {took:.0f} s")
    wanted = _expected(payload)
    demand(wanted is None or answer.outcome is wanted, f"{answer.outcome} instead of {wanted}")
    pause = backoff_seconds(1, answer.retry_after_seconds)
    demand(math.isfinite(pause) and 0 <= pause <= 3_600, f"a pause of {pause} s")
    demand(len(answer.reason) < _LONGEST_REASON and answer.reason.isprintable(), f"the reason: {answer.reason[:200]!r}")
    return f"{answer.outcome.name} {answer.reason[:40]}"


TARGETS = {"webhook": Target(generate, check, b"\0" + http.response(200, b"ok"), (), seconds=15)}
