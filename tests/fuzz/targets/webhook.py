"""Responses of a webhook: every attempt has a result within the time limit of the rule file."""

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
_GRACE_SECONDS = 10.0
"""Additional time for a busy machine."""
_MAX_REASON_CHARACTERS = 2_000
_IDS = ("e-1", " e ", "\r\nX: y", "\x00", "\u4e16\U0001f600", "", "%", "x" * 256)


def generate(rng: random.Random) -> bytes:
    """Return a response; its first byte selects the event_id, which is sent in a header."""
    return bytes([rng.randrange(256)]) + http.generate(rng, _body)


def _body(rng: random.Random) -> bytes:
    return rng.choice((b"", b"ok", b"\xff" * 100, b"x" * 200_000))


def _expected(data: bytes) -> Outcome | None:
    """Return the outcome of a well-formed response."""
    head, end, body = data.partition(b"\r\n\r\n")
    status = head[9:12]
    if not end or head != b"HTTP/1.1 %b x\r\nContent-Length: %d" % (status, len(body)) or not status.isdigit():
        return None
    if status.startswith(b"2") and (status != b"204" or not body):
        return Outcome.DELIVERED
    return Outcome.RETRY if status.startswith(b"5") or status in {b"408", b"429"} else None


def check(data: bytes) -> str:
    """Deliver a notification."""
    chosen, payload = data[:1], data[1:]
    event = Event(_IDS[(chosen or b"\0")[0] % len(_IDS)], "u", "A", "2026-03-01T12:00:00Z", {"k": "\u4e16"})
    with respond_with(payload) as port:
        url = f"http://127.0.0.1:{port}/hook"
        webhook = Webhook(kind="webhook", url=url, secret_file=Path("secret"), request_seconds=_REQUEST_SECONDS)
        transport = open_webhook(webhook, b"secret")
        started = time.monotonic()
        result = transport.attempt(Notification(event, "rule", "text"))
        seconds = time.monotonic() - started
        transport.close()
    demand(seconds < _REQUEST_SECONDS + _GRACE_SECONDS, f"an attempt of {_REQUEST_SECONDS:g} s took {seconds:.0f} s")
    expected = _expected(payload)
    demand(expected is None or result.outcome is expected, f"{result.outcome} instead of {expected}")
    pause = backoff_seconds(1, result.retry_after_seconds)
    demand(math.isfinite(pause) and 0 <= pause <= 3_600, f"a pause of {pause} s")
    demand(
        len(result.reason) < _MAX_REASON_CHARACTERS and result.reason.isprintable(),
        f"the reason is too long or not printable: {result.reason[:200]!r}",
    )
    return f"{result.outcome.name} {result.reason[:40]}"


TARGETS = {"webhook": Target(generate, check, b"\0" + http.response(200, b"ok"), (), seconds=15)}
