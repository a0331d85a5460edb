"""RabbitMQ behind `queue.py`: messages of one queue, acknowledged all up to the last that is committed."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.ingest.message import Message
from pipelines.settings import Settings

try:
    import pika
    from pika import exceptions, spec
except ImportError:
    raise ConfigurationError("RabbitMQ needs a package more: pip install 'karmalake[rabbitmq]'") from None

_PREFETCHED = 50_000
"""What the server sends ahead: two batches and a half."""
_GLANCE_SECONDS = 0.001
_NOT_FOUND = 404


class _NoProperties(spec.BasicProperties):
    """Properties of a message, unread: a time or a header that pika cannot decode would end every consumer."""

    def decode(self, encoded: bytes, offset: int = 0) -> "_NoProperties":  # noqa: ARG002
        """Return properties that say nothing."""
        return self


spec.props[spec.BasicProperties.INDEX] = _NoProperties


@dataclass(slots=True)
class RabbitMQ:
    """One queue over one channel. Used by one thread at a time."""

    name: str
    place: str
    queue: str
    channel: Any

    def receive(self, most: int, wait_seconds: float) -> list[Message]:
        """Return what the server has sent ahead; waits for the first message only."""
        found: list[Message] = []
        with _translated(self.place, self.queue):
            for method, _, body in self.channel.consume(
                self.queue, inactivity_timeout=max(wait_seconds, _GLANCE_SECONDS)
            ):
                if method is None:
                    break
                found.append(Message(body, time.time_ns() // 1_000_000, method.delivery_tag))
                if len(found) >= most or not self.channel.get_waiting_message_count():
                    break
        return found

    def acknowledge(self, receipts: list[Any]) -> None:
        """Acknowledge everything up to the last receipt."""
        if receipts:
            with _translated(self.place, self.queue):
                self.channel.basic_ack(receipts[-1], multiple=True)

    def waiting(self) -> int:
        """Return the messages that are ready on the server, and those that it has sent ahead."""
        with _translated(self.place, self.queue):
            ready = self.channel.queue_declare(self.queue, passive=True).method.message_count
        return ready + self.channel.get_waiting_message_count()


@contextmanager
def open_rabbitmq(settings: Settings) -> Generator[RabbitMQ]:
    """Yield the queue of the settings, which has to exist."""
    if settings.queue.url is None:
        raise ConfigurationError("queue.url is missing: amqp://user:password@host:5672/vhost")
    parameters = pika.URLParameters(settings.queue.url.get_secret_value())
    parameters.heartbeat = 0  # a commit may take longer than anybody answers heartbeats: the connection itself tells
    place = f"{parameters.host}:{parameters.port}/{parameters.virtual_host}"
    with _translated(place, settings.queue.name):
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=_PREFETCHED)
            channel.queue_declare(settings.queue.name, passive=True)
            yield RabbitMQ(f"rabbitmq:{settings.queue.name}", place, settings.queue.name, channel)
        finally:
            if connection.is_open:
                connection.close()


@contextmanager
def _translated(place: str, queue: str) -> Generator[None]:
    where = f"RabbitMQ at {place}"
    try:
        yield
    except exceptions.ProbableAuthenticationError:
        raise ConfigurationError(f"{where} refuses user or password: mend queue.url") from None
    except exceptions.ChannelClosedByBroker as error:
        if error.reply_code == _NOT_FOUND:
            raise UsageError(f"{where} has no queue {queue}: declare it, durable, and bind it") from None
        raise TransientError(f"{where} closed the channel: {error.reply_text}") from error
    except exceptions.AMQPError as error:
        told = str(error) or type(error).__name__
        raise TransientError(f"{where} failed: {told}; check that it runs, then try again") from error
