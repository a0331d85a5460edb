"""Authentication of webhooks: secrets, signatures that a library verifies, and ids that identify repeats."""

import base64
import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as StandardReceiver
from standardwebhooks.webhooks import WebhookVerificationError

from pipelines.errors import ConfigurationError
from pipelines.notify.delivery import DELIVERED, Notification
from pipelines.notify.rules import Webhook
from pipelines.notify.signature import idempotency_key, read_secret, signed_headers, webhook_id
from pipelines.notify.template import Event
from pipelines.notify.webhook import check_address, open_webhook
from tests.notify.receiver import Receiver, Request

EVENT_IDS = st.text(st.characters(), max_size=12) | st.text(" \t\n%.aé", max_size=6)
KEY = bytes(range(24))
SERIALIZED = "whsec_" + base64.b64encode(KEY).decode()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def _request(receiver: Receiver, event_id: str, secret: bytes) -> Request:
    webhook = Webhook(kind="webhook", url=receiver.url, secret_env="S")  # noqa: S106
    transport = open_webhook(webhook, secret)
    assert (
        transport.attempt(Notification(Event(event_id, "ada", "Rated", "", {"wörd": "ü"}), "low", "ada")) == DELIVERED
    )
    transport.close()
    return receiver.requests.pop()


@given(EVENT_IDS, EVENT_IDS)
@example(" e", "e")
@example("e ", "e")
@example("%20e", " e")
@example("\te", "%09e")
@example("\ud800", "\ufffd")
def test_two_ids_never_become_one_key(first: str, other: str) -> None:
    """Neither as `Idempotency-Key` nor as `webhook-id`; HTTP transmits the keys unchanged."""
    for make in (idempotency_key, webhook_id):
        assert (make(first) == make(other)) == (first == other)
        assert unquote(make(first), errors="surrogatepass") == first
        assert re.fullmatch(r"[!-~]([ -~]*[!-~])?|", make(first))
    assert "." not in webhook_id(first), "one would end the id in what is signed"


@pytest.mark.parametrize("event_id", [" e-1", "e-1 ", "\te-1\t", "a  b", "\0", "é\r\nX: y", "   ", "ride-1/rated"])
def test_an_event_of_any_id_is_delivered_under_its_key(receiver: Receiver, event_id: str) -> None:
    """White space at an end, a line break, a NUL: the receiver gets the intended key."""
    request = _request(receiver, event_id, b"secret")
    assert unquote(request.key) == event_id
    assert unquote(request.headers["webhook-id"]) == event_id
    assert request.payload["event_id"] == event_id


def test_a_visible_id_is_its_key() -> None:
    """It is sent unchanged, so a receiver recognizes it."""
    assert idempotency_key("ride-1/rated at noon") == "ride-1/rated at noon"
    assert idempotency_key("ü\n%") == "%C3%BC%0A%25"
    assert webhook_id("ride-1/a.b") == "ride-1%2Fa%2Eb"


@pytest.mark.parametrize("event_id", ["e-1", "a.b.c", " ü "])
@pytest.mark.parametrize(
    ("configured", "receiver_secret"),
    [(SERIALIZED, SERIALIZED), (SERIALIZED.rstrip("="), SERIALIZED), ("a plain secret", b"a plain secret")],
)
def test_a_library_verifies_what_it_receives(
    receiver: Receiver, configured: str, receiver_secret: str | bytes, event_id: str
) -> None:
    """The library of Standard Webhooks, with a `whsec_` secret as it is, and with any other secret as bytes."""
    request = _request(receiver, event_id, configured.encode())
    assert StandardReceiver(receiver_secret).verify(request.body, request.headers) == request.payload
    with pytest.raises(WebhookVerificationError):
        StandardReceiver(receiver_secret).verify(request.body + b" ", request.headers)
    with pytest.raises(WebhookVerificationError):
        StandardReceiver(b"another").verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        StandardReceiver(receiver_secret).verify(request.body, request.headers | {"webhook-id": "another"})


def test_the_signed_text_follows_the_specification() -> None:
    """Id, time and body, with full stops between them, under the decoded secret; both schemes name the same time."""
    headers = signed_headers(SERIALIZED.encode(), "msg_1", 1_614_265_330, b'{"test": 2432232314}')
    digest = hmac.digest(KEY, b'msg_1.1614265330.{"test": 2432232314}', "sha256")
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert headers["webhook-timestamp"] == headers["Karmalake-Timestamp"] == "1614265330"


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule file contains no secret; without a secret nothing is sent."""
    monkeypatch.setenv("HOOK", "s3cret")
    from_environment = Webhook(kind="webhook", url="http://h/", secret_env="HOOK")  # noqa: S106
    assert read_secret(from_environment) == b"s3cret"
    monkeypatch.delenv("HOOK")
    with pytest.raises(ConfigurationError, match="is empty: put it into HOOK"):
        read_secret(from_environment)
    from_file = Webhook(kind="webhook", url="http://h/", secret_file=tmp_path / "secret")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_secret(from_file)
    (tmp_path / "secret").write_text("s3cret\n")
    assert read_secret(from_file) == b"s3cret"


@pytest.mark.parametrize("secret", ["whsec_", "whsec_not base64", "whsec_a", "whsec_\udcff"])
def test_a_damaged_standard_secret_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    """No receiver could verify with it; the message names its location, and how to generate a new one."""
    monkeypatch.setenv("HOOK", secret)
    with pytest.raises(ConfigurationError, match="in HOOK begins with whsec_, but no valid base64 follows") as caught:
        read_secret(Webhook(kind="webhook", url="http://h/", secret_env="HOOK"))  # noqa: S106
    assert "not base64" not in str(caught.value)


@pytest.mark.parametrize("secret", ["", "whsec_!", "secret"])
def test_no_error_shows_the_address(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    """A URL may hold a password, or a token in its path: a message names its host only."""
    webhook = Webhook(kind="webhook", url="https://me:hidden@hook.example/hidden\0", secret_env="HOOK_SECRET")  # noqa: S106
    monkeypatch.setenv("HOOK_SECRET", secret)
    with pytest.raises(ConfigurationError, match=r"hook\.example") as raised:  # noqa: PT012 - whichever refuses first
        read_secret(webhook)
        check_address(webhook)
    assert "hidden" not in str(raised.value)
