"""One notification on its way: what is sent, what an answer means, and when it is tried again."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import SecretStr

from pipelines.notify.answers import TAKEN, Answer, Notification, Verdict, insist, pause_seconds
from pipelines.notify.redis_stream import StreamTransport
from pipelines.notify.rules import RedisStream, Webhook
from pipelines.notify.template import Event
from pipelines.notify.webhook import WebhookTransport, meaning, open_webhook
from pipelines.serving.client import connect
from pipelines.settings import RedisSettings, Settings
from tests.notify.receiver import SECRET, Receiver
from tests.services.ports import HOST, free_port
from tests.services.redis_server import RedisServer

EVENT = Event("e-1", "ada", "Rated", "2026-01-01T00:00:00+00:00", {"rating": "1", "wörd": "ü"})
NOTIFICATION = Notification(EVENT, "low", "ada got 1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def _transport(url: str, request_seconds: float = 10.0) -> WebhookTransport:
    webhook = Webhook(kind="webhook", url=url, secret_env="S", request_seconds=request_seconds)  # noqa: S106
    return open_webhook(webhook, SECRET.encode())


def _attempt(url: str, request_seconds: float = 10.0) -> Answer:
    transport = _transport(url, request_seconds)
    try:
        return transport.attempt(NOTIFICATION)
    finally:
        transport.close()


def test_the_receiver_can_verify_what_it_is_told(receiver: Receiver) -> None:
    """The signature covers time and body, and the body says everything of the event."""
    assert _attempt(receiver.url) == TAKEN
    (request,) = receiver.requests
    assert request.is_signed
    assert request.key == "e-1"
    assert abs(int(request.headers["Karmalake-Timestamp"]) - datetime.now(UTC).timestamp()) < 60
    assert request.said == {**EVENT._asdict(), "rule": "low", "text": "ada got 1"}


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *((status, Verdict.TAKEN) for status in (200, 202, 204)),
        *((status, Verdict.LATER) for status in (500, 502, 503, 504, 408, 429)),
        *((status, Verdict.NEVER) for status in (301, 400, 401, 404, 410, 422)),
    ],
)
def test_a_status_says_whether_to_try_again(receiver: Receiver, status: int, verdict: Verdict) -> None:
    """What the receiver calls our mistake is not repeated; what is its own is."""
    receiver.answer = lambda _: status
    answer = _attempt(receiver.url)
    assert answer.verdict is verdict
    assert verdict is Verdict.TAKEN or answer.reason == f"HTTP {status}"


def test_nobody_there_and_no_answer_are_tried_again(receiver: Receiver) -> None:
    """A refused connection and a request over its time limit are nobody's final word."""
    assert _attempt(f"http://{HOST}:{free_port()}/").verdict is Verdict.LATER
    receiver.answer = receiver.hang
    assert _attempt(receiver.url, 0.2) == Answer(Verdict.LATER, "no complete answer within 0.2 s")


def test_a_retry_has_the_same_key(receiver: Receiver) -> None:
    """The receiver can tell that it is told again."""
    statuses = iter([500, 503, 204])
    receiver.answer = lambda _: next(statuses)
    transport = _transport(receiver.url)
    assert insist(lambda: transport.attempt(NOTIFICATION), 5, threading.Event()) == TAKEN
    transport.close()
    assert receiver.keys == ["e-1"] * 3


def test_in_vain_is_for_good_after_so_many_attempts() -> None:
    """The reason says how often, and a refusal is not repeated."""
    answer = insist(lambda: Answer(Verdict.LATER, "HTTP 500"), 2, threading.Event())
    assert answer == Answer(Verdict.NEVER, "HTTP 500, after 2 attempts")
    refusals = iter([Answer(Verdict.NEVER, "HTTP 400")])
    assert insist(lambda: next(refusals), 5, threading.Event()).reason == "HTTP 400"


def test_an_ending_notifier_does_not_wait_for_a_retry() -> None:
    """Nothing is decided then: the next one delivers it."""
    stopping = threading.Event()
    stopping.set()
    assert insist(lambda: Answer(Verdict.LATER, "HTTP 503", 3_000), 5, stopping).verdict is Verdict.LATER


def test_pauses_double_and_obey() -> None:
    """A random part is left out of each, and none is shorter than the receiver asked for."""
    for failures, longest in ((1, 0.5), (2, 1), (5, 8), (50, 60)):
        assert longest / 2 <= pause_seconds(failures, None) <= longest
    assert pause_seconds(1, 7) == 7
    assert pause_seconds(1, 1e9) == 3_600


def test_retry_after_is_seconds_or_a_date() -> None:
    """Both forms are read; nonsense is as good as none."""
    assert meaning(503, "7").after_seconds == 7
    date = meaning(429, format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)).after_seconds
    assert date is not None
    assert 90 < date <= 100
    assert meaning(503, "soon").after_seconds is None
    assert meaning(503, None).after_seconds is None


def test_a_stream_gets_an_entry(settings: Settings) -> None:
    """Every field is text, and the event_id tells a copy."""
    client = connect(settings.redis)
    key = f"{settings.redis.prefix}.stream"
    transport = StreamTransport(RedisStream(kind="redis_stream", key=key), client)
    assert transport.attempt(NOTIFICATION) == TAKEN
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
    assert answer.verdict is Verdict.LATER
    assert answer.reason.startswith(f"the Redis key {key}.text is a string, not a stream: give the destination another")
    client.close()


@pytest.mark.parametrize(
    "directives", [{"min-replicas-to-write": 1}, {"maxmemory": 1, "maxmemory-policy": "noeviction"}]
)
def test_what_redis_refuses_now_it_may_take_later(redis_server: RedisServer, directives: dict[str, int | str]) -> None:
    """Full, or without its replicas: no reason to give a notification up at once."""
    client = connect(RedisSettings(url=SecretStr(redis_server.url())))
    for name, value in directives.items():
        client.config_set(name, value)
    transport = StreamTransport(RedisStream(kind="redis_stream", key="told"), client)
    assert transport.attempt(NOTIFICATION).verdict is Verdict.LATER
    for name in directives:
        client.config_set(name, "noeviction" if name.endswith("policy") else 0)
    assert transport.attempt(NOTIFICATION) == TAKEN
    client.close()
