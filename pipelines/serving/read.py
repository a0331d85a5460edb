"""Read what is served: a user's document, who leads and who stands where, and how old all of it is.

    from pipelines.serving.read import published, read_leaderboard, read_rank, read_reputation
    document = read_reputation("driver-17")
    leaders = read_leaderboard("last_30_days", top=3)

Owns no data. Applications in other languages do the same with one GET; docs/redis.md shows how.
"""

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, cast

import redis

from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.serving.bookkeeping import Held, Stamp, read_held, utc_time
from pipelines.serving.client import connect, explained
from pipelines.serving.keys import document_key, leaderboard_key, types_of, user_member
from pipelines.serving.refusals import foreign_content
from pipelines.settings import CassandraSettings, RedisSettings, Settings, load_settings


@dataclass(frozen=True, slots=True)
class PublishedInfo:
    """The last complete publication."""

    stamp: Stamp
    documents: int
    """How many users have a document."""
    leaderboards: tuple[str, ...]
    """The views of which there is a leaderboard."""
    published_at: datetime
    """When the publication was complete, by the publisher's clock, UTC."""
    staleness_seconds: float
    """Now, by this machine's clock, minus the time that the scores were computed for (`stamp.as_of`)."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A user on a leaderboard; rank 1 has the highest score."""

    rank: int
    user_id: str
    score: float


def read_reputation(user_id: str, settings: Settings | None = None) -> dict[str, Any] | None:
    """Return a user's document, None if there is none: one GET on a connection that is kept for the next call.

    Without `settings`: those of the environment and the running local services, looked up once, and again after a
    read that failed. Raises TransientError or ConfigurationError, both without the password.
    """
    where = _default_settings().documents if settings is None else settings.documents
    if isinstance(where, CassandraSettings):
        from pipelines.serving import cassandra_store  # noqa: PLC0415 - an optional extra

        document = cassandra_store.read_document(where, user_id)
        return None if document is None else _parsed(document, partial(cassandra_store.foreign_content, where.prefix))
    key = document_key(where.prefix, user_id)
    with _reading(where, {key: "string"}) as client:
        document = cast("bytes | None", client.get(key))
    return None if document is None else _parsed(document, partial(foreign_content, key))


def _parsed(document: bytes | str, foreign: Callable[[str], ConfigurationError]) -> dict[str, Any]:
    """Return a document; `foreign` makes the error for one that karmalake has not written."""
    try:
        parsed = json.loads(document)
    except (TypeError, ValueError, RecursionError):  # TypeError: of a server that answers GET with a number
        raise foreign("holds no JSON, where karmalake publishes a user's document") from None
    if not isinstance(parsed, dict):
        raise foreign("holds JSON that is no object, where karmalake publishes a user's document")
    return cast("dict[str, Any]", parsed)


