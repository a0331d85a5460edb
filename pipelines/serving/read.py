"""Read what is served: a user's document, leaderboards and ranks, and how stale they are.

    from pipelines.serving.read import published, read_leaderboard, read_rank, read_reputation
    document = read_reputation("driver-17")
    leaders = read_leaderboard("last_30_days", top=3)

Owns no data. Applications in other languages do the same with one GET; see docs/redis.md.
"""

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, cast

from redis.exceptions import ResponseError

from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.serving.client import connect, primaries, translate_errors
from pipelines.serving.keys import document_key, key_types, leaderboard_key, publication_key, user_member
from pipelines.serving.publication_state import PublicationState, Stamp, read_state, utc_time
from pipelines.serving.redis_errors import Client, unexpected_content
from pipelines.settings import CassandraSettings, RedisSettings, Settings, load_settings

_MAX_PLACE = 1_000_000_000
"""Of a leaderboard: Redis knows no larger numbers than of 64 bits."""


@dataclass(frozen=True, slots=True)
class PublishedInfo:
    """The last complete publication."""

    stamp: Stamp
    documents: int
    """Number of users who have a document."""
    leaderboards: tuple[str, ...]
    """The views that have a leaderboard."""
    published_at: datetime
    """When the publication was completed, by the publisher's clock, UTC."""
    staleness_seconds: float
    """Now, by this machine's clock, minus the time that the scores are computed for (`stamp.as_of`)."""


@dataclass(frozen=True, slots=True)
class LeaderboardEntry:
    """A user on a leaderboard; rank 1 has the highest score."""

    rank: int
    user_id: str
    score: float


def read_reputation(user_id: str, settings: Settings | None = None) -> dict[str, Any] | None:
    """Return a user's document, or None if there is none: one GET on a cached connection.

    Without `settings`, those of the environment and the running local services apply; they are read once, and again
    after a failed read. Raises TransientError or ConfigurationError, both without the password.
    """
    where = _default_settings().document_store if settings is None else settings.document_store
    if isinstance(where, CassandraSettings):
        from pipelines.serving import cassandra_store  # noqa: PLC0415 - an optional extra

        document = cassandra_store.read_document(where, user_id)
        return (
            None if document is None else _parsed(document, partial(cassandra_store.unexpected_content, where.prefix))
        )
    key = document_key(where.prefix, user_id)
    with _reading(where, {key: "string"}) as client:
        document = cast("bytes | None", client.get(key))
    return None if document is None else _parsed(document, partial(unexpected_content, key))


def _parsed(document: bytes | str, foreign: Callable[[str], ConfigurationError]) -> dict[str, Any]:
    """Parse a document; `foreign` builds the error for one that karmalake did not write."""
    try:
        parsed = json.loads(document)
    except (TypeError, ValueError, RecursionError):  # TypeError: a server that answers GET with a number
        raise foreign("is not valid JSON, but karmalake publishes a user's document there") from None
    if not isinstance(parsed, dict):
        raise foreign("is not a JSON object, but karmalake publishes a user's document there")
    return cast("dict[str, Any]", parsed)


