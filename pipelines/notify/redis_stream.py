"""A notification as an entry of a Redis stream. The client is passed in."""

import json
from dataclasses import dataclass

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from pipelines.notify.delivery import DELIVERED, DeliveryResult, Notification, Outcome, describe_error
from pipelines.notify.rules import RedisStream

_Fields = dict[bytes | bytearray | memoryview | str | int | float, bytes | bytearray | memoryview | str | int | float]


@dataclass(frozen=True, slots=True)
class StreamTransport:
    """A client, which several lanes may share, and the stream to add to."""

    stream: RedisStream
    client: redis.Redis | RedisCluster

    def attempt(self, notification: Notification) -> DeliveryResult:
        """Add the entry once; if the response of an attempt is lost, the next attempt may add it a second time.

        Every error of Redis is retried: a full server, one that cannot save, a replica, or a password or key that an
        operator corrects. The error of the last attempt is the reason of the dead letter.
        """
        try:
            fields = _fields(notification)
        except UnicodeError as error:
            return DeliveryResult(Outcome.REJECTED, f"the entry cannot be built: {describe_error(error)}")
        try:
            self.client.xadd(self.stream.key, fields, maxlen=self.stream.max_length, approximate=True)
        except (RedisError, RedisClusterException) as error:
            refusal = self._refusal(error)
            if isinstance(self.client, redis.Redis):  # the next attempt finds a server that has taken over the address
                self.client.connection_pool.disconnect(inuse_connections=False)
            return DeliveryResult(Outcome.RETRY, refusal)
        return DELIVERED

    def close(self) -> None:
        """Do nothing: the caller owns the client."""

    def _refusal(self, error: RedisError | RedisClusterException) -> str:
        if not str(error).startswith("WRONGTYPE"):
            return describe_error(error)
        try:
            kind = bytes(self.client.type(self.stream.key)).decode()  # pyright: ignore[reportArgumentType] # not async
        except (RedisError, RedisClusterException):
            kind = "key of another type"
        return (
            f"the Redis key {self.stream.key} is a {kind}, not a stream: give the destination another key, or rename "
            "this one"
        )


def _fields(notification: Notification) -> _Fields:
    """Return the encoded entry: invalid Unicode is rejected before anything is sent."""
    event = notification.event
    texts: dict[str, str] = event._asdict() | {
        "metadata": json.dumps(dict(event.metadata), ensure_ascii=False, separators=(",", ":")),
        "rule": notification.rule,
        "text": notification.text,
    }
    return {name: text.encode() for name, text in texts.items()}
