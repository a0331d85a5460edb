"""The fence: the steps of a publication in Redis. Each step is one transaction (WATCH, MULTI, EXEC).

    begin    rejected if something newer, or of a newer format, is published or in progress; otherwise announces the
             publication under a random id and takes over from any other
    write    sets a chunk of documents and their users' leaderboard scores, if this publication is still the announced
             one and none of its chunks is missing
    remove   deletes a chunk of documents under the same conditions
    finish   makes the announced publication the published one, and deletes obsolete leaderboards
    register gives a publication to a cluster its place in the order of all publications, instead of chunks here

Newer means a greater (lake_version, as_of_us). An equal stamp may begin: that repeats an interrupted publication, or
publishes another policy for the same commit. Chunks are numbered, and Redis counts those it has applied: a server
restored from an older snapshot, or a replica promoted during a publication, has lost some and rejects the rest.

Two publishers, in any interleaving (`fenced`):
- B begins after A, with an equal or newer stamp: A's next step raises FencedError. What A wrote is at most partial
  and not newer than B. B sees the publication in progress, so it writes and cleans up everything.
- B begins after A with an older stamp, before or after A's finish: B is rejected and has written nothing.
- A, paused for any time, resumes after B has finished: A's id is no longer announced, so no step of A has any effect.
- A is paused between reading the hash and sending its chunk: B's begin changed the hash, so Redis drops the chunk.
- Redis loses its data, and with it the fence. Steps in progress raise TransientError. The next publisher to begin,
  even an older one, writes everything; the newer one replaces everything when it publishes again.

A crash leaves, after
- begin, write, remove: the announcement. Readers see documents of both publications, each document whole. The next
  begin finds the announcement, so the next publication is a full one.
- finish, before its caller has recorded the id: an unknown id, so the next publication is a full one.
Steps are idempotent: one whose response was lost is repeated.

Not a Lua script: each document would first become a Lua string, which takes the server more than twice as long as
MSET. In a cluster a transaction cannot span slots: `cluster_publication.py` writes there.
Owns the protocol; `publish.py` decides which documents changed.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import redis
from redis.client import Pipeline

from pipelines.errors import FencedError, TransientError
from pipelines.serving.client import primary_of
from pipelines.serving.keys import publication_key
from pipelines.serving.publication_state import (
    ANNOUNCEMENT,
    PUBLISHED,
    REGISTRATION,
    PublicationState,
    Stamp,
    read_state,
)
from pipelines.serving.redis_errors import Client

Command = Sequence[bytes | str | float]
"""A Redis command with its arguments."""
_ATTEMPTS = 5
_T = TypeVar("_T")


@dataclass(slots=True)
class Publication:
    """A publication in progress, created by `begin`."""

    client: Client
    prefix: str
    stamp: Stamp
    id: str
    previous_id: str | None
    """Id of the complete publication in Redis; None if there is none, or if parts of an interrupted one are there."""
    chunks: int = field(default=0, init=False)
    """Number of chunks that Redis has acknowledged."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The place of a publication to a cluster in the order of all publications."""

    epoch_us: int
    ticket: int
    found: PublicationState
    """The state before the registration."""


def begin(client: Client, prefix: str, stamp: Stamp) -> Publication:
    """Announce a publication, taking over from any other of the same or an older stamp.

    Raises FencedError, with nothing changed, if something newer is published or being published; TransientError if
    other publishers keep beginning at the same time, NewerFormatError if a newer release has published.
    """
    publication_id = uuid.uuid4().hex

    def announce(state: PublicationState, pipeline: Pipeline) -> Publication:
        state.require_known_format(f"the Redis key {publication_key(prefix)}")
        for other in (state.published, state.announced):
            if other is not None and other.order > stamp.order:
                raise FencedError(_refusal(prefix, stamp, other))
        values = (publication_id, stamp.lake_version, stamp.as_of_us, 0, stamp.format)
        pipeline.hset(publication_key(prefix), mapping=dict(zip(ANNOUNCEMENT, values, strict=True)))
        interrupted = state.announced_id not in (None, publication_id)
        return Publication(client, prefix, stamp, publication_id, None if interrupted else state.current_id)

    return _transaction(client, prefix, announce)


def register(publication: Publication, histories: str) -> Registration:
    """Take the next ticket, and record the replication ids of a cluster's primaries. Raises like `write`."""
    found: list[PublicationState] = []

    def take(state: PublicationState, pipeline: Pipeline) -> Registration:
        _check(publication, state)
        found.append(state)
        epoch_us, ticket = state.epoch_us or time.time_ns() // 1_000, state.ticket + 1
        values = (epoch_us, ticket, histories)
        pipeline.hset(publication_key(publication.prefix), mapping=dict(zip(REGISTRATION, values, strict=True)))
        return Registration(epoch_us, ticket, found[0])  # a repeated attempt may find its own registration

    return _transaction(publication.client, publication.prefix, take)


