"""Leaderboards: the users of a view by score, one sorted set per view.

Owns the commands that keep them consistent with the documents, and finding their members for a full publication.
`publication.py` decides when the commands run; reading is `read.py`.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import cast

import polars as pl

from pipelines.serving.keys import document_prefix, leaderboard_key
from pipelines.serving.publication import Command
from pipelines.serving.redis_errors import Client

_PAGE_MEMBERS = 5_000


def score_column(view: str) -> str:
    """Return the name of a view's score column in a frame of documents: Float64, null for a user who is not ranked."""
    return f"{view}_score"


def ranking_commands(prefix: str, views: Sequence[str], documents: pl.DataFrame) -> list[Command]:
    """Return the commands that rank the users of these documents by their scores: at most two per view."""
    return list(chain.from_iterable(_ranking_commands(prefix, view, documents) for view in views))


def removal_commands(prefix: str, views: Sequence[str], keys: Sequence[bytes]) -> list[Command]:
    """Return the commands that remove the users with these document keys from every leaderboard."""
    members = [key.removeprefix(document_prefix(prefix).encode()) for key in keys]
    return [["ZREM", leaderboard_key(prefix, view), *members] for view in views]


def ranked_keys(client: Client, prefix: str, views: Sequence[str]) -> Iterator[pl.Series]:
    """Yield the document keys of all users on these leaderboards, by page; complete only without concurrent writes."""
    before = document_prefix(prefix).encode()
    for view in views:
        first, page = 0, [b""]
        while page:
            page = cast("list[bytes]", client.zrange(leaderboard_key(prefix, view), first, first + _PAGE_MEMBERS - 1))
            yield pl.Series([before + member for member in page], dtype=pl.Binary)
            first += _PAGE_MEMBERS


def _ranking_commands(prefix: str, view: str, documents: pl.DataFrame) -> Iterator[Command]:
    key, score = leaderboard_key(prefix, view), documents[score_column(view)].fill_nan(None)
    users = documents["user_id"].cast(pl.Binary)
    ranked, hidden = score.is_not_null(), users.filter(score.is_null())
    if ranked.any():
        pairs = zip(score.filter(ranked).to_list(), users.filter(ranked).to_list(), strict=True)
        yield ["ZADD", key, *chain.from_iterable(pairs)]
    if len(hidden):
        yield ["ZREM", key, *hidden.to_list()]
