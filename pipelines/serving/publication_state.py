"""The publication state: one Redis hash that records what is published; `keys.py` lists its fields.

Owns parsing the fields. `publication.py` decides when they change.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from redis.client import Pipeline

from pipelines.errors import one_line
from pipelines.formats import DOCUMENTS
from pipelines.serving.keys import publication_key
from pipelines.serving.redis_errors import Client, unexpected_content

PUBLISHED = ("id", "lake_version", "as_of_us", "policy", "documents", "leaderboards", "published_at_us", "format")
"""The fields of the last complete publication."""
ANNOUNCEMENT = ("next_id", "next_lake_version", "next_as_of_us", "next_chunk", "next_format")
"""The fields that are set while a publication is in progress, and after it was interrupted."""
REGISTRATION = ("epoch_us", "ticket", "histories")
"""The fields that a publication to a cluster sets when it begins; they remain."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_time(us: int) -> datetime:
    """Return microseconds since 1970-01-01 as a UTC datetime, without rounding."""
    return _EPOCH + timedelta(microseconds=us)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a publication reflects: a lake version, the time its scores are valid for (us since 1970, UTC), a policy."""

    lake_version: int
    as_of_us: int
    policy: str
    format: int = DOCUMENTS.number
    """The format of the documents."""

    @property
    def as_of(self) -> datetime:
        """`as_of_us` as a UTC time."""
        return utc_time(self.as_of_us)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: the newer stamp is greater. Policy and format are not part of it."""
        return self.lake_version, self.as_of_us


@dataclass(frozen=True, slots=True)
class PublicationState:
    """The parsed hash (`keys.py`); the stamp of a publication in progress has no policy yet."""

    publication_id: str | None
    published: Stamp | None
    documents: int
    leaderboards: tuple[str, ...]
    published_at_us: int
    announced_id: str | None
    announced: Stamp | None
    next_chunk: int
    epoch_us: int = 0
    ticket: int = 0
    histories: str = ""

    @property
    def complete_id(self) -> str | None:
        """The id of the published publication; None if there is none, or if another is in progress or interrupted."""
        return self.current_id if self.announced_id is None else None

    @property
    def current_id(self) -> str | None:
        """The id of the last complete publication; None if its documents have another format."""
        current = self.published is not None and self.published.format == DOCUMENTS.number
        return self.publication_id if current else None

    def require_known_format(self, where: str) -> None:
        """Raise NewerFormatError if what is published, or being published, has a newer format."""
        for stamp in filter(None, (self.published, self.announced)):
            DOCUMENTS.require_known(stamp.format, where)


def read_state(client: Client | Pipeline, prefix: str) -> PublicationState:
    """Read the publication state; every field is None, empty or zero if the hash does not exist.

    Raises ConfigurationError for a hash that karmalake did not write.
    """
    key = publication_key(prefix)
    fields = cast("dict[bytes, bytes]", client.hgetall(key))
    try:
        return _parse_state({name.decode(): value.decode() for name, value in fields.items()})
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"has fields that karmalake does not write ({type(error).__name__}: {one_line(error)})"
        raise unexpected_content(key.encode(), what) from None


def _parse_state(texts: dict[str, str]) -> PublicationState:
    return PublicationState(
        texts.get("id"),
        _stamp(texts, ""),
        int(texts.get("documents", 0)),
        tuple(filter(None, texts.get("leaderboards", "").split(","))),
        _microseconds(texts.get("published_at_us", "0")),
        texts.get("next_id"),
        _stamp(texts, "next_"),
        int(texts.get("next_chunk", 0)),
        _microseconds(texts.get("epoch_us", "0")),
        int(texts.get("ticket", 0)),
        texts.get("histories", ""),
    )


def _stamp(texts: dict[str, str], kind: str) -> Stamp | None:
    if f"{kind}id" not in texts:
        return None
    as_of_us = _microseconds(texts[f"{kind}as_of_us"])
    return Stamp(
        int(texts[f"{kind}lake_version"]), as_of_us, texts.get(f"{kind}policy", ""), int(texts.get(f"{kind}format", 0))
    )


def _microseconds(text: str) -> int:
    """Return microseconds since 1970; OverflowError for a value outside the range of datetime."""
    us = int(text)
    utc_time(us)
    return us
