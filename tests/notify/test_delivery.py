"""One delivery: what is sent, what the response means, and when it is retried."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from pipelines.notify.delivery import (
    DELIVERED,
    DeliveryResult,
    Notification,
    Outcome,
    backoff_seconds,
    deliver_with_retry,
)
from pipelines.notify.lanes import Delivery, Lanes
from pipelines.notify.redis_stream import StreamTransport
from pipelines.notify.rules import RedisStream, Webhook
from pipelines.notify.template import Event
from pipelines.notify.webhook import WebhookTransport, classify_response, open_webhook
from pipelines.serving.client import connect
from pipelines.settings import RedisSettings, Settings
from tests.notify.receiver import SECRET, Receiver
from tests.services.ports import HOST, free_port
from tests.services.proxy import Proxy
from tests.services.redis_server import RedisServer
from tests.services.waiting import PATIENCE_SECONDS, wait_for

EVENT = Event("e-1", "ada", "Rated", "2026-01-01T00:00:00+00:00", {"rating": "1", "wörd": "ü"})
NOTIFICATION = Notification(EVENT, "low", "ada got 1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def _transport(url: str, request_seconds: float = 10.0) -> WebhookTransport:
    webhook = Webhook(kind="webhook", url=url, secret_env="S", request_seconds=request_seconds)  # noqa: S106
    return open_webhook(webhook, SECRET.encode())


def _attempt(url: str, request_seconds: float = 10.0) -> DeliveryResult:
    transport = _transport(url, request_seconds)
    try:
        return transport.attempt(NOTIFICATION)
    finally:
        transport.close()


def test_the_receiver_can_verify_a_notification(receiver: Receiver) -> None:
    """The signature covers timestamp and body, and the body contains the whole event."""
    assert _attempt(receiver.url) == DELIVERED
    (request,) = receiver.requests
    assert request.is_signed
    assert request.key == "e-1"
    assert abs(int(request.headers["Karmalake-Timestamp"]) - datetime.now(UTC).timestamp()) < 60
    assert request.payload == {**EVENT._asdict(), "rule": "low", "text": "ada got 1"}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        *((status, Outcome.DELIVERED) for status in (200, 202, 204)),
        *((status, Outcome.RETRY) for status in (500, 502, 503, 504, 407, 408, 429)),
        *((status, Outcome.REJECTED) for status in (301, 400, 401, 404, 410, 422)),
    ],
)
def test_a_status_says_whether_to_try_again(receiver: Receiver, status: int, outcome: Outcome) -> None:
    """Client errors are not retried; server errors are, and those of a proxy before the receiver."""
    receiver.answer = lambda _: status
    answer = _attempt(receiver.url)
    assert answer.outcome is outcome
    assert outcome is Outcome.DELIVERED or answer.reason == f"HTTP {status}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_rejected_and_its_target_gets_nothing(receiver: Receiver, status: int) -> None:
    """A receiver cannot have the event and our signature sent to an address that only this machine reaches."""
    with Receiver() as other:
        receiver.answer = lambda _: (status, {"Location": other.url, "Refresh": f"0; url={other.url}"})
        assert _attempt(receiver.url) == DeliveryResult(Outcome.REJECTED, f"HTTP {status}")
        assert len(receiver.requests) == 1
        assert other.requests == []


def test_refused_connections_and_timeouts_are_retried(receiver: Receiver) -> None:
    """A refused connection and a request over its time limit are retried."""
    assert _attempt(f"http://{HOST}:{free_port()}/").outcome is Outcome.RETRY
    receiver.answer = receiver.hang
    assert _attempt(receiver.url, 0.2) == DeliveryResult(Outcome.RETRY, "no complete answer within 0.2 s")


def test_a_retry_has_the_same_key(receiver: Receiver) -> None:
    """The receiver can recognize a repeat."""
    statuses = iter([500, 503, 204])
    receiver.answer = lambda _: next(statuses)
    transport = _transport(receiver.url)
    assert deliver_with_retry(lambda: transport.attempt(NOTIFICATION), 5, _at_once) == DELIVERED
    transport.close()
    assert receiver.keys == ["e-1"] * 3


def test_a_delivery_is_rejected_after_the_last_attempt() -> None:
    """The reason gives the number of attempts, and a rejection is not retried."""
    answer = deliver_with_retry(lambda: DeliveryResult(Outcome.RETRY, "HTTP 500"), 2, _at_once)
    assert answer == DeliveryResult(Outcome.REJECTED, "HTTP 500, after 2 attempts")
    refusals = iter([DeliveryResult(Outcome.REJECTED, "HTTP 400")])
    assert deliver_with_retry(lambda: next(refusals), 5, _at_once).reason == "HTTP 400"


def test_a_stopping_notifier_does_not_wait_for_a_retry() -> None:
    """The result is RETRY: the next notifier delivers it. So it is for one whose topic partition has a new owner."""
    transport = _Answers([DeliveryResult(Outcome.RETRY, "HTTP 503", 3_000)])
    lanes = Lanes([transport], attempts=5, is_quiet=lambda: False)
    lanes.submit(Delivery(None, NOTIFICATION))
    lanes.submit(Delivery(None, NOTIFICATION, revoked=True))
    wait_for("the first attempt", lambda: transport.attempts == 1)
    lanes.stop(PATIENCE_SECONDS)
    assert [answer.outcome for _, answer in lanes.poll_results(0.0)] == [Outcome.RETRY] * 2
    assert transport.attempts == 1


def test_a_revoked_delivery_does_not_hold_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver asked for an hour; meanwhile the topic partition moved, and the others of the lane do not wait."""
    monkeypatch.setattr("pipelines.notify.lanes._POLL_SECONDS", 0.001)
    transport = _Answers([DeliveryResult(Outcome.RETRY, "HTTP 429", 3_600), DELIVERED])
    lanes, moved = Lanes([transport], attempts=5, is_quiet=lambda: False), Delivery(None, NOTIFICATION)
    lanes.submit(moved)
    lanes.submit(Delivery(None, NOTIFICATION))
    wait_for("the first attempt", lambda: transport.attempts == 1)
    moved.revoked = True
    answers = [next(lanes.poll_results(PATIENCE_SECONDS))[1].outcome for _ in range(2)]
    assert answers == [Outcome.RETRY, Outcome.DELIVERED]
    lanes.stop(PATIENCE_SECONDS)


