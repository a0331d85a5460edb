"""Read what is served: a user's document, and how old all of it is.

    from pipelines.serving.read import published, read_reputation
    document = read_reputation("driver-17")

Owns no data. Applications in other languages do the same with one GET; docs/redis.md shows how.
"""

import contextlib
import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

import redis

from pipelines.errors import TransientError
from pipelines.serving.bookkeeping import Stamp, read_held, utc_time
from pipelines.serving.client import connect, explained
from pipelines.serving.keys import document_key
from pipelines.settings import RedisSettings, Settings, load_settings


@dataclass(frozen=True, slots=True)
class PublishedInfo:
    """The last complete publication."""

    stamp: Stamp
    documents: int
    """How many users have a document."""
    published_at: datetime
    """When the publication was complete, by the publisher's clock, UTC."""
    staleness_seconds: float
    """Now, by this machine's clock, minus the time that the scores were computed for (`stamp.as_of`)."""


def read_reputation(user_id: str, settings: Settings | None = None) -> dict[str, Any] | None:
    """Return a user's document, None if there is none: one GET on a connection that is kept for the next call.

    Without `settings`: those of the environment and the running local services, looked up once, and again after a
    read that failed. Raises TransientError or ConfigurationError, both without the password.
    """
    redis_settings = _redis_settings(settings)
    with _reading(redis_settings) as client:
        document = cast("bytes | None", client.get(document_key(redis_settings.prefix, user_id)))
    return None if document is None else json.loads(document)


def published(settings: Settings | None = None) -> PublishedInfo | None:
    """Return what is published and how stale it is; None before the first complete publication.

    Settings and errors as for `read_reputation`.
    """
    redis_settings = _redis_settings(settings)
    with _reading(redis_settings) as client:
        held = read_held(client, redis_settings.prefix)
    if held.published is None:
        return None
    staleness_us = time.time_ns() // 1_000 - held.published.as_of_us
    return PublishedInfo(held.published, held.documents, utc_time(held.published_at_us), staleness_us / 1e6)


@contextlib.contextmanager
def _reading(settings: RedisSettings) -> Generator[redis.Redis]:
    client = _client(settings)  # pyright: ignore[reportArgumentType] # frozen, so pydantic makes it hashable
    try:
        with explained(client, "reading"):
            yield client
    except TransientError:
        _default_settings.cache_clear()  # the local cache may have come back on another port
        raise


def _redis_settings(settings: Settings | None) -> RedisSettings:
    return _default_settings() if settings is None else settings.redis


@lru_cache(maxsize=8)
def _client(settings: RedisSettings) -> redis.Redis:
    return connect(settings)


@lru_cache(maxsize=1)
def _default_settings() -> RedisSettings:
    from pipelines.local.services import with_local_endpoints  # noqa: PLC0415 # slow, and not needed by who passes settings

    return with_local_endpoints(load_settings()).redis
