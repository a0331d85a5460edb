"""The interface of a document store, and the choice of one by the settings: Redis or Cassandra.

A store holds the documents of a prefix by user, and the publication state. It enforces the fence (`fenced`): once a
newer publication has begun, no step of an older one has any effect.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

import polars as pl

from pipelines.serving.publication_state import Stamp
from pipelines.settings import CassandraSettings, RedisSettings

StoreSettings = RedisSettings | CassandraSettings


class PublicationWriter(Protocol):
    """A publication in progress. Every step raises FencedError if another publisher took over."""

    @property
    def id(self) -> str:
        """Random id of this publication."""
        ...

    @property
    def previous_id(self) -> str | None:
        """Id of the complete publication in the store; None if there is none, or parts of an interrupted one."""
        ...

    def stored_users(self) -> pl.Series:
        """Return the users (Binary, raw UTF-8) who have anything in the store; used by a full publication."""
        ...

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents, a chunk at a time."""
        ...

    def remove(self, users: pl.Series) -> None:
        """Delete the documents of users (Binary), a chunk at a time; a missing one is not an error."""
        ...

    def finish(self, documents: int) -> None:
        """Mark the publication as the published one; `documents` is the total number of documents."""
        ...


class Store(Protocol):
    """A connection to a store."""

    @property
    def leaderboards(self) -> tuple[str, ...]:
        """The views that have a leaderboard."""
        ...

    def complete_id(self) -> str | None:
        """Return the id of the published publication; None if there is none, or if another is in progress."""
        ...

    def begin(self, stamp: Stamp) -> PublicationWriter:
        """Announce a publication; FencedError if something newer is published or being published."""
        ...


@contextmanager
def open_store(settings: StoreSettings) -> Generator[Store]:
    """Yield a store; errors inside the block are TransientError or ConfigurationError, without a password."""
    if isinstance(settings, CassandraSettings):
        from pipelines.serving.cassandra_store import open_cassandra  # noqa: PLC0415 - an optional extra

        with open_cassandra(settings) as store:
            yield store
    else:
        from pipelines.serving.redis_connection import open_redis  # noqa: PLC0415 - not needed for Cassandra

        with open_redis(settings) as store:
            yield store