def published(settings: Settings | None = None) -> PublishedInfo | None:
    """Return what is published and how stale it is; None before the first complete publication.

    Settings and errors as for `read_reputation`.
    """
    held = _held(settings)
    if held.published is None:
        return None
    staleness_us = max(0, time.time_ns() // 1_000 - held.published.as_of_us)  # a clock may have been set back
    published_at = utc_time(held.published_at_us)
    return PublishedInfo(held.published, held.documents, held.leaderboards, published_at, staleness_us / 1e6)


def newest_as_of(settings: Settings) -> datetime | None:
    """Return the latest moment that anything published, or being published, is as of; None if nothing is.

    Errors as for `read_reputation`.
    """
    held = _held(settings)
    return max((stamp.as_of for stamp in (held.published, held.announced) if stamp), default=None)


def _held(settings: Settings | None) -> Held:
    where = _default_settings().documents if settings is None else settings.documents
    if isinstance(where, CassandraSettings):
        from pipelines.serving import cassandra_store  # noqa: PLC0415 - an optional extra

        return cassandra_store.read_held(where)
    with _reading(where, types_of(where.prefix)) as client:
        return read_held(client, where.prefix)


def read_leaderboard(view: str, settings: Settings | None = None, top: int = 10, offset: int = 0) -> list[Ranked]:
    """Return the users with the highest scores of a view, highest first, without the first `offset` ones.

    Equal scores share the better rank, and the next score's rank is as much higher: 1, 2, 2, 4. Among equal scores the
    order is by user_id, backwards. Suspended users whom the policy hides are on no leaderboard.
    Settings and errors as for `read_reputation`; UsageError for a view without a leaderboard, naming those there are.
    """
    if top < 1 or offset < 0:
        raise UsageError(f"a leaderboard shows top >= 1 users after offset >= 0 others, not {top} after {offset}")
    redis_settings = _redis_settings(settings)
    with _reading(redis_settings, types_of(redis_settings.prefix, [view])) as client:
        key = _leaderboard(client, redis_settings.prefix, view)
        rows = cast("list[tuple[bytes, float]]", client.zrevrange(key, offset, offset + top - 1, withscores=True))
        first = _rank(client, key, rows[0][1]) if rows and offset else 1
    try:
        return list(_ranked(rows, min(first, offset + 1), offset))  # never beyond its place, though somebody may write
    except UnicodeDecodeError:
        raise foreign_content(key, "has a member that is no user_id, since it is not UTF-8") from None


def read_rank(user_id: str, view: str, settings: Settings | None = None) -> int | None:
    """Return a user's rank by the score of a view, 1 for the highest; None for who is not on the leaderboard.

    It is 1 + how many users have a higher score: equal scores share the better rank.
    Settings and errors as for `read_leaderboard`.
    """
    redis_settings = _redis_settings(settings)
    with _reading(redis_settings, types_of(redis_settings.prefix, [view])) as client:
        key = _leaderboard(client, redis_settings.prefix, view)
        score = client.zscore(key, user_member(user_id))
        return None if score is None else _rank(client, key, score)


def _leaderboard(client: redis.Redis, prefix: str, view: str) -> bytes:
    """Return the key of a leaderboard that is published."""
    there = read_held(client, prefix).leaderboards
    if view in there:
        return leaderboard_key(prefix, view)
    raise UsageError(
        f"there is no leaderboard of {view!r} at {prefix}: there is {', '.join(there) or 'none'}. Name the view in the "
        "setting redis.leaderboards (KARMALAKE_REDIS_LEADERBOARDS) and publish"
    )


def _rank(client: redis.Redis, key: bytes, score: float) -> int:
    return 1 + client.zcount(key, f"({score!r}", "+inf")


def _ranked(rows: list[tuple[bytes, float]], first: int, offset: int) -> Iterator[Ranked]:
    rank, last = first, None
    for place, (member, score) in enumerate(rows, offset + 1):
        rank = place if last not in (None, score) else rank
        last = score
        yield Ranked(rank, member.decode(), score)


@contextlib.contextmanager
def _reading(settings: RedisSettings, types: Mapping[bytes, str]) -> Generator[redis.Redis]:
    client = _client(settings)  # pyright: ignore[reportArgumentType] # frozen, so pydantic makes it hashable
    try:
        with explained(client, "reading", types):
            yield client
    except TransientError:
        _default_settings.cache_clear()  # the local cache may have come back on another port
        raise


def _redis_settings(settings: Settings | None) -> RedisSettings:
    where = _default_settings().documents if settings is None else settings.documents
    if isinstance(where, CassandraSettings):
        raise UsageError("leaderboards are kept in Redis only, and the documents are in Cassandra")
    return where


@lru_cache(maxsize=8)
def _client(settings: RedisSettings) -> redis.Redis:
    return connect(settings)


@lru_cache(maxsize=1)
def _default_settings() -> Settings:
    from pipelines.local.services import with_local_endpoints  # noqa: PLC0415 # slow, and not needed by who passes settings

    return with_local_endpoints(load_settings())
