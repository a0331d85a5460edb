"""A notification as an entry of a Redis stream. How a client is built is not known here: it is handed over."""

import json
from dataclasses import dataclass

import redis
from redis.exceptions import RedisError

from pipelines.notify.answers import TAKEN, Answer, Notification, Verdict, described
from pipelines.notify.rules import RedisStream

_Fields = dict[bytes | bytearray | memoryview | str | int | float, bytes | bytearray | memoryview | str | int | float]


@dataclass(frozen=True, slots=True)
class StreamTransport:
    """A client, which several lanes may share, and the stream it adds to."""

    stream: RedisStream
    client: redis.Redis

    def attempt(self, notification: Notification) -> Answer:
        """Add it once; an attempt whose answer was lost may have added it, and the next one adds it again.

        Whatever Redis refuses may be taken later: a server that is full, cannot save or is a replica, a password or a
        key that an operator corrects. The last attempt's refusal is the reason of the dead letter.
        """
        try:
            fields = _fields(notification)
        except UnicodeError as error:
            return Answer(Verdict.NEVER, f"the entry cannot be built: {described(error)}")
        try:
            self.client.xadd(self.stream.key, fields, maxlen=self.stream.max_length, approximate=True)
        except RedisError as error:
            return Answer(Verdict.LATER, self._refusal(error))
        return TAKEN

    def close(self) -> None:
        """Leave the client to whoever handed it over."""

    def _refusal(self, error: RedisError) -> str:
        if not str(error).startswith("WRONGTYPE"):
            return described(error)
        try:
            kind = bytes(self.client.type(self.stream.key)).decode()  # pyright: ignore[reportArgumentType] # not async
        except RedisError:
            kind = "key of another type"
        return (
            f"the Redis key {self.stream.key} is a {kind}, not a stream: give the destination another key, or rename "
            "this one"
        )


def _fields(notification: Notification) -> _Fields:
    """Return the entry, encoded here: a text that is no valid Unicode is refused before it is half sent."""
    event = notification.event
    texts: dict[str, str] = event._asdict() | {
        "metadata": json.dumps(dict(event.metadata), ensure_ascii=False, separators=(",", ":")),
        "rule": notification.rule,
        "text": notification.text,
    }
    return {name: text.encode() for name, text in texts.items()}