def test_what_waits_for_an_attempt_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is erased gets no further attempt, holds no lane, and is not named to others (`erasable`)."""
    monkeypatch.setattr("pipelines.notify.lanes._POLL_SECONDS", 0.001)
    erased, sent = set[str](), list[str]()

    def redact(event: Event) -> Event | None:
        rater = "erased-1" if event.metadata["rater"] in erased else event.metadata["rater"]
        return None if event.user_id in erased else event._replace(metadata={"rater": rater})

    def answers(notification: Notification) -> DeliveryResult:
        sent.append(notification.text)
        erased.add("ann")
        return DeliveryResult(Outcome.RETRY, "HTTP 503", 3_600) if len(sent) == 1 else DELIVERED

    transport: Any = SimpleNamespace(attempt=answers, close=lambda: None)
    lanes = Lanes([transport], 5, lambda: False, redact)
    for user, rater in (("ann", "bob"), ("bob", "ann")):
        event = EVENT._replace(user_id=user, metadata={"rater": rater})
        lanes.submit(Delivery(None, Notification(event, "low", "{user_id} by {metadata.rater}")))
    outcomes = [next(lanes.poll_results(PATIENCE_SECONDS))[1].outcome for _ in range(2)]
    assert outcomes == [Outcome.ERASED, Outcome.DELIVERED]
    assert sent == ["ann by bob", "bob by erased-1"]
    lanes.stop(PATIENCE_SECONDS)


def test_a_quiet_time_holds_what_was_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what waits for its lane nor a retry is delivered before the end of a quiet time."""
    monkeypatch.setattr("pipelines.notify.lanes._POLL_SECONDS", 0.001)
    quiet = {"now": True, "asked": 0}

    def is_quiet() -> bool:
        quiet["asked"] += 1
        return quiet["now"]

    def wait_for_questions() -> None:
        after = quiet["asked"] + 2
        wait_for("more questions", lambda: quiet["asked"] > after)

    transport = _Answers([DeliveryResult(Outcome.RETRY, "HTTP 503"), DELIVERED], lambda: quiet.update(now=True))
    lanes = Lanes([transport], attempts=2, is_quiet=is_quiet)
    lanes.submit(Delivery(None, NOTIFICATION))
    for attempts in range(2):
        wait_for_questions()
        assert transport.attempts == attempts
        quiet["now"] = False
        wait_for("an attempt", lambda attempts=attempts: transport.attempts > attempts)
    assert [answer for _, answer in lanes.poll_results(PATIENCE_SECONDS)] == [DELIVERED]
    lanes.stop(PATIENCE_SECONDS)


