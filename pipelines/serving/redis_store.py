"""Redis as the store of documents: which keys a publication sets, finds and deletes, in which chunks.

The undivided steps and the fence are `publication.py`; what is on a leaderboard is `leaderboards.py`.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import redis

from pipelines.serving.bookkeeping import Stamp, read_held
from pipelines.serving.client import connect, explained
from pipelines.serving.keys import document_prefix, is_leaderboard, key_pattern, leaderboard_key, types_of
from pipelines.serving.leaderboards import placed, ranked_keys, removed
from pipelines.serving.publication import Publication, begin, finish, remove, write
from pipelines.settings import RedisSettings

_CHUNK_COMMANDS = 2_000
"""Documents and places on leaderboards in one chunk."""
_CHUNK_BYTES = 1024 * 1024
"""Readers wait for as long as Redis takes for one chunk: under 10 ms, also with a million users on a leaderboard."""
_SCAN_COUNT = 5_000
_MEMBER_BYTES = 24
"""What a score takes in a command, about."""


@dataclass(frozen=True, slots=True)
class RedisStore:
    """Documents and leaderboards under a prefix."""

    client: redis.Redis
    prefix: str
    leaderboards: tuple[str, ...]

    def complete_id(self) -> str | None:
        """Return the id of what is published, unless a publication is in progress."""
        return read_held(self.client, self.prefix).complete_id

    def begin(self, stamp: Stamp) -> "RedisWriting":
        """Announce a publication."""
        return RedisWriting(begin(self.client, self.prefix, stamp), self.leaderboards)


@dataclass(slots=True)
class RedisWriting:
    """A publication in progress; leaderboards that nobody wants any more go when it is finished."""

    publication: Publication
    leaderboards: tuple[str, ...]
    unwanted: tuple[bytes, ...] = ()

    @property
    def id(self) -> str:
        """Random."""
        return self.publication.id

    @property
    def previous_id(self) -> str | None:
        """The complete publication that Redis holds."""
        return self.publication.previous_id

    def held(self) -> pl.Series:
        """Return the users who have a document, or are on a leaderboard.

        Nobody else writes once it has begun, so what SCAN and ZRANGE find now is all there is.
        """
        client, prefix = self.publication.client, self.publication.prefix
        found = pl.concat(_pages(self.publication)).unique()
        before = document_prefix(prefix).encode()
        are_documents = found.bin.starts_with(before)
        wanted = {leaderboard_key(prefix, view) for view in self.leaderboards}
        others = found.filter(~are_documents)
        self.unwanted = tuple(key for key in others if is_leaderboard(prefix, key) and key not in wanted)
        keys = pl.concat([found.filter(are_documents), *ranked_keys(client, prefix, self.leaderboards)])
        return keys.bin.slice(len(before)).unique()

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents with their users' places on leaderboards."""
        keys = document_keys(self.publication.prefix, documents["user_id"])
        values = documents["document"].cast(pl.Binary)
        member_sizes = documents["user_id"].str.len_bytes() + _MEMBER_BYTES
        for first, length in self._chunks(keys.bin.size() + values.bin.size() + len(self.leaderboards) * member_sizes):
            places = placed(self.publication.prefix, self.leaderboards, documents.slice(first, length))
            write(self.publication, keys.slice(first, length).to_list(), values.slice(first, length).to_list(), places)

    def remove(self, users: pl.Series) -> None:
        """Delete documents with their users' places on leaderboards."""
        before = document_prefix(self.publication.prefix).encode()
        keys = pl.Series([before + user for user in users], dtype=pl.Binary)
        for first, length in self._chunks(keys.bin.size() * (1 + len(self.leaderboards))):
            chunk = keys.slice(first, length).to_list()
            remove(self.publication, chunk, removed(self.publication.prefix, self.leaderboards, chunk))

    def finish(self, documents: int) -> None:
        """Make it the published one."""
        finish(self.publication, documents, self.leaderboards, self.unwanted)

    def _chunks(self, sizes: pl.Series) -> Iterator[tuple[int, int]]:
        """Yield (first, length) of consecutive runs within both bounds; a row beyond the bound is a run of its own."""
        most = max(1, _CHUNK_COMMANDS // (1 + len(self.leaderboards)))
        ends = sizes.cast(pl.UInt64).cum_sum().to_numpy()
        first, before = 0, 0
        while first < len(ends):
            fitting = int(ends.searchsorted(before + _CHUNK_BYTES, side="right"))
            end = max(first + 1, min(fitting, first + most))
            yield first, end - first
            first, before = end, int(ends[end - 1])


@contextmanager
def open_redis(settings: RedisSettings) -> Generator[RedisStore]:
    """Yield the store at the address of the settings."""
    types = types_of(settings.prefix, settings.leaderboards)
    with connect(settings) as client, explained(client, "publishing", types):
        yield RedisStore(client, settings.prefix, settings.leaderboards)


def _pages(publication: Publication) -> Iterator[pl.Series]:
    """Yield keys as SCAN gives them: some twice, and some of others; pages of any length, at least one page."""
    cursor = None
    while cursor != 0:
        cursor, page = publication.client.scan(cursor or 0, match=key_pattern(publication.prefix), count=_SCAN_COUNT)
        yield pl.Series(page, dtype=pl.Binary)


def document_keys(prefix: str, user_ids: pl.Series) -> pl.Series:
    """Return the keys of many users' documents, as Binary."""
    return (document_prefix(prefix) + user_ids).cast(pl.Binary)
