"""A notification as a signed HTTP request, and what its answer means.

The receiver checks `Karmalake-Signature: v1=HEX`, the HMAC-SHA256 under the shared secret of the header
`Karmalake-Timestamp` (seconds since 1970), a full stop and the body; a timestamp too old is somebody's replay.
"""

import hashlib
import hmac
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import httpx

from pipelines.errors import ConfigurationError
from pipelines.notify.answers import TAKEN, Answer, Notification, Verdict
from pipelines.notify.rules import Webhook
from pipelines.notify.template import to_json

_AGAIN = {408, 429}
_MOST_ANSWER_BYTES = 64 * 1024
_PLAIN = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
"""Printable ASCII that stays as it is in an idempotency key, beside letters, digits and _.-~"""


def secret_of(webhook: Webhook) -> bytes:
    """Read the secret of the signature; ConfigurationError where there is none."""
    if webhook.secret_file is not None:
        try:
            secret = webhook.secret_file.read_bytes().strip()
        except OSError as error:
            raise ConfigurationError(f"the secret of {webhook.url} cannot be read: {error}") from None
        place = str(webhook.secret_file)
    else:
        place = webhook.secret_env or ""
        secret = os.environ.get(place, "").encode()
    if not secret:
        raise ConfigurationError(f"the secret of {webhook.url} is empty: put it into {place}")
    return secret


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return the value of `Karmalake-Signature`."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def idempotency_key(event_id: str) -> str:
    """Return the event_id as a header can hold it: what is no printable ASCII, and %, in percent-encoding."""
    return quote(event_id, safe=_PLAIN)


@dataclass(slots=True)
class WebhookTransport:
    """One connection to a webhook, kept open between requests."""

    webhook: Webhook
    secret: bytes
    client: httpx.Client

    def attempt(self, notification: Notification) -> Answer:
        """Post it once; see `Transport`."""
        body = to_json(notification.event, notification.rule, notification.text).encode()
        headers = self._headers(notification, body)
        try:
            with self.client.stream("POST", self.webhook.url, content=body, headers=headers) as response:
                _read_a_little(response, time.monotonic() + self.webhook.request_seconds)
                return meaning(response.status_code, response.headers.get("Retry-After"))
        except httpx.TimeoutException:
            return Answer(Verdict.LATER, f"no answer within {self.webhook.request_seconds:g} s")
        except httpx.HTTPError as error:
            return Answer(Verdict.LATER, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Let go of the connection."""
        self.client.close()

    def _headers(self, notification: Notification, body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        return {
            "Content-Type": "application/json",
            "User-Agent": "karmalake-notify",
            "Idempotency-Key": idempotency_key(notification.event.event_id),
            "Karmalake-Timestamp": timestamp,
            "Karmalake-Signature": sign(self.secret, timestamp, body),
        }


def open_webhook(webhook: Webhook, secret: bytes) -> WebhookTransport:
    """Return a transport; it connects when it is first used, and follows no redirects."""
    return WebhookTransport(webhook, secret, httpx.Client(timeout=webhook.request_seconds))


def meaning(status: int, retry_after: str | None) -> Answer:
    """Return what a status says: 2xx taken; 5xx, 408 and 429 try again; anything else never."""
    if 200 <= status < 300:
        return TAKEN
    if status >= 500 or status in _AGAIN:
        return Answer(Verdict.LATER, f"HTTP {status}", _seconds(retry_after))
    return Answer(Verdict.NEVER, f"HTTP {status}")


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After, which is a number of them or a date; None for anything else."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _read_a_little(response: httpx.Response, deadline: float) -> None:
    """Read the body of the answer, which says nothing to us, so that the connection can be used again."""
    size = 0
    for piece in response.iter_raw():
        size += len(piece)
        if size > _MOST_ANSWER_BYTES or time.monotonic() > deadline:
            return
