"""A Redis Cluster as the document store: which commands a publication sends to which hash slot.

`cluster_publication.py` owns the fences; chunks and keys are those of one server (`redis_store.py`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

import polars as pl
from redis.cluster import RedisCluster
from redis.crc import key_slot

from pipelines.errors import TransientError
from pipelines.serving.cluster_publication import (
    MOVING,
    ClusterPublication,
    SlotCommand,
    begin_in_cluster,
    claim_all_slots,
    execute,
    finish_in_cluster,
    read_layout,
)
from pipelines.serving.leaderboards import ranking_commands, removal_commands
from pipelines.serving.publication import Command
from pipelines.serving.publication_state import Stamp, read_state
from pipelines.serving.redis_store import chunks, document_keys, document_sizes, find_stored, key_sizes, user_keys


@dataclass(frozen=True, slots=True)
class ClusterStore:
    """Documents and leaderboards under a prefix."""

    client: RedisCluster
    prefix: str
    leaderboards: tuple[str, ...]

    def complete_id(self) -> str | None:
        """Return the id of the published publication; None while another one is in progress or interrupted."""
        return read_state(self.client, self.prefix).complete_id

    def begin(self, stamp: Stamp) -> "ClusterPublicationWriter":
        """Announce a publication; raises FencedError if a newer one is announced or published."""
        return ClusterPublicationWriter(begin_in_cluster(self.client, self.prefix, stamp), self.leaderboards)


@dataclass(slots=True)
class ClusterPublicationWriter:
    """A publication in progress; `finish` deletes leaderboards that are no longer configured."""

    publication: ClusterPublication
    leaderboards: tuple[str, ...]
    obsolete_keys: tuple[bytes, ...] = ()

    @property
    def id(self) -> str:
        """Random id of this publication."""
        return self.publication.publication.id

    @property
    def previous_id(self) -> str | None:
        """Id of the complete publication that every primary holds, if any."""
        return self.publication.previous_id

    def stored_users(self) -> pl.Series:
        """Return the users (Binary, UTF-8) who have a document or are on a leaderboard.

        Shuts out other publishers first, so SCAN and ZRANGE find everything, unless a slot moves meanwhile:
        TransientError.
        """
        if self.previous_id is None:
            claim_all_slots(self.publication)
        layout = read_layout(self.publication.client)
        found = find_stored(self.publication.client, self._prefix, self.leaderboards)
        if read_layout(self.publication.client) != layout:
            raise TransientError(MOVING)
        self.obsolete_keys = found.obsolete_keys
        return found.users

    def write(self, documents: pl.DataFrame) -> None:
        """Set documents, and rank their users on the leaderboards."""
        order = _order_by_slot(document_keys(self._prefix, documents["user_id"]))
        sizes = document_sizes(documents, self.leaderboards).gather(order)
        for first, length in chunks(sizes, self.leaderboards):
            chunk = documents[order.slice(first, length)]
            pairs = zip(document_keys(self._prefix, chunk["user_id"]), chunk["document"].cast(pl.Binary), strict=True)
            rank_commands = ranking_commands(self._prefix, self.leaderboards, chunk)
            execute(self.publication, chain(_set_commands(pairs), map(_on_leaderboard, rank_commands)))

    def remove(self, users: pl.Series) -> None:
        """Delete documents, and remove their users from the leaderboards."""
        keys = user_keys(self._prefix, users)
        keys = keys.gather(_order_by_slot(keys))
        for first, length in chunks(key_sizes(keys, self.leaderboards), self.leaderboards):
            chunk = keys.slice(first, length).to_list()
            rank_commands = removal_commands(self._prefix, self.leaderboards, chunk)
            execute(self.publication, chain(_delete_commands(chunk), map(_on_leaderboard, rank_commands)))

    def finish(self, documents: int) -> None:
        """Mark this publication as the published one."""
        execute(self.publication, (_on_leaderboard(["UNLINK", key]) for key in self.obsolete_keys))
        finish_in_cluster(self.publication, documents, self.leaderboards)

    @property
    def _prefix(self) -> str:
        return self.publication.publication.prefix


def _order_by_slot(keys: pl.Series) -> pl.Series:
    """Return the positions of keys, so that those of one slot follow each other."""
    return pl.Series([key_slot(key) for key in keys], dtype=pl.UInt16).arg_sort()


def _set_commands(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[SlotCommand]:
    for slot, group in groupby(pairs, lambda pair: key_slot(pair[0])):
        found = list(group)
        yield SlotCommand(slot, [key for key, _ in found], ["MSET", *chain.from_iterable(found)])


def _delete_commands(keys: Iterable[bytes]) -> Iterator[SlotCommand]:
    for slot, group in groupby(keys, key_slot):
        found = list(group)
        yield SlotCommand(slot, found, ["DEL", *found])


def _on_leaderboard(command: Command) -> SlotCommand:
    """Return a command whose second word is the key of a leaderboard."""
    key = command[1]
    assert isinstance(key, bytes)  # noqa: S101 - tells the type checker
    return SlotCommand(key_slot(key), [key], command)
