"""What the one hash of bookkeeping says about what is published; `keys.py` lists its fields.

Owns the way from fields to values. When they change is `publication.py`'s affair.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import redis

from pipelines.errors import one_line
from pipelines.serving.keys import publication_key
from pipelines.serving.refusals import foreign_content

PUBLISHED = ("id", "lake_version", "as_of_us", "policy", "documents", "leaderboards", "published_at_us")
"""The fields of the last complete publication."""
ANNOUNCEMENT = ("next_id", "next_lake_version", "next_as_of_us", "next_chunk")
"""The fields that stand while a publication is in progress, and after it was interrupted."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_time(us: int) -> datetime:
    """Return microseconds since 1970 as a UTC time, exactly."""
    return _EPOCH + timedelta(microseconds=us)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a publication shows: a version of the lake, the time its scores hold for (us since 1970, UTC), a policy."""

    lake_version: int
    as_of_us: int
    policy: str

    @property
    def as_of(self) -> datetime:
        """`as_of_us` as a UTC time."""
        return utc_time(self.as_of_us)

    @property
    def order(self) -> tuple[int, int]:
        """Newer is greater; the policy has no part in it."""
        return self.lake_version, self.as_of_us


@dataclass(frozen=True, slots=True)
class Held:
    """What the hash of bookkeeping says (`keys.py`); a Stamp in progress has no policy yet."""

    publication_id: str | None
    published: Stamp | None
    documents: int
    leaderboards: tuple[str, ...]
    published_at_us: int
    announced_id: str | None
    announced: Stamp | None
    next_chunk: int

    @property
    def complete_id(self) -> str | None:
        """The id of what is published; None if nothing is, or if another publication is in progress or interrupted."""
        return self.publication_id if self.announced_id is None else None


def read_held(client: redis.Redis, prefix: str) -> Held:
    """Return what the hash of bookkeeping says; all None and zero if there is none.

    Raises ConfigurationError for a hash that karmalake has not written.
    """
    key = publication_key(prefix)
    try:
        fields = cast("dict[bytes, bytes]", client.hgetall(key))
        return _held({name.decode(): value.decode() for name, value in fields.items()})
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"holds fields that karmalake does not write ({type(error).__name__}: {one_line(error)})"
        raise foreign_content(key.encode(), what) from None


def _held(texts: dict[str, str]) -> Held:
    return Held(
        texts.get("id"),
        _stamp(texts, ""),
        int(texts.get("documents", 0)),
        tuple(filter(None, texts.get("leaderboards", "").split(","))),
        _microseconds(texts.get("published_at_us", "0")),
        texts.get("next_id"),
        _stamp(texts, "next_"),
        int(texts.get("next_chunk", 0)),
    )


def _stamp(texts: dict[str, str], kind: str) -> Stamp | None:
    if f"{kind}id" not in texts:
        return None
    as_of_us = _microseconds(texts[f"{kind}as_of_us"])
    return Stamp(int(texts[f"{kind}lake_version"]), as_of_us, texts.get(f"{kind}policy", ""))


def _microseconds(text: str) -> int:
    """Return microseconds since 1970; OverflowError for what no datetime can be."""
    us = int(text)
    utc_time(us)
    return us
