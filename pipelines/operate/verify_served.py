"""Whether what is served is what the warehouse says: no document differs or is missing, and nothing else is there."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import polars as pl

from pipelines.errors import ConfigurationError
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.check import Advice, Check
from pipelines.reputation.documents import documents
from pipelines.reputation.stages import epoch_us
from pipelines.reputation.warehouse import attach, stored_info
from pipelines.serving.inventory import pages
from pipelines.serving.keys import publication_key
from pipelines.serving.read import PublishedInfo, published, read_reputation
from pipelines.settings import CassandraSettings, Settings

_SAME = "Redis serves what the lake says"
_NOTHING_ELSE = "nothing else is served"
_SHOWN = 3
_USERS_AT_ONCE = 200_000
"""Of those served, compared with the warehouse in one query: bounds memory whatever the store holds."""
_SAMPLE = "SELECT user_id FROM reputation USING SAMPLE 1000 ROWS"
_STRANGERS = "SELECT member FROM served_member ANTI JOIN reputation ON encode(user_id) = member"
_Compare = Callable[[duckdb.DuckDBPyConnection, Settings, PublishedInfo], Check]


def verify_served(settings: Settings) -> Iterator[Check]:
    """Check that Redis serves what the warehouse says, for a sample of users; not checked before a publication."""
    yield _compared(settings, _SAME, _same_documents)


def verify_nothing_else(settings: Settings) -> Check:
    """Check that each document and each place on a leaderboard is of a user of the warehouse. Scans the store."""
    return _compared(settings, _NOTHING_ELSE, _nothing_else)


def verify_fresh(settings: Settings) -> Check:
    """Check how old the scores are that are served."""
    info = published(settings)
    limit = settings.reputation.max_staleness_seconds
    if info is None:
        return Check("what is served is fresh", "fresh", passed=False, evidence="nothing is published yet")
    evidence = f"{info.staleness_seconds:.1f} s old, {limit:.0f} s are allowed"
    return Check("what is served is fresh", "fresh", info.staleness_seconds <= limit, evidence)


def _compared(settings: Settings, name: str, compare: _Compare) -> Check:
    """Compare what is served with the warehouse, if both are of the same lake and time."""
    try:
        info = published(settings) if settings.serves else None
        if info is None:
            return Check(name, "fresh", passed=None, evidence="nothing is published yet")
        if not settings.warehouse_path.exists():
            return Check(name, "fresh", passed=None, evidence=f"there is no warehouse: {Advice.REFRESH}")
        with attach(settings.warehouse_path) as connection:
            evidence = _another_state(connection, settings, info)
            if evidence:
                return Check(name, "fresh", passed=None, evidence=evidence)
            found = compare(connection, settings, info)
    except ConfigurationError as error:  # content that is not karmalake's: the sentence says what to do
        return Check(name, "fresh", passed=False, evidence=str(error))
    again = published(settings)
    if found.passed or (again and again.published_at == info.published_at):
        return found
    return Check(name, "fresh", passed=None, evidence="another publication was completed meanwhile")


def _another_state(connection: duckdb.DuckDBPyConnection, settings: Settings, info: PublishedInfo) -> str:
    """Return why what is served cannot be compared with the warehouse, and what to do; empty if it can."""
    derived, served = stored_info(connection), info.stamp
    mine = derived.lake_version, epoch_us(derived.as_of)
    if mine == served.order:
        return ""
    evidence = f"lake version {served.lake_version} as of {served.as_of.isoformat()} is served, version "
    evidence += f"{derived.lake_version} as of {derived.as_of.isoformat()} is derived"
    if served.order < mine:
        return f"{evidence}: {Advice.PUBLISH}"
    if served.lake_version <= take_snapshot(open_lake(settings.lake_root)).version:
        return f"{evidence}: {Advice.REFRESH}"
    return f"{evidence}, and the lake itself is older: {Advice.REPLACE_NEWER.format(note=_note(settings))}"


def _note(settings: Settings) -> str:
    """Return where the store says what is published."""
    where = settings.documents
    if isinstance(where, CassandraSettings):
        return f"the row of prefix {where.prefix} in Cassandra's table publications"
    return f"the Redis key {publication_key(where.prefix)}"


def _same_documents(connection: duckdb.DuckDBPyConnection, settings: Settings, _: PublishedInfo) -> Check:
    """Compare a sample of documents with what Redis holds, but for when they began to say so."""
    sample = documents(connection, connection.sql(_SAMPLE).pl()["user_id"])
    wrong = [
        user_id
        for user_id, document in zip(sample["user_id"], sample["document"], strict=True)
        if _lasting(read_reputation(user_id, settings)) != _lasting(json.loads(document))
    ]
    evidence = f"{len(sample):,} users compared, {len(wrong):,} differ"
    if wrong:
        evidence += f", for example {wrong[:_SHOWN]}: {Advice.PUBLISH_FULL}"
    return Check(_SAME, "fresh", not wrong, evidence)


def _lasting(document: dict[str, Any] | None) -> dict[str, Any] | None:
    return document and {name: value for name, value in document.items() if name not in {"as_of", "lake_version"}}


def _nothing_else(connection: duckdb.DuckDBPyConnection, settings: Settings, info: PublishedInfo) -> Check:
    """Look up all who are served in the warehouse, a bounded number at a time."""
    counts, examples = dict[str, int](), list[str]()
    for view, members in _members(settings):
        strangers = members if view and view not in info.leaderboards else _strangers(connection, members)
        if len(strangers):
            what = f"places on the leaderboard of {view}" if view else "documents"
            counts[what] = counts.get(what, 0) + len(strangers)
            examples = [*examples, *(user.decode("utf-8", "backslashreplace") for user in strangers[:_SHOWN])][:_SHOWN]
    if not counts:
        return Check(_NOTHING_ELSE, "fresh", passed=True, evidence="")
    shown = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    evidence = f"of no user of the warehouse: {shown}, for example {examples}: {Advice.PUBLISH_FULL}"
    return Check(_NOTHING_ELSE, "fresh", passed=False, evidence=evidence)


def _members(settings: Settings) -> Iterator[tuple[str | None, pl.Series]]:
    """Yield who is served, by leaderboard (None: by documents), as many at a time as are compared together."""
    view: str | None = None
    waiting: list[pl.Series] = []
    for page in pages(settings.documents):
        if waiting and (page.view != view or sum(map(len, waiting)) >= _USERS_AT_ONCE):
            yield view, pl.concat(waiting).unique()
            waiting.clear()
        view = page.view
        waiting.append(page.users)
    if waiting:
        yield view, pl.concat(waiting).unique()


def _strangers(connection: duckdb.DuckDBPyConnection, members: pl.Series) -> pl.Series:
    connection.register("served_member", members.to_frame("member"))
    found = connection.sql(_STRANGERS).pl()["member"]
    connection.unregister("served_member")
    return found
