"""Every Redis key of karmalake. `prefix` is a setting (`redis.prefix`), by default `reputation`.

    key                    type    holds
    {prefix}:{user_id}     string  the user's document, JSON in UTF-8; user_id as raw UTF-8 bytes, unescaped
    {prefix}.publication   hash    what is published, and what is being published

Only `publish()` writes. A document has no time to live: it is deleted by the first publication that no longer has
its user. The hash is never deleted; deleting it by hand makes the next publication a full one.

Fields of `{prefix}.publication`; times are microseconds since 1970-01-01 UTC:

    id               random id of the last complete publication
    lake_version     the version of the lake that it shows
    as_of_us         the time that its scores were computed for
    policy           the policy that they were computed by
    documents        how many documents there are
    published_at_us  when it was complete
    next_id, next_lake_version, next_as_of_us
                     the same of the publication in progress, or of one that was interrupted
    next_chunk       how many chunks of it Redis has taken

A prefix holds no colon and a document's key has one right behind it, so no user_id can name the hash.
"""


def document_prefix(prefix: str) -> str:
    """Return what stands before the user_id in the key of every document, and of nothing else."""
    return f"{prefix}:"


def document_key(prefix: str, user_id: str) -> bytes:
    """Return the key of one user's document; a str that is no valid text names nobody, and is no error."""
    return f"{document_prefix(prefix)}{user_id}".encode("utf-8", "surrogatepass")


def document_key_pattern(prefix: str) -> str:
    """Return what SCAN matches documents by; a prefix holds nothing that a pattern gives a meaning to."""
    return f"{document_prefix(prefix)}*"


def publication_key(prefix: str) -> str:
    """Return the key of the one hash of bookkeeping."""
    return f"{prefix}.publication"