class _Answers:
    """A transport that gives some answers, and calls a function with each."""

    def __init__(self, answers: list[DeliveryResult], on_attempt: Callable[[], None] = lambda: None) -> None:
        self._answers, self._on_attempt, self.attempts = iter(answers), on_attempt, 0

    def attempt(self, _: Notification) -> DeliveryResult:
        self._on_attempt()
        self.attempts += 1
        return next(self._answers)

    def close(self) -> None:
        """Close nothing."""


def _at_once(_: float) -> bool:
    return True


def test_pauses_double_and_respect_retry_after() -> None:
    """Each has jitter, and none is shorter than the receiver asked for."""
    for failures, longest in ((1, 0.5), (2, 1), (5, 8), (50, 60)):
        assert longest / 2 <= backoff_seconds(failures, None) <= longest
    assert backoff_seconds(1, 7) == 7
    assert backoff_seconds(1, 1e9) == 3_600


def test_retry_after_is_seconds_or_a_date() -> None:
    """Both forms are parsed; invalid values are ignored."""
    assert classify_response(503, "7").retry_after_seconds == 7
    date = classify_response(
        429, format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    ).retry_after_seconds
    assert date is not None
    assert 90 < date <= 100
    assert classify_response(503, "soon").retry_after_seconds is None
    assert classify_response(503, None).retry_after_seconds is None


def test_a_stream_gets_an_entry(settings: Settings) -> None:
    """Every field is text, and the event_id identifies a repeat."""
    client = connect(settings.redis)
    key = f"{settings.redis.prefix}.stream"
    transport = StreamTransport(RedisStream(kind="redis_stream", key=key), client)
    assert transport.attempt(NOTIFICATION) == DELIVERED
    ((_, fields),) = client.xrange(key)
    assert {name.decode(): value.decode() for name, value in fields.items()} == {
        **EVENT._asdict(),
        "metadata": '{"rating":"1","wörd":"ü"}',
        "rule": "low",
        "text": "ada got 1",
    }
    client.set(f"{key}.text", "no stream")
    wrong = StreamTransport(RedisStream(kind="redis_stream", key=f"{key}.text"), client)
    answer = wrong.attempt(NOTIFICATION)
    assert answer.outcome is Outcome.RETRY
    assert answer.reason.startswith(f"the Redis key {key}.text is a string, not a stream: give the destination another")
    client.close()


@pytest.mark.parametrize(
    "directives", [{"min-replicas-to-write": 1}, {"maxmemory": 1, "maxmemory-policy": "noeviction"}]
)
def test_errors_of_redis_are_retried(redis_server: RedisServer, directives: dict[str, int | str]) -> None:
    """A full server, or one without its replicas, is retried."""
    client = connect(RedisSettings(url=SecretStr(redis_server.url())))
    for name, value in directives.items():
        client.config_set(name, value)
    transport = StreamTransport(RedisStream(kind="redis_stream", key="told"), client)
    assert transport.attempt(NOTIFICATION).outcome is Outcome.RETRY
    for name in directives:
        client.config_set(name, "noeviction" if name.endswith("policy") else 0)
    assert transport.attempt(NOTIFICATION) == DELIVERED
    client.close()


def test_a_stream_is_found_again_after_a_failover(redis_server: RedisServer, tmp_path: Path) -> None:
    """The address leads to another server, and the one before is a replica that keeps its connections."""
    (tmp_path / "other").mkdir()
    with RedisServer(tmp_path / "other") as other, Proxy(redis_server.port) as proxy:
        client = connect(RedisSettings(url=SecretStr(f"redis://{proxy.address}/0")))
        transport = StreamTransport(RedisStream(kind="redis_stream", key="told"), client)
        assert transport.attempt(NOTIFICATION) == DELIVERED
        with connect(RedisSettings(url=SecretStr(redis_server.url()))) as admin:
            admin.execute_command("REPLICAOF", HOST, other.port)
        proxy.forward_to(other.port)
        refused = transport.attempt(NOTIFICATION)
        assert (refused.outcome, refused.reason.split(":")[0]) == (Outcome.RETRY, "ReadOnlyError")
        assert transport.attempt(NOTIFICATION) == DELIVERED
        client.close()
