"""Any response of a receiver, and any error of a library, gives a result in time: no lane ends or blocks."""

import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.notify.delivery import (
    DELIVERED,
    DeliveryResult,
    Notification,
    Outcome,
    backoff_seconds,
)
from pipelines.notify.lanes import Delivery, Lanes
from pipelines.notify.redis_stream import StreamTransport
from pipelines.notify.rule_file import parse_rules
from pipelines.notify.rules import RedisStream, Webhook
from pipelines.notify.template import Event, fill
from pipelines.notify.webhook import classify_response, open_webhook
from pipelines.serving.client import connect
from pipelines.settings import Settings
from tests.notify.test_rules import GOOD
from tests.services.ports import HOST
from tests.services.waiting import wait_for

NOTIFICATION = Notification(Event("e-1", "ada", "Rated", "2026-01-01T00:00:00+00:00", {}), "low", "ada got 1")
_LIMIT_SECONDS = 0.25
_SLACK_SECONDS = 20.0
"""A busy machine's; whatever is not bound by the limit takes longer, for the servers here respond for a minute."""

Piece = tuple[float, bytes]
"""Seconds to wait, and what is sent then."""
_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 503 No", b"HTTP/1.1 999 ?", b"HTTP/1.1 100 Go on", b"HTTP/1.1 101 Up", b"HTTP/9 1"]
)
_HEADER = st.sampled_from(
    [
        b"Content-Length: 0",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: -1",
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Location: http://127.0.0.1:1/",
        b"Set-Cookie: a=b",
        b"Retry-After: Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
        b"Retry-After: -1",
        b"\xff\xfe: \x00",
        b"no colon",
        b"X: " + b"x" * 200_000,
    ]
)
_BODY = st.binary(max_size=50) | st.sampled_from(
    [b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", b"x" * 200_000]
)
_DELAY = st.sampled_from([0.0, 0.0, 0.0, 0.05, 60.0])


@st.composite
def _answers(draw: st.DrawFn) -> list[Piece]:
    line = draw(_LINES | st.binary(max_size=30))
    head = b"\r\n".join([line, *draw(st.lists(_HEADER | st.binary(max_size=30), max_size=3))]) + b"\r\n\r\n"
    pieces = [head, draw(_BODY)] if draw(st.booleans()) else [bytes([byte]) for byte in head[:200]]
    return [(draw(_DELAY) if number < 3 else 0.05, piece) for number, piece in enumerate(pieces)]


class _Server:
    """Answers every connection with the configured pieces, then closes it, until the test ends."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.ended = threading.Event()
        self._listening = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listening.getsockname()[1]}/"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self.ended.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._answer, args=(connection, self.pieces)))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket, pieces: list[Piece]) -> None:
        with connection:
            try:
                connection.recv(65_536)
                for delay, piece in pieces:
                    if self.ended.wait(delay):
                        return
                    connection.sendall(piece)
            except OSError:
                pass  # the client has closed the connection


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    server = _Server()
    yield server
    server.close()


def _attempt(server: _Server, pieces: list[Piece]) -> DeliveryResult:
    server.pieces = pieces
    webhook = Webhook(kind="webhook", url=server.url, secret_env="S", request_seconds=_LIMIT_SECONDS)  # noqa: S106
    transport = open_webhook(webhook, b"secret")
    started = monotonic()
    answer = transport.attempt(NOTIFICATION)
    assert monotonic() - started < _LIMIT_SECONDS + _SLACK_SECONDS
    transport.close()
    return answer


@pytest.mark.slow
@given(pieces=_answers())
def test_any_response_of_a_receiver_gives_a_result_in_time(server: _Server, pieces: list[Piece]) -> None:
    """Any status line, headers, body and delay: delivered only with a complete 2xx head, and nothing is raised."""
    answer = _attempt(server, pieces)
    response = b"".join(piece for _, piece in pieces)
    assert answer.outcome is not Outcome.DELIVERED or b" 200 " in response or b" 2" in response[:20]
    assert 0 <= backoff_seconds(1, answer.retry_after_seconds) <= 3_600


@pytest.mark.parametrize(
    ("first", "dripped"),
    [(b"", b"a"), (b"HTTP/1.1 200 OK\r\nX: ", b"a"), (b"", b"HTTP/1.1 100 \r\n\r\n")],
    ids=["status line", "headers", "informational answers"],
)
def test_a_slow_response_is_cut_off_at_the_deadline(server: _Server, first: bytes, dripped: bytes) -> None:
    """One deadline covers the whole exchange, although each piece arrives within any read timeout."""
    expected = DeliveryResult(Outcome.RETRY, "no complete answer within 0.25 s")
    assert _attempt(server, [(0.0, first), *[(0.05, dripped)] * 1_200]) == expected


def test_a_status_counts_before_the_body_is_complete(server: _Server) -> None:
    """The status is the result; the body is ignored."""
    assert _attempt(server, [(0.0, b"HTTP/1.1 200 OK\r\n\r\n"), *[(0.05, b"a")] * 1_200]) == DELIVERED


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,30} \d+:\d+:\d+ [-+]?\w+"))
@example("9" * 400)
@example("1" + "0" * 5_000)
@example("Fri, 31 Dec 10000 23:59:59 GMT")
@example("Fri, 31 Dec 99999999999999999999 23:59:59 GMT")
@example("Fri, 31 Dec 9999 23:59:59 -9999")
@example("Fri, 31 Dec 9999 23:59:59 +999999999999")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("-5")
@example("1e400")
@example("\u0663")
@example("nan")
def test_any_retry_after_is_waited_for_at_most_an_hour(retry_after: str) -> None:
    """Beyond year 9999, negative, 10^400, odd time zones: a pause of up to an hour."""
    answer = classify_response(503, retry_after)
    assert answer.outcome is Outcome.RETRY
    assert 0 <= backoff_seconds(1, answer.retry_after_seconds) <= 3_600


def test_a_notification_that_cannot_be_encoded_is_rejected(settings: Settings) -> None:
    """A lone surrogate is not UTF-8, and no retry changes that; a NUL is sent unchanged."""
    broken = NOTIFICATION.event._replace(metadata={"n": "\ud800"})
    webhook = open_webhook(Webhook(kind="webhook", url="http://h/", secret_env="S"), b"secret")  # noqa: S106
    client = connect(settings.redis)
    stream = StreamTransport(RedisStream(kind="redis_stream", key=f"{settings.redis.prefix}.told"), client)
    for transport in (webhook, stream):
        answer = transport.attempt(Notification(broken, "low", "ada"))
        assert answer.outcome is Outcome.REJECTED
        assert "cannot be built: UnicodeEncodeError" in answer.reason
    assert stream.attempt(Notification(NOTIFICATION.event._replace(metadata={"\0": "\0"}), "low", "\0")) == DELIVERED
    webhook.close()
    client.close()


@pytest.mark.parametrize("raised", [OverflowError, ValueError, MemoryError, SystemExit, BaseException])
def test_any_error_of_an_attempt_is_a_result(raised: type[BaseException]) -> None:
    """The lane continues with the next delivery, and the reason names the error (`isolated`)."""
    lanes = Lanes([_Raising(raised)], attempts=1, is_quiet=lambda: False)
    deliveries = [Delivery(None, NOTIFICATION), Delivery(None, NOTIFICATION)]
    for delivery in deliveries:
        lanes.submit(delivery)
    answered: list[Any] = []
    wait_for("both answers", lambda: answered.extend(lanes.poll_results(0.1)) or len(answered) == 2)
    lanes.stop(10)
    assert [delivery for delivery, _ in answered] == deliveries
    assert {answer for _, answer in answered} == {
        DeliveryResult(Outcome.REJECTED, f"{raised.__name__}: no!, after 1 attempts")
    }
    assert lanes.failure is None


class _Raising:
    def __init__(self, raised: type[BaseException]) -> None:
        self._raised = raised

    def attempt(self, notification: Notification) -> DeliveryResult:  # noqa: ARG002 - as a transport has it
        raise self._raised("no!")

    def close(self) -> None:
        raise self._raised("nor that")


def test_a_lane_that_ends_by_a_bug_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitter learns that no result will come."""
    monkeypatch.setattr("pipelines.notify.lanes.attempt_delivery", None)
    lanes = Lanes([_Raising(ValueError)], attempts=1, is_quiet=lambda: False)
    lanes.submit(Delivery(None, NOTIFICATION))
    wait_for("the lane to end", lambda: lanes.failure is not None)
    assert lanes.failure == "TypeError: 'NoneType' object is not callable"
    lanes.stop(10)


_ODD = ["NaN", "sNaN", "1e999999999999999999999", "-1e-9999999999", "9" * 10_000, "\u0663", "\0", "{user_id}", " 1 "]
_ANY = st.text(st.characters(), max_size=20) | st.sampled_from(_ODD)


_RULES = parse_rules(GOOD).rules_for("app")


@given(user=_ANY, event_id=_ANY, rating=_ANY)
def test_any_event_is_matched_and_rendered(user: str, event_id: str, rating: str) -> None:
    """Rules and templates run in the thread of the branch: no content of an event makes them raise."""
    event = Event(event_id, user, "Rated", "", {"rating": rating})
    filled = [fill(rule.text, event) for rule in _RULES if rule.matches(event)]
    assert f"Rated of {user}" in filled