def write(
    publication: Publication, keys: Sequence[bytes], documents: Sequence[bytes], rank_commands: Sequence[Command] = ()
) -> None:
    """Set a chunk of documents and run the commands that rank their users, all or none.

    Redis serves no other client during a chunk, so keep it small. Raises FencedError if another publisher took over,
    TransientError if Redis lost earlier chunks.
    """
    _chunk(publication, [["MSET", *chain.from_iterable(zip(keys, documents, strict=True))], *rank_commands])


def remove(publication: Publication, keys: Sequence[bytes], rank_commands: Sequence[Command] = ()) -> None:
    """Delete a chunk of documents and run the commands that unrank their users, all or none.

    A missing document is not an error. Raises like `write`.
    """
    _chunk(publication, [["DEL", *keys], *rank_commands])


def finish(
    publication: Publication, documents: int, leaderboards: Sequence[str] = (), obsolete_keys: Sequence[bytes] = ()
) -> None:
    """Mark the publication as the published one, and delete `obsolete_keys`. Raises like `write`.

    `documents` is the total number of documents, `leaderboards` the views that have a leaderboard.
    """
    key = publication_key(publication.prefix)
    stamp = publication.stamp

    def complete(state: PublicationState, pipeline: Pipeline) -> None:
        if state.publication_id == publication.id and state.announced_id is None:
            return  # done before; the response was lost
        _check(publication, state)
        shown = (publication.id, stamp.lake_version, stamp.as_of_us, stamp.policy)
        values = (*shown, documents, ",".join(leaderboards), time.time_ns() // 1_000, stamp.format)
        pipeline.hset(key, mapping=dict(zip(PUBLISHED, values, strict=True)))
        pipeline.hdel(key, *ANNOUNCEMENT)
        if obsolete_keys:
            pipeline.unlink(*obsolete_keys)  # not DEL: millions of members would keep readers waiting

    _transaction(publication.client, publication.prefix, complete)


def _chunk(publication: Publication, commands: Sequence[Command]) -> None:
    def apply(state: PublicationState, pipeline: Pipeline) -> None:
        _check(publication, state)
        pipeline.hset(publication_key(publication.prefix), "next_chunk", publication.chunks + 1)
        for command in commands:
            pipeline.execute_command(*command)

    _transaction(publication.client, publication.prefix, apply)
    publication.chunks += 1


def _transaction(client: Client, prefix: str, step: Callable[[PublicationState, Pipeline], _T]) -> _T:
    """Let `step` queue commands based on the state; Redis runs all of them, or none if the state has changed.

    Retries after a change, and after a connection that broke before the response (both are WatchError in redis-py).
    """
    for _ in range(_ATTEMPTS):
        with primary_of(client, publication_key(prefix)).pipeline() as pipeline:
            try:
                pipeline.watch(publication_key(prefix))
                state = read_state(pipeline, prefix)
                pipeline.multi()
                result = step(state, pipeline)
                pipeline.execute()
            except redis.WatchError:
                continue
            return result
    raise TransientError(
        f"{publication_key(prefix)} kept changing, or the connection kept breaking, {_ATTEMPTS} times in a row: "
        "publish again, from one publisher at a time"
    )


def _check(publication: Publication, state: PublicationState) -> None:
    """Raise unless this publication is the announced one and Redis has all its chunks (or one more)."""
    mine = state.announced_id == publication.id
    if mine and state.next_chunk in (publication.chunks, publication.chunks + 1):
        return
    what = f"publishing lake version {publication.stamp.lake_version} to {publication.prefix}:* was stopped"
    if mine:
        raise TransientError(f"{what}: Redis was restored without some of the documents. Publish again")
    by = state.announced or state.published
    if by is None or (state.announced is None and by.order < publication.stamp.order):
        raise TransientError(f"{what}: Redis lost its data during the publication. Publish again")
    raise FencedError(
        f"{what}: another publisher has taken over with version {by.lake_version} as of {by.as_of.isoformat()}. "
        "No action is needed; run only one publisher to avoid this"
    )


def _refusal(prefix: str, stamp: Stamp, newer: Stamp) -> str:
    return (
        f"cannot publish lake version {stamp.lake_version} as of {stamp.as_of.isoformat()} to {prefix}:*: version "
        f"{newer.lake_version} as of {newer.as_of.isoformat()} is published, or being published, and newer. Run "
        f"`karmalake refresh` first: after a `karmalake stream`, the warehouse is behind what it published. If that "
        f"version comes from a lake that this one replaces (restored from a copy, say), or from a wrong clock, delete "
        f"the Redis key {publication_key(prefix)} and run `karmalake publish --full`"
    )
