"""RabbitMQ client for `queue.py`: messages of one queue, acknowledged up to the last committed one."""

import logging
import ssl
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.boundary.extras import extra
from pipelines.errors import ConfigurationError, KarmalakeError, TransientError, one_line
from pipelines.ingest.filling import SLICE_MS
from pipelines.ingest.message import Backlog, Message, MissingQueueError, batch_messages
from pipelines.settings import Settings

with extra("rabbitmq", "RabbitMQ"):
    import pika
    from pika import exceptions, spec

_LOG = logging.getLogger(__name__)
_PREFETCHED_BATCHES = 2
"""Those in memory: the end of a connection counts as a delivery of all that the server has sent ahead."""
_MIN_WAIT_SECONDS = 0.001
_HEARTBEAT_SECONDS = 300
"""A server that sends nothing for about this long is an outage: without it, a frozen one would be waited for forever.

pika sends heartbeats only while it is called, and the server disconnects after two that are missing, so a commit may
take this long.
"""
_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_PRECONDITION_FAILED = 406
_NO_STREAM = {"x-priority": 0}
"""The default of a consumer. A server refuses it for a stream, whose type nothing else tells a reader."""


class _NoProperties(spec.BasicProperties):
    """Message properties, left undecoded: a time or header that pika cannot decode would end every consumer."""

    def decode(self, encoded: bytes, offset: int = 0) -> "_NoProperties":  # noqa: ARG002
        """Return empty properties."""
        return self


spec.props[spec.BasicProperties.INDEX] = _NoProperties


@dataclass(slots=True)
class RabbitMQ:
    """One queue over one channel; not thread-safe."""

    name: str
    place: str
    queue: str
    channel: Any
    max_wait_seconds: float = SLICE_MS / 1000

    def receive(self, max_messages: int, wait_seconds: float) -> list[Message]:
        """Return the messages that the server has sent ahead; wait for the first one only."""
        messages: list[Message] = []
        with _translate_errors(self.place, self.queue):
            for method, _, body in self.channel.consume(
                self.queue, inactivity_timeout=max(wait_seconds, _MIN_WAIT_SECONDS), arguments=_NO_STREAM
            ):
                if method is None:
                    break
                messages.append(Message(body, time.time_ns() // 1_000_000, method.delivery_tag))
                if len(messages) >= max_messages or not self.channel.get_waiting_message_count():
                    break
        return messages

    def acknowledge(self, receipts: list[Any]) -> None:
        """Acknowledge everything up to the last receipt."""
        if receipts:
            with _translate_errors(self.place, self.queue):
                self.channel.basic_ack(receipts[-1], multiple=True)

    def release(self, receipts: list[Any]) -> None:
        """Do nothing: the server does it when the connection ends."""

    def backlog(self) -> Backlog:
        """Return the messages ready on the server, or sent ahead to this connection."""
        with _translate_errors(self.place, self.queue):
            ready = self.channel.queue_declare(self.queue, passive=True).method.message_count
        return Backlog(ready + self.channel.get_waiting_message_count(), 0)


@contextmanager
def open_rabbitmq(settings: Settings) -> Generator[RabbitMQ]:
    """Yield the queue of the settings; it must exist."""
    if settings.queue.url is None:
        raise ConfigurationError("queue.url is missing: amqp://user:password@host:5672/vhost")
    parameters = _parse(settings.queue.url.get_secret_value())
    parameters.heartbeat = _HEARTBEAT_SECONDS
    place, queue = f"{parameters.host}:{parameters.port}/{parameters.virtual_host}", settings.queue.name
    with _translate_errors(place, queue):
        connection = pika.BlockingConnection(parameters)
    try:
        with _translate_errors(place, queue, MissingQueueError):
            channel = connection.channel()
            channel.basic_qos(prefetch_count=_PREFETCHED_BATCHES * batch_messages(settings.ingest))
            channel.queue_declare(queue, passive=True)
        yield RabbitMQ(f"rabbitmq:{queue}", place, queue, channel)
    finally:
        with _translate_errors(place, queue):
            if connection.is_open:
                connection.close()


def _parse(url: str) -> pika.URLParameters:
    """Return the parameters of a URL. Raises ConfigurationError without the URL, which may contain a password."""
    try:
        return pika.URLParameters(url)
    except OSError as error:
        raise ConfigurationError(f"queue.url names a file in ssl_options: {error.strerror}: correct its path") from None
    except Exception:  # noqa: BLE001 - whatever a value makes pika raise
        raise ConfigurationError(
            "queue.url is not understood: write amqp://user:password@host:5672/vhost, with %23 for # and so on, and "
            "only parameters that pika knows, with their values"
        ) from None


@contextmanager
def _translate_errors(place: str, queue: str, missing: type[KarmalakeError] = TransientError) -> Generator[None]:
    """Raise errors of the tree; `missing` if there is no such queue, which was there when it was opened."""
    where = f"RabbitMQ at {place}"
    try:
        yield
    except KarmalakeError:
        raise
    except exceptions.ProbableAuthenticationError:
        raise ConfigurationError(f"{where} refused the user or password: correct queue.url") from None
    except exceptions.ProbableAccessDeniedError:
        raise ConfigurationError(
            f"{where} has no such vhost, or refuses it to the user: correct queue.url, or grant access"
        ) from None
    except exceptions.ChannelClosedByBroker as error:
        if error.reply_code == _NOT_FOUND:
            raise missing(f"{where} has no queue {queue}: declare it, durable, and bind it") from None
        if error.reply_code == _ACCESS_REFUSED:
            raise ConfigurationError(
                f"{where} refuses the queue {queue} to the user: grant permission to read"
            ) from None
        if error.reply_code == _PRECONDITION_FAILED and "x-priority" in error.reply_text:
            raise ConfigurationError(
                f"{where}: the queue {queue} is a stream, from which acknowledged messages are not removed: correct "
                "queue.name to a classic or a quorum queue"
            ) from None
        raise TransientError(f"{where} closed the channel: {error.reply_text}") from error
    except ssl.SSLCertVerificationError as error:
        raise ConfigurationError(
            f"{where} has a certificate that is not accepted: {error.verify_message}: correct queue.url, whose "
            "ssl_options name the CA certificates"
        ) from None
    except Exception as error:  # pika raises errors of its connection workflow, sockets and TLS as they are
        description = one_line(error) or ", ".join(map(repr, error.args)) or type(error).__name__
        raise TransientError(f"{where} failed: {description}; check that it runs, then try again") from error
