"""The fence: what one publication asks of Redis, step by step, each step undivided (WATCH, MULTI, EXEC).

    begin    refused if something newer is published or in progress; otherwise the publication is announced under a
             random id, and takes over from any other one
    write    a chunk of documents with their users' places on leaderboards, if this publication is still the one
             announced and no chunk of it is missing
    remove   the same for documents to be deleted
    finish   the announced publication becomes the published one; leaderboards that nobody wants any more go

Newer means a greater (lake_version, as_of_us). An equal stamp may begin: that is how an interrupted publication is
done again, and how a changed policy is published for the same commit. Chunks are numbered, and Redis counts those
it has: a server that came back from an older snapshot, or a replica promoted in the midst, has lost some and
refuses the rest.

Two publishers, whatever the order of their steps (`fenced`):
- B begins after A, with an equal or newer stamp: A's next step raises FencedError. What A wrote is at most partial
  and not newer than B; B was told of the publication in progress, so it writes and cleans up everything.
- B begins after A with an older stamp, before or after A's finish: B is refused and has written nothing.
- A, paused for any time, wakes after B has finished: A's id is not announced any more, so no step of A has any effect.
- A is paused between reading the hash and sending its chunk: B's begin changed the hash, so Redis drops the chunk.
- Redis loses its data: the fence with it. Steps in progress raise TransientError; whoever begins next fills Redis
  anew, even an older publisher, until the newer one publishes again (and then everything).

A crash leaves, after
- begin, write, remove: the announcement. Readers see documents of both publications, each document whole. The next
  begin finds the announcement, so the next publication is a full one.
- finish, before its caller has recorded the id: an id that nobody knows, so the next publication is a full one.
A step whose answer was lost is repeated: each is idempotent.

Not a Lua script: every document would become a string of Lua first, which costs the server more than twice the time
of MSET. Redis Cluster is not supported: one transaction touches keys of many slots.
Owns the protocol; which documents changed is `publish.py`'s affair.
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
from pipelines.serving.bookkeeping import ANNOUNCEMENT, PUBLISHED, Held, Stamp, read_held
from pipelines.serving.keys import publication_key

Command = Sequence[bytes | str | float]
"""A Redis command with its arguments."""
_ATTEMPTS = 5
_T = TypeVar("_T")


@dataclass(slots=True)
class Publication:
    """A publication in progress; `begin` makes it."""

    client: redis.Redis
    prefix: str
    stamp: Stamp
    id: str
    previous_id: str | None
    """Id of the complete publication that Redis holds; None if it holds none, or parts of an interrupted one."""
    chunks: int = field(default=0, init=False)
    """How many chunks Redis has acknowledged."""


def begin(client: redis.Redis, prefix: str, stamp: Stamp) -> Publication:
    """Announce a publication, taking over from any other of the same or an older stamp.

    Raises FencedError, with nothing changed, if something newer is published or being published; TransientError if
    other publishers begin at the same moment, again and again.
    """
    publication_id = uuid.uuid4().hex

    def announce(held: Held, transaction: Pipeline) -> Publication:
        for other in (held.published, held.announced):
            if other is not None and other.order > stamp.order:
                raise FencedError(_refusal(prefix, stamp, other))
        values = (publication_id, stamp.lake_version, stamp.as_of_us, 0)
        transaction.hset(publication_key(prefix), mapping=dict(zip(ANNOUNCEMENT, values, strict=True)))
        interrupted = held.announced_id not in (None, publication_id)
        return Publication(client, prefix, stamp, publication_id, None if interrupted else held.publication_id)

    return _undivided(client, prefix, announce)


def write(
    publication: Publication, keys: Sequence[bytes], documents: Sequence[bytes], places: Sequence[Command] = ()
) -> None:
    """Set a chunk of documents, and their users' places on leaderboards by these commands, all or none.

    Redis serves nobody else meanwhile, so keep it small. Raises FencedError if another publisher took over,
    TransientError if Redis lost what was written before.
    """
    _chunk(publication, [["MSET", *chain.from_iterable(zip(keys, documents, strict=True))], *places])


def remove(publication: Publication, keys: Sequence[bytes], places: Sequence[Command] = ()) -> None:
    """Delete a chunk of documents, and their users' places on leaderboards by these commands, all or none.

    Absent ones are no error. Raises like `write`.
    """
    _chunk(publication, [["DEL", *keys], *places])


def finish(
    publication: Publication, documents: int, leaderboards: Sequence[str] = (), unwanted: Sequence[bytes] = ()
) -> None:
    """Make the publication the published one, now, and delete the unwanted keys. Raises like `write`.

    `documents` is how many there are in all, `leaderboards` the views of which there is one.
    """
    key = publication_key(publication.prefix)
    stamp = publication.stamp

    def complete(held: Held, transaction: Pipeline) -> None:
        if held.publication_id == publication.id and held.announced_id is None:
            return  # done before, and the answer was lost
        _check(publication, held)
        shown = (publication.id, stamp.lake_version, stamp.as_of_us, stamp.policy)
        values = (*shown, documents, ",".join(leaderboards), time.time_ns() // 1_000)
        transaction.hset(key, mapping=dict(zip(PUBLISHED, values, strict=True)))
        transaction.hdel(key, *ANNOUNCEMENT)
        if unwanted:
            transaction.unlink(*unwanted)  # not DEL: millions of members would keep readers waiting

    _undivided(publication.client, publication.prefix, complete)


def _chunk(publication: Publication, commands: Sequence[Command]) -> None:
    def apply(held: Held, transaction: Pipeline) -> None:
        _check(publication, held)
        transaction.hset(publication_key(publication.prefix), "next_chunk", publication.chunks + 1)
        for command in commands:
            transaction.execute_command(*command)

    _undivided(publication.client, publication.prefix, apply)
    publication.chunks += 1


def _undivided(client: redis.Redis, prefix: str, step: Callable[[Held, Pipeline], _T]) -> _T:
    """Let `step` queue commands by what the hash holds; Redis runs all of them, or none if the hash has changed.

    A change, or a connection that broke before the answer came (redis-py calls both WatchError), means once more.
    """
    for _ in range(_ATTEMPTS):
        with client.pipeline() as transaction:
            try:
                transaction.watch(publication_key(prefix))
                held = read_held(transaction, prefix)
                transaction.multi()
                result = step(held, transaction)
                transaction.execute()
            except redis.WatchError:
                continue
            return result
    raise TransientError(
        f"{publication_key(prefix)} kept changing, or the connection kept breaking, {_ATTEMPTS} times in a row: "
        "publish again, from one publisher at a time"
    )


def _check(publication: Publication, held: Held) -> None:
    """Refuse to go on unless this publication is the one announced, and Redis has all its chunks (or one more)."""
    mine = held.announced_id == publication.id
    if mine and held.next_chunk in (publication.chunks, publication.chunks + 1):
        return
    what = f"publishing lake version {publication.stamp.lake_version} to {publication.prefix}:* was ended"
    if mine:
        raise TransientError(f"{what}: Redis came back without some of the documents. Publish again")
    by = held.announced or held.published
    if by is None or (held.announced is None and by.order < publication.stamp.order):
        raise TransientError(f"{what}: Redis lost its data meanwhile. Publish again")
    raise FencedError(
        f"{what}: another publisher has taken over with version {by.lake_version} as of {by.as_of.isoformat()}. "
        "Nothing needs to be done; run only one publisher to avoid this"
    )


def _refusal(prefix: str, stamp: Stamp, newer: Stamp) -> str:
    return (
        f"cannot publish lake version {stamp.lake_version} as of {stamp.as_of.isoformat()} to {prefix}:*: version "
        f"{newer.lake_version} as of {newer.as_of.isoformat()} is published, or being published, and newer. If that "
        f"one comes from a lake which this one replaces, or from a wrong clock, delete the Redis key "
        f"{publication_key(prefix)} and publish again"
    )
