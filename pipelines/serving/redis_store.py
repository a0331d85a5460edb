"""Redis as the document store: which keys a publication sets, finds and deletes, and in which chunks.

`publication.py` owns the transactions and the fence; `leaderboards.py` owns the content of leaderboards.
`cluster_store.py` does the same for a cluster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import redis

from pipelines.serving.client import scan_keys
from pipelines.serving.keys import document_prefix, is_leaderboard, key_pattern, leaderboard_key
from pipelines.serving.leaderboards import ranked_keys, ranking_commands, removal_commands
from pipelines.serving.publication import Publication, begin, finish, remove, write
from pipelines.serving.publication_state import Stamp, read_state
from pipelines.serving.redis_errors import Client

_CHUNK_COMMANDS = 2_000
"""Documents and leaderboard entries in one chunk."""
_CHUNK_BYTES = 1024 * 1024
"""Readers wait while Redis applies one chunk: under 10 ms, even with a million users on a leaderboard."""
_SCAN_COUNT = 5_000
_KEY_BYTES = 64
"""The longest prefix."""
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
        found = find_stored(self.publication.client, self.publication.prefix, self.leaderboards)
        self.obsolete_keys = found.obsolete_keys
        return found.users

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents, and rank their users on the leaderboards."""
        prefix, sizes = self.publication.prefix, document_sizes(documents, self.leaderboards)
        for first, length in chunks(sizes, self.leaderboards):
            chunk = documents.slice(first, length)
            keys, values = document_keys(prefix, chunk["user_id"]), chunk["document"].cast(pl.Binary)
            rank_commands = ranking_commands(prefix, self.leaderboards, chunk)
            write(self.publication, keys.to_list(), values.to_list(), rank_commands)

    def remove(self, users: pl.Series) -> None:
        """Delete documents, and remove their users from the leaderboards."""
        prefix, keys = self.publication.prefix, user_keys(self.publication.prefix, users)
        for first, length in chunks(key_sizes(keys, self.leaderboards), self.leaderboards):
            chunk = keys.slice(first, length).to_list()
            remove(self.publication, chunk, removal_commands(prefix, self.leaderboards, chunk))

    def finish(self, documents: int) -> None:
        """Mark this publication as the published one."""
        finish(self.publication, documents, self.leaderboards, self.obsolete_keys)


def chunks(sizes: pl.Series, leaderboards: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield (first, length) of consecutive chunks within both limits; a larger row is its own chunk."""
    max_documents = max(1, _CHUNK_COMMANDS // (1 + len(leaderboards)))
    ends = sizes.cast(pl.UInt64).cum_sum().to_numpy()
    first, before = 0, 0
    while first < len(ends):
        fitting = int(ends.searchsorted(before + _CHUNK_BYTES, side="right"))
        end = max(first + 1, min(fitting, first + max_documents))
        yield first, end - first
        first, before = end, int(ends[end - 1])


def document_sizes(documents: pl.DataFrame, leaderboards: Sequence[str]) -> pl.Series:
    """Return the approximate bytes of each document's commands."""
    users, texts = documents["user_id"].str.len_bytes(), documents["document"].str.len_bytes()
    return users + _KEY_BYTES + texts + len(leaderboards) * (users + _MEMBER_BYTES)


def key_sizes(keys: pl.Series, leaderboards: Sequence[str]) -> pl.Series:
    """Return the approximate bytes of the commands that delete each document."""
    return keys.bin.size() * (1 + len(leaderboards))


def document_keys(prefix: str, user_ids: pl.Series) -> pl.Series:
    """Return the document keys (Binary) of many users (String)."""
    return (document_prefix(prefix) + user_ids).cast(pl.Binary)


def user_keys(prefix: str, users: pl.Series) -> pl.Series:
    """Return the document keys (Binary) of many users (Binary, raw UTF-8)."""
    before = document_prefix(prefix).encode()
    return pl.Series([before + user for user in users], dtype=pl.Binary)


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """What is stored under a prefix."""

    users: pl.Series
    """The users (Binary, UTF-8) who have a document or are on a configured leaderboard."""
    obsolete_keys: tuple[bytes, ...]
    """The leaderboards that are not configured."""


def find_stored(client: Client, prefix: str, leaderboards: Sequence[str]) -> StoredKeys:
    """Return the stored users and the obsolete leaderboards; complete only without concurrent writes."""
    found = pl.concat(scan_keys(client, key_pattern(prefix), _SCAN_COUNT)).unique()
    before = document_prefix(prefix).encode()
    are_documents = found.bin.starts_with(before)
    wanted = {leaderboard_key(prefix, view) for view in leaderboards}
    obsolete = tuple(key for key in found.filter(~are_documents) if is_leaderboard(prefix, key) and key not in wanted)
    keys = pl.concat([found.filter(are_documents), *ranked_keys(client, prefix, leaderboards)])
    return StoredKeys(keys.bin.slice(len(before)).unique(), obsolete)
