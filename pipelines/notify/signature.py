"""Authentication of webhooks: the secret, the signatures, and the ids by which a receiver drops repeats.

Each request has two signatures: karmalake's own (`Karmalake-Signature`), and Standard Webhooks 1.0 (`webhook-id`,
`webhook-timestamp`, `webhook-signature`), which libraries verify. Pure, except for reading the secret.
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
"""Printable ASCII that is not encoded in an idempotency key, besides letters, digits and _.-~"""


def read_secret(webhook: Webhook) -> bytes:
    """Read the signing secret; ConfigurationError if it is missing, or is a `whsec_` secret that is not base64.

    The error names the location of the secret and never shows it.
    """
    if webhook.secret_file is not None:
        try:
            secret = webhook.secret_file.read_bytes().strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the secret of {webhook.host} cannot be read: {error}") from None
        place = str(webhook.secret_file)
    else:
        place = webhook.secret_env or ""
        secret = os.fsencode(os.environ.get(place, ""))
    if not secret:
        raise ConfigurationError(f"the secret of {webhook.host} is empty: put it into {place}")
    try:
        standard_key(secret)
    except ValueError:
        raise ConfigurationError(
            f"the secret of {webhook.host} in {place} begins with whsec_, but no valid base64 follows: copy it "
            "whole, or generate one with `echo whsec_$(openssl rand -base64 32)`"
        ) from None
    return secret


def standard_key(secret: bytes) -> bytes:
    """Return the key of Standard Webhooks: the decoded base64 of a `whsec_` secret, or any other secret as it is.

    Raises ValueError for `whsec_` without valid base64 after it.
    """
    if not secret.startswith(_STANDARD_PREFIX):
        return secret
    encoded = secret.removeprefix(_STANDARD_PREFIX).rstrip(b"=")
    key = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    if not key:
        raise binascii.Error("nothing is encoded")
    return key


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return the value of `Karmalake-Signature`; the HMAC key is the secret as configured."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def sign_standard(secret: bytes, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the value of `webhook-signature`: https://github.com/standard-webhooks/standard-webhooks, version 1.0."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digest = hmac.new(standard_key(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def idempotency_key(event_id: str) -> str:
    """Return the event_id encoded for a header, injectively: two ids never become one key.

    Percent-encodes `%`, everything but printable ASCII, and leading and trailing spaces, which HTTP strips.
    """
    inner = event_id.strip(" ")
    before = len(event_id) - len(event_id.lstrip(" "))
    after = len(event_id) - before - len(inner)
    return "%20" * before + quote(inner, safe=_PLAIN, errors="surrogatepass") + "%20" * after


def webhook_id(event_id: str) -> str:
    """Return the event_id as a Standard Webhooks id, without full stops, which delimit the id in the signed text."""
    return quote(event_id, safe="", errors="surrogatepass").replace(".", "%2E")


def signed_headers(secret: bytes, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of both schemes for a receiver to verify; `timestamp` is in seconds since 1970."""
    moment, standard_id = str(timestamp), webhook_id(event_id)
    return {
        "Idempotency-Key": idempotency_key(event_id),
        "Karmalake-Timestamp": moment,
        "Karmalake-Signature": sign(secret, moment, body),
        "webhook-id": standard_id,
        "webhook-timestamp": moment,
        "webhook-signature": sign_standard(secret, standard_id, moment, body),
    }
