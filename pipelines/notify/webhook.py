"""A notification as a signed HTTP request, and the classification of the response; `signature.py` signs."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from pipelines.boundary.http import HttpClient
from pipelines.errors import ConfigurationError, TransientError
from pipelines.notify.delivery import DELIVERED, DeliveryResult, Notification, Outcome, describe_error
from pipelines.notify.rules import Webhook
from pipelines.notify.signature import signed_headers
from pipelines.notify.template import to_json

_AGAIN = {407, 408, 429}
"""Of these 4xx, 407 is the answer of a proxy, before the request reached the receiver."""
_MAX_ANSWER_BYTES = 64 * 1024
_LONGEST_DATE = 64
"""Longer values of Retry-After are not dates and are ignored."""


@dataclass(frozen=True, slots=True)
class WebhookTransport:
    """One connection to a webhook, kept open between requests."""

    webhook: Webhook
    secret: bytes
    client: HttpClient

    def attempt(self, notification: Notification) -> DeliveryResult:
        """Post once; see `Transport`. The whole exchange ends within `request_seconds`."""
        try:
            request = self._request(notification)
        except Exception as error:  # noqa: BLE001 - another attempt could not build the request either
            return DeliveryResult(Outcome.REJECTED, f"the request cannot be built: {describe_error(error)}")
        try:
            answer = self.client.exchange(request, self.webhook.request_seconds, _MAX_ANSWER_BYTES)
        except TransientError as error:
            return DeliveryResult(Outcome.RETRY, str(error))
        return classify_response(answer.status, answer.headers.get("Retry-After"))

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def _request(self, notification: Notification) -> httpx.Request:
        event = notification.event
        body = to_json(event, notification.rule, notification.text).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "karmalake-notify"}
        headers |= signed_headers(self.secret, event.event_id, int(time.time()), body)
        return httpx.Request("POST", self.webhook.url, content=body, headers=headers)


def check_address(webhook: Webhook) -> None:
    """Raise ConfigurationError for a URL that no request can be sent to, or an environment that allows none."""
    try:
        httpx.Request("POST", webhook.url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigurationError(
            f"the URL of the webhook at {webhook.host} is not valid: {error}; correct `url`"
        ) from None
    HttpClient().close()


def open_webhook(webhook: Webhook, secret: bytes) -> WebhookTransport:
    """Return a transport that connects on first use and follows no redirects. Raises like `HttpClient`."""
    return WebhookTransport(webhook, secret, HttpClient())


def classify_response(status: int, retry_after: str | None) -> DeliveryResult:
    """Return the result for an HTTP status: 2xx is delivered; 5xx and `_AGAIN` are retried; the rest is rejected."""
    if 200 <= status < 300:
        return DELIVERED
    if status >= 500 or status in _AGAIN:
        return DeliveryResult(Outcome.RETRY, f"HTTP {status}", _seconds(retry_after))
    return DeliveryResult(Outcome.REJECTED, f"HTTP {status}")


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header, given as a number or a date; None for anything else."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)  # infinity, if there are hundreds of digits
    try:
        moment = parsedate_to_datetime(retry_after[:_LONGEST_DATE])
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except Exception:  # noqa: BLE001 - the parser raises many kinds: OverflowError, IndexError, TypeError, ...
        return None
