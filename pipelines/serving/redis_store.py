"""Redis as the document store: which keys a publication sets, finds and deletes, and in which chunks.

`publication.py` owns the transactions and the fence; `leaderboards.py` owns the content of leaderboards.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import redis

from pipelines.serving.client import connect, translate_errors
from pipelines.serving.keys import document_prefix, is_leaderboard, key_pattern, key_types, leaderboard_key
from pipelines.serving.leaderboards import ranked_keys, ranking_commands, removal_commands
from pipelines.serving.publication import Publication, begin, finish, remove, write
from pipelines.serving.publication_state import Stamp, read_state
from pipelines.settings import RedisSettings

_CHUNK_COMMANDS = 2_000
"""Documents and leaderboard entries in one chunk."""
_CHUNK_BYTES = 1024 * 1024
"""Readers wait while Redis applies one chunk: under 10 ms, even with a million users on a leaderboard."""
_SCAN_COUNT = 5_000
_MEMBER_BYTES = 24
"""Approximate size of a score in a command."""


@dataclass(frozen=True, slots=True)
class RedisStore:
    """Documents and leaderboards under a prefix."""

    client: redis.Redis
    prefix: str
    leaderboards: tuple[str, ...]

    def complete_id(self) -> str | None:
        """Return the id of the published publication; None while another one is in progress or interrupted."""
        return read_state(self.client, self.prefix).complete_id

    def begin(self, stamp: Stamp) -> "RedisPublicationWriter":
        """Announce a publication; raises FencedError if a newer one is announced or published."""
        return RedisPublicationWriter(begin(self.client, self.prefix, stamp), self.leaderboards)


@dataclass(slots=True)
class RedisPublicationWriter:
    """A publication in progress; `finish` deletes leaderboards that are no longer configured."""

    publication: Publication
    leaderboards: tuple[str, ...]
    obsolete_keys: tuple[bytes, ...] = ()

    @property
    def id(self) -> str:
        """Random id of this publication."""
        return self.publication.id

    @property
    def previous_id(self) -> str | None:
        """Id of the complete publication that Redis holds, if any."""
        return self.publication.previous_id

    def stored_users(self) -> pl.Series:
        """Return the users (Binary, UTF-8) who have a document or are on a leaderboard.

        No other publisher writes once this one has begun, so SCAN and ZRANGE find everything.
        """
        client, prefix = self.publication.client, self.publication.prefix
        found = pl.concat(_pages(self.publication)).unique()
        before = document_prefix(prefix).encode()
        are_documents = found.bin.starts_with(before)
        wanted = {leaderboard_key(prefix, view) for view in self.leaderboards}
        others = found.filter(~are_documents)
        self.obsolete_keys = tuple(key for key in others if is_leaderboard(prefix, key) and key not in wanted)
        keys = pl.concat([found.filter(are_documents), *ranked_keys(client, prefix, self.leaderboards)])
        return keys.bin.slice(len(before)).unique()

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents, and rank their users on the leaderboards."""
        keys = document_keys(self.publication.prefix, documents["user_id"])
        values = documents["document"].cast(pl.Binary)
        member_sizes = documents["user_id"].str.len_bytes() + _MEMBER_BYTES
        for first, length in self._chunks(keys.bin.size() + values.bin.size() + len(self.leaderboards) * member_sizes):
            rank_commands = ranking_commands(self.publication.prefix, self.leaderboards, documents.slice(first, length))
            write(
                self.publication,
                keys.slice(first, length).to_list(),
                values.slice(first, length).to_list(),
                rank_commands,
            )

    def remove(self, users: pl.Series) -> None:
        """Delete documents, and remove their users from the leaderboards."""
        before = document_prefix(self.publication.prefix).encode()
        keys = pl.Series([before + user for user in users], dtype=pl.Binary)
        for first, length in self._chunks(keys.bin.size() * (1 + len(self.leaderboards))):
            chunk = keys.slice(first, length).to_list()
            remove(self.publication, chunk, removal_commands(self.publication.prefix, self.leaderboards, chunk))

    def finish(self, documents: int) -> None:
        """Mark this publication as the published one."""
        finish(self.publication, documents, self.leaderboards, self.obsolete_keys)

    def _chunks(self, sizes: pl.Series) -> Iterator[tuple[int, int]]:
        """Yield (first, length) of consecutive chunks within both limits; a larger row is its own chunk."""
        max_documents = max(1, _CHUNK_COMMANDS // (1 + len(self.leaderboards)))
        ends = sizes.cast(pl.UInt64).cum_sum().to_numpy()
        first, before = 0, 0
        while first < len(ends):
            fitting = int(ends.searchsorted(before + _CHUNK_BYTES, side="right"))
            end = max(first + 1, min(fitting, first + max_documents))
            yield first, end - first
            first, before = end, int(ends[end - 1])


@contextmanager
def open_redis(settings: RedisSettings) -> Generator[RedisStore]:
    """Yield the store at the configured URL."""
    types = key_types(settings.prefix, settings.leaderboards)
    with connect(settings) as client, translate_errors(client, "publishing", types):
        yield RedisStore(client, settings.prefix, settings.leaderboards)


def _pages(publication: Publication) -> Iterator[pl.Series]:
    """Yield keys as SCAN returns them, with repeats and unrelated keys; at least one page, of any length."""
    cursor = None
    while cursor != 0:
        cursor, page = publication.client.scan(cursor or 0, match=key_pattern(publication.prefix), count=_SCAN_COUNT)
        yield pl.Series(page, dtype=pl.Binary)


def document_keys(prefix: str, user_ids: pl.Series) -> pl.Series:
    """Return the document keys (Binary) of many users (String)."""
    return (document_prefix(prefix) + user_ids).cast(pl.Binary)
