"""What lets a receiver trust a webhook: the secret, the signatures under it, and the ids that tell copies apart.

Two schemes sign each request: karmalake's own (`Karmalake-Signature`), and Standard Webhooks 1.0 (`webhook-id`,
`webhook-timestamp`, `webhook-signature`), which receivers verify with a library. Pure, but for reading the secret.
"""

import base64
import binascii
import hashlib
import hmac
import os
from urllib.parse import quote

from pipelines.errors import ConfigurationError
from pipelines.notify.rules import Webhook

_STANDARD_PREFIX = b"whsec_"
_PLAIN = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
"""Printable ASCII that stays as it is in an idempotency key, beside letters, digits and _.-~"""


def secret_of(webhook: Webhook) -> bytes:
    """Read the secret of the signatures; ConfigurationError where there is none, or a `whsec_` one that is not base64.

    The error names where the secret is, and never shows it.
    """
    if webhook.secret_file is not None:
        try:
            secret = webhook.secret_file.read_bytes().strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the secret of {webhook.url} cannot be read: {error}") from None
        place = str(webhook.secret_file)
    else:
        place = webhook.secret_env or ""
        secret = os.fsencode(os.environ.get(place, ""))
    if not secret:
        raise ConfigurationError(f"the secret of {webhook.url} is empty: put it into {place}")
    try:
        standard_key(secret)
    except ValueError:
        raise ConfigurationError(
            f"the secret of {webhook.url} in {place} begins with whsec_, but no base64 follows: copy it whole, or make "
            "one with `echo whsec_$(openssl rand -base64 32)`"
        ) from None
    return secret


def standard_key(secret: bytes) -> bytes:
    """Return the key of Standard Webhooks: of `whsec_` and base64 what is encoded, of anything else the very bytes.

    Raises ValueError for `whsec_` without base64 behind it.
    """
    if not secret.startswith(_STANDARD_PREFIX):
        return secret
    encoded = secret.removeprefix(_STANDARD_PREFIX).rstrip(b"=")
    key = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    if not key:
        raise binascii.Error("nothing is encoded")
    return key


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return the value of `Karmalake-Signature`; its key is the secret as it was configured."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def sign_standard(secret: bytes, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the value of `webhook-signature`: https://github.com/standard-webhooks/standard-webhooks, version 1.0."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digest = hmac.new(standard_key(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def idempotency_key(event_id: str) -> str:
    """Return the event_id as a header can hold it, so that two of them never become one key.

    What is not printable ASCII, `%`, and space at either end, which HTTP does not transmit, is percent-encoded.
    """
    inner = event_id.strip(" ")
    before = len(event_id) - len(event_id.lstrip(" "))
    after = len(event_id) - before - len(inner)
    return "%20" * before + quote(inner, safe=_PLAIN, errors="surrogatepass") + "%20" * after


def webhook_id(event_id: str) -> str:
    """Return the event_id as Standard Webhooks' id: no full stop may be in it, since one ends it in what is signed."""
    return quote(event_id, safe="", errors="surrogatepass").replace(".", "%2E")


def signed_headers(secret: bytes, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that a receiver verifies, in both schemes; `timestamp` is in seconds since 1970."""
    moment, standard_id = str(timestamp), webhook_id(event_id)
    return {
        "Idempotency-Key": idempotency_key(event_id),
        "Karmalake-Timestamp": moment,
        "Karmalake-Signature": sign(secret, moment, body),
        "webhook-id": standard_id,
        "webhook-timestamp": moment,
        "webhook-signature": sign_standard(secret, standard_id, moment, body),
    }
