"""A notification as an entry of a Redis stream. How a client is built is not known here: it is handed over."""

import json
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004 # the client's own, which is not a builtin
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # noqa: A004 # likewise
    TryAgainError,
)

from pipelines.notify.answers import TAKEN, Answer, Notification, Verdict
from pipelines.notify.rules import RedisStream

_AGAIN = (BusyLoadingError, ConnectionError, OutOfMemoryError, ReadOnlyError, TimeoutError, TryAgainError)


@dataclass(frozen=True, slots=True)
class StreamTransport:
    """A client, which several lanes may share, and the stream it adds to."""

    stream: RedisStream
    client: redis.Redis

    def attempt(self, notification: Notification) -> Answer:
        """Add it once; an attempt whose answer was lost may have added it, and the next one adds it again."""
        event = notification.event
        fields: dict[Any, Any] = event._asdict() | {
            "metadata": json.dumps(dict(event.metadata), ensure_ascii=False, separators=(",", ":")),
            "rule": notification.rule,
            "text": notification.text,
        }
        try:
            self.client.xadd(self.stream.key, fields, maxlen=self.stream.max_length, approximate=True)
        except RedisError as error:
            verdict = Verdict.LATER if isinstance(error, _AGAIN) else Verdict.NEVER
            return Answer(verdict, f"{type(error).__name__}: {error}")
        return TAKEN

    def close(self) -> None:
        """Leave the client to whoever handed it over."""
