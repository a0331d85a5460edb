"""Every Redis key of karmalake. `prefix` is a setting (`redis.prefix`), by default `reputation`.

    key                          type        holds
    {prefix}:{user_id}           string      the user's document, JSON in UTF-8; user_id as raw UTF-8 bytes, unescaped
    {prefix}.leaderboard.{view}  sorted set  the users by their score of that view; a view is all_time or last_N_days
    {prefix}.publication         hash        what is published, and what is being published

Only `publish()` writes. A document has no time to live: it is deleted by the first publication that no longer has
its user. The hash is never deleted; deleting it by hand makes the next publication a full one.
A leaderboard is there if the setting `redis.leaderboards` of the last publication names its view, and anybody is on it:
all who have a document, but for those whom the policy hides. A member is a user_id as raw UTF-8 bytes; its score is the
document's as a double. Both change together, and who has no document any more is on no leaderboard any more.

Fields of `{prefix}.publication`; times are microseconds since 1970-01-01 UTC:

    id               random id of the last complete publication
    lake_version     the version of the lake that it shows
    as_of_us         the time that its scores were computed for
    policy           the policy that they were computed by
    documents        how many documents there are
    leaderboards     the views of which there is a leaderboard, between commas
    published_at_us  when it was complete
    next_id, next_lake_version, next_as_of_us
                     the same of the publication in progress, or of one that was interrupted
    next_chunk       how many chunks of it Redis has taken

A prefix holds no colon and a document's key has one right behind it, while the other keys have none: so no user_id can
name them, under whatever prefix.
"""

import re
from collections.abc import Iterable

_LEADERBOARD = "leaderboard."
_VIEW = re.compile(rb"all_time|last_[0-9]+_days")


def document_prefix(prefix: str) -> str:
    """Return what stands before the user_id in the key of every document, and of nothing else."""
    return f"{prefix}:"


def document_key(prefix: str, user_id: str) -> bytes:
    """Return the key of one user's document; a str that is no valid text names nobody, and is no error."""
    return document_prefix(prefix).encode() + user_member(user_id)


def types_of(prefix: str, leaderboards: Iterable[str] = ()) -> dict[bytes, str]:
    """Return the keys under a prefix that are not documents, each with its type; leaderboards by their views."""
    return {publication_key(prefix).encode(): "hash"} | {leaderboard_key(prefix, view): "zset" for view in leaderboards}


def user_member(user_id: str) -> bytes:
    """Return what a leaderboard calls a user: what stands behind the prefix in the document's key."""
    return user_id.encode("utf-8", "surrogatepass")


def leaderboard_key(prefix: str, view: str) -> bytes:
    """Return the key of the leaderboard of a view."""
    return f"{prefix}.{_LEADERBOARD}{view}".encode()


def is_leaderboard(prefix: str, key: bytes) -> bool:
    """Return whether a key is that of some view's leaderboard, and not of another prefix that begins like this one."""
    return leaderboard_view(prefix, key) is not None


def leaderboard_view(prefix: str, key: bytes) -> str | None:
    """Return the view whose leaderboard a key is; None for any other key."""
    before = leaderboard_key(prefix, "")
    found = _VIEW.fullmatch(key, len(before)) if key.startswith(before) else None
    return found and found[0].decode()


def key_pattern(prefix: str) -> str:
    """Return what SCAN matches documents and leaderboards by, among others.

    A prefix holds nothing that a pattern gives a meaning to.
    """
    return f"{prefix}[:.]*"


def publication_key(prefix: str) -> str:
    """Return the key of the one hash of bookkeeping."""
    return f"{prefix}.publication"
