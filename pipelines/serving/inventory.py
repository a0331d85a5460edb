"""Everything that a store holds under a prefix, page by page: what a check compares with the warehouse.

Reads only, and holds one page at a time; Redis serves others in between. What changes meanwhile may be missed or come
twice.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import polars as pl
import redis

from pipelines.serving.client import connect, explained
from pipelines.serving.keys import document_prefix, key_pattern, leaderboard_key, leaderboard_view, types_of
from pipelines.serving.store import StoreSettings
from pipelines.settings import CassandraSettings, RedisSettings

_SCAN_COUNT = 5_000
_PAGE_MEMBERS = 5_000


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the users who have a document, or a place on the leaderboard of `view`."""

    view: str | None
    users: pl.Series
    """Binary, raw UTF-8."""


def pages(where: StoreSettings) -> Iterator[Page]:
    """Yield all users who have a document, then those on each leaderboard that is there, wanted or not.

    Raises TransientError if the store does not answer, ConfigurationError if it refuses.
    """
    if isinstance(where, CassandraSettings):
        from pipelines.serving.cassandra_store import read_users  # noqa: PLC0415 - an optional extra

        yield from (Page(None, users) for users in read_users(where))
        return
    with closing(connect(where)) as client, explained(client, "reading", types_of(where.prefix, where.leaderboards)):
        yield from _of_redis(client, where)


def _of_redis(client: redis.Redis, where: RedisSettings) -> Iterator[Page]:
    before, views = document_prefix(where.prefix).encode(), set[str]()
    cursor = None
    while cursor != 0:
        cursor, found = client.scan(cursor or 0, match=key_pattern(where.prefix), count=_SCAN_COUNT)
        keys = pl.Series(found, dtype=pl.Binary)
        are_documents = keys.bin.starts_with(before)
        views.update(view for key in keys.filter(~are_documents) if (view := leaderboard_view(where.prefix, key)))
        yield Page(None, keys.filter(are_documents).bin.slice(len(before)))
    for view in sorted(views):
        yield from _of_leaderboard(client, where.prefix, view)


def _of_leaderboard(client: redis.Redis, prefix: str, view: str) -> Iterator[Page]:
    first, members = 0, [b""]
    while members:
        members = cast("list[bytes]", client.zrange(leaderboard_key(prefix, view), first, first + _PAGE_MEMBERS - 1))
        yield Page(view, pl.Series(members, dtype=pl.Binary))
        first += _PAGE_MEMBERS
