"""All users of a store, page by page, for checks that compare it with the warehouse.

Read-only. One page is in memory at a time, and Redis serves other clients between pages. A user who changes during
the scan may be missed or returned twice.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import polars as pl

from pipelines.serving.client import connect, scan_keys, translate_errors
from pipelines.serving.keys import document_prefix, key_pattern, key_types, leaderboard_key, leaderboard_view
from pipelines.serving.redis_errors import Client
from pipelines.serving.store import StoreSettings
from pipelines.settings import CassandraSettings, RedisSettings

_SCAN_COUNT = 5_000
_PAGE_MEMBERS = 5_000


@dataclass(frozen=True, slots=True)
class UserPage:
    """Some of the users who have a document (`view` is None) or are on the leaderboard of `view`."""

    view: str | None
    users: pl.Series
    """user_id, Binary, raw UTF-8."""


def scan_users(where: StoreSettings) -> Iterator[UserPage]:
    """Yield all users who have a document, then those on each existing leaderboard, configured or not.

    Raises TransientError if the store does not respond, ConfigurationError if it refuses.
    """
    if isinstance(where, CassandraSettings):
        from pipelines.serving.cassandra_store import read_users  # noqa: PLC0415 - an optional extra

        yield from (UserPage(None, users) for users in read_users(where))
        return
    with (
        closing(connect(where)) as client,
        translate_errors(client, "reading", key_types(where.prefix, where.leaderboards)),
    ):
        yield from _scan_redis(client, where)


def _scan_redis(client: Client, where: RedisSettings) -> Iterator[UserPage]:
    before, views = document_prefix(where.prefix).encode(), set[str]()
    for keys in scan_keys(client, key_pattern(where.prefix), _SCAN_COUNT):
        are_documents = keys.bin.starts_with(before)
        views.update(view for key in keys.filter(~are_documents) if (view := leaderboard_view(where.prefix, key)))
        yield UserPage(None, keys.filter(are_documents).bin.slice(len(before)))
    for view in sorted(views):
        yield from _scan_leaderboard(client, where.prefix, view)


def _scan_leaderboard(client: Client, prefix: str, view: str) -> Iterator[UserPage]:
    first, members = 0, [b""]
    while members:
        members = cast("list[bytes]", client.zrange(leaderboard_key(prefix, view), first, first + _PAGE_MEMBERS - 1))
        yield UserPage(view, pl.Series(members, dtype=pl.Binary))
        first += _PAGE_MEMBERS
