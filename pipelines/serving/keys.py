"""All Redis keys of karmalake. `prefix` is a setting (`redis.prefix`), by default `reputation`.

    key                          type        holds
    {prefix}:{user_id}           string      the user's document, JSON in UTF-8; user_id is raw UTF-8, unescaped
    {prefix}.leaderboard.{view}  sorted set  users by their score in that view; a view is all_time or last_N_days, and
                                             within a scope such as all_time.city=berlin
    {prefix}.publication         hash        what is published, and what is being published
    {prefix}.fence.{{n}}         string      only in a cluster: the publication that last wrote to a hash slot; the
                                             braces are part of the key, and n is the smallest number of that slot

Only `publish()` writes. Documents have no TTL: the first publication without the user deletes the document. The hash
is never deleted; deleting it by hand makes the next publication a full one.
A leaderboard exists if the setting `redis.leaderboards` of the last publication names its view and it has members: all
users with a document, or with the value of the scope, except those whom the policy hides. A member is a user_id as raw
UTF-8 bytes; its score is the score of the document, or that within the scope, as a double. Document and leaderboards
change together.

Fields of `{prefix}.publication`; times are microseconds since 1970-01-01 UTC:

    id               random id of the last complete publication
    lake_version     the lake version that it reflects
    as_of_us         the time that its scores are computed for
    policy           the policy that they are computed by
    documents        number of documents
    leaderboards     views that have a leaderboard, comma-separated
    published_at_us  when it was completed
    format           number of the documents' format (`formats.py`)
    next_id, next_lake_version, next_as_of_us, next_format
                     the same for the publication in progress, or an interrupted one
    next_chunk       number of its chunks that Redis has applied
    epoch_us, ticket, histories
                     only in a cluster: when the hash was created, the number of publications that began since, and
                     the replication ids of the primaries when the last one began

A prefix contains no colon; a document key has one directly after the prefix, and the other keys have none. So no
user_id can collide with them, under any prefix.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from redis.crc import key_slot

HASH_SLOTS = 16_384
"""The number of hash slots of a cluster."""
_LEADERBOARD = "leaderboard."
_VIEW = re.compile(r"(all_time|last_[0-9]+_days)(\.[a-z0-9_]+=[^,:\x00-\x1f\x7f]+)?")


def document_prefix(prefix: str) -> str:
    """Return what precedes the user_id in every document key, and in no other key."""
    return f"{prefix}:"


def document_key(prefix: str, user_id: str) -> bytes:
    """Return the key of one user's document; a str that is not valid Unicode matches no user and is not an error."""
    return document_prefix(prefix).encode() + user_member(user_id)


def key_types(prefix: str, leaderboards: Iterable[str] = ()) -> dict[bytes, str]:
    """Return the Redis type of each key under a prefix that is not a document; `leaderboards` are views."""
    return {publication_key(prefix).encode(): "hash"} | {leaderboard_key(prefix, view): "zset" for view in leaderboards}


def user_member(user_id: str) -> bytes:
    """Return the leaderboard member of a user: the document key without its prefix."""
    return user_id.encode("utf-8", "surrogatepass")


def leaderboard_key(prefix: str, view: str) -> bytes:
    """Return the key of a view's leaderboard."""
    return f"{prefix}.{_LEADERBOARD}{view}".encode()


def is_leaderboard(prefix: str, key: bytes) -> bool:
    """Return whether a key is a leaderboard of exactly this prefix."""
    return leaderboard_view(prefix, key) is not None


def leaderboard_view(prefix: str, key: bytes) -> str | None:
    """Return the view of a leaderboard key; None for any other key."""
    before = leaderboard_key(prefix, "")
    view = key.removeprefix(before).decode("utf-8", "replace")
    return view if key == leaderboard_key(prefix, view) and _VIEW.fullmatch(view) else None


def key_pattern(prefix: str) -> str:
    """Return a SCAN pattern that matches documents and leaderboards, and some other keys.

    A prefix contains no character that is special in a pattern.
    """
    return f"{prefix}[:.]*"


def fence_key(prefix: str, slot: int) -> bytes:
    """Return the key that fences a hash slot of a cluster, and is in this slot."""
    return f"{prefix}.fence.{{{_slot_tags()[slot]}}}".encode()


@cache
def _slot_tags() -> Sequence[int]:
    """Return the smallest number whose digits are in each slot."""
    tags, number = dict[int, int](), 0
    while len(tags) < HASH_SLOTS:
        tags.setdefault(key_slot(b"%d" % number), number)
        number += 1
    return [tags[slot] for slot in range(HASH_SLOTS)]


def publication_key(prefix: str) -> str:
    """Return the key of the publication state, a hash."""
    return f"{prefix}.publication"