def published(settings: Settings | None = None) -> PublishedInfo | None:
    """Return the last complete publication and its staleness; None before the first one.

    Settings and errors as for `read_reputation`.
    """
    state = _read_state(settings)
    if state.published is None:
        return None
    staleness_us = max(0, time.time_ns() // 1_000 - state.published.as_of_us)  # the clock may have been set back
    published_at = utc_time(state.published_at_us)
    return PublishedInfo(state.published, state.documents, state.leaderboards, published_at, staleness_us / 1e6)


def latest_as_of(settings: Settings) -> datetime | None:
    """Return the latest `as_of` of what is published or being published; None if nothing is.

    Errors as for `read_reputation`.
    """
    state = _read_state(settings)
    return max((stamp.as_of for stamp in (state.published, state.announced) if stamp), default=None)


def may_have_documents(settings: Settings) -> bool:
    """Return whether a publication with documents is published, or one is in progress or was interrupted.

    Errors as for `read_reputation`.
    """
    state = _read_state(settings)
    return state.documents > 0 or state.announced_id is not None


def evicting_policy(settings: Settings) -> str | None:
    """Return the maxmemory-policy of a Redis that may evict documents; None if none does, or it must not be asked.

    Errors as for `read_reputation`.
    """
    where = settings.document_store
    if isinstance(where, CassandraSettings):
        return None
    with _reading(where, {}) as client, contextlib.suppress(ResponseError):
        limits = (server.info("memory") for server in primaries(client))
        found = (str(each.get("maxmemory_policy")) for each in limits if each.get("maxmemory"))
        return next((policy for policy in found if policy.startswith("allkeys")), None)
    return None


def _read_state(settings: Settings | None) -> PublicationState:
    where = _default_settings().document_store if settings is None else settings.document_store
    if isinstance(where, CassandraSettings):
        from pipelines.serving import cassandra_store  # noqa: PLC0415 - an optional extra

        state, place = cassandra_store.read_state(where), f"the row {where.prefix} of publications in Cassandra"
    else:
        with _reading(where, key_types(where.prefix)) as client:
            state, place = read_state(client, where.prefix), f"the Redis key {publication_key(where.prefix)}"
    state.require_known_format(place)
    return state


def read_leaderboard(
    view: str, settings: Settings | None = None, top: int = 10, offset: int = 0
) -> list[LeaderboardEntry]:
    """Return the users with the highest scores of a view, highest first, skipping the first `offset`.

    Equal scores share the better rank, and the next rank is skipped accordingly: 1, 2, 2, 4. Users with equal scores
    are in descending order of user_id. Suspended users whom the policy hides are not ranked.
    Settings and errors as for `read_reputation`; UsageError for a view without a leaderboard, with the published ones.
    """
    # a notebook has no type checker
    if {type(top), type(offset)} != {int} or not (1 <= top <= _MAX_PLACE and 0 <= offset <= _MAX_PLACE):
        raise UsageError(
            "a leaderboard needs whole numbers, top >= 1 and offset >= 0, each at most "
            f"{_MAX_PLACE:,}, not top={top!r} and offset={offset!r}"
        )
    redis_settings = _redis_settings(settings)
    with _reading(redis_settings, key_types(redis_settings.prefix, [view])) as client:
        key = _leaderboard(client, redis_settings.prefix, view)
        rows = cast("list[tuple[bytes, float]]", client.zrevrange(key, offset, offset + top - 1, withscores=True))
        first = _rank(client, key, rows[0][1]) if rows and offset else 1
    try:
        return list(_ranked(rows, min(first, offset + 1), offset))  # a concurrent write must not move it past its place
    except UnicodeDecodeError:
        raise unexpected_content(key, "has a member that is not a user_id: it is not UTF-8") from None


def read_rank(user_id: str, view: str, settings: Settings | None = None) -> int | None:
    """Return a user's rank by the score of a view, 1 for the highest; None for a user who is not ranked.

    The rank is 1 + the number of users with a higher score: equal scores share the better rank.
    Settings and errors as for `read_leaderboard`.
    """
    redis_settings = _redis_settings(settings)
    with _reading(redis_settings, key_types(redis_settings.prefix, [view])) as client:
        key = _leaderboard(client, redis_settings.prefix, view)
        score = client.zscore(key, user_member(user_id))
        return None if score is None else _rank(client, key, score)


def _leaderboard(client: Client, prefix: str, view: str) -> bytes:
    """Return the key of a published leaderboard; UsageError if it is not published."""
    views = read_state(client, prefix).leaderboards
    if view in views:
        return leaderboard_key(prefix, view)
    raise UsageError(
        f"no leaderboard is published for {view!r} under prefix {prefix} (published: {', '.join(views) or 'none'}). "
        "Add the view to the setting redis.leaderboards (KARMALAKE_REDIS_LEADERBOARDS) and publish"
    )


def _rank(client: Client, key: bytes, score: float) -> int:
    return 1 + client.zcount(key, f"({score!r}", "+inf")


def _ranked(rows: list[tuple[bytes, float]], first: int, offset: int) -> Iterator[LeaderboardEntry]:
    rank, last = first, None
    for place, (member, score) in enumerate(rows, offset + 1):
        rank = place if last not in (None, score) else rank
        last = score
        yield LeaderboardEntry(rank, member.decode(), score)


@contextlib.contextmanager
def _reading(settings: RedisSettings, types: Mapping[bytes, str]) -> Generator[Client]:
    client = _client(settings)  # pyright: ignore[reportArgumentType] # frozen, so pydantic makes it hashable
    try:
        with translate_errors(client, "reading", types):
            yield client
    except TransientError:
        _default_settings.cache_clear()  # the local cache may have restarted on another port
        raise


def _redis_settings(settings: Settings | None) -> RedisSettings:
    where = _default_settings().document_store if settings is None else settings.document_store
    if isinstance(where, CassandraSettings):
        raise UsageError("leaderboards require Redis, but the documents are in Cassandra")
    return where


@lru_cache(maxsize=8)
def _client(settings: RedisSettings) -> Client:
    return connect(settings)


@lru_cache(maxsize=1)
def _default_settings() -> Settings:
    from pipelines.local.services import with_local_endpoints  # noqa: PLC0415 # slow, and not needed by callers that pass settings

    return with_local_endpoints(load_settings())
