"""What a store of documents must be able to do, and which one the settings name: Redis, or Cassandra.

A store holds a prefix's documents by user, and a note of what is published and what is being published. It keeps the
fence (`fenced`): of two publications, a step of the older one has no effect once the newer one has begun.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

import polars as pl

from pipelines.serving.bookkeeping import Stamp
from pipelines.settings import CassandraSettings, RedisSettings

StoreSettings = RedisSettings | CassandraSettings


class Writing(Protocol):
    """A publication in progress. Every step raises FencedError if another publisher took over."""

    @property
    def id(self) -> str:
        """Random."""
        ...

    @property
    def previous_id(self) -> str | None:
        """Id of the complete publication that the store holds; None if none, or parts of an interrupted one."""
        ...

    def held(self) -> pl.Series:
        """Return the users (Binary, raw UTF-8) of whom the store holds anything; asked for by a full publication."""
        ...

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents, a chunk at a time."""
        ...

    def remove(self, users: pl.Series) -> None:
        """Delete the documents of users (Binary), a chunk at a time; absent ones are no error."""
        ...

    def finish(self, documents: int) -> None:
        """Make the publication the published one; `documents` is how many there are in all."""
        ...


class Store(Protocol):
    """A connection to a store."""

    @property
    def leaderboards(self) -> tuple[str, ...]:
        """The views of which it keeps a leaderboard."""
        ...

    def complete_id(self) -> str | None:
        """Return the id of what is published; None if nothing is, or if a publication is in progress."""
        ...

    def begin(self, stamp: Stamp) -> Writing:
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
        from pipelines.serving.redis_store import open_redis  # noqa: PLC0415 - the other one needs none of it

        with open_redis(settings) as store:
            yield store
