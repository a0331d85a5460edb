"""Checks of what is served: no document differs from the warehouse or is missing, and no other user is served."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import duckdb
import polars as pl

from pipelines.boundary.text import amount
from pipelines.errors import ConfigurationError
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.check import Advice, Check
from pipelines.reputation.derive import draft_holder
from pipelines.reputation.documents import ORIGIN, documents, documents_before_decay
from pipelines.reputation.steps import epoch_us
from pipelines.reputation.warehouse_file import attach, stored_info
from pipelines.serving.keys import publication_key
from pipelines.serving.read import PublishedInfo, published, read_reputation
from pipelines.serving.user_scan import scan_users
from pipelines.settings import CassandraSettings, Settings

_MATCH = "served documents match the lake"
_KNOWN_USERS = "only known users are served"
_MAX_EXAMPLES = 3
_MAX_USERS = 200_000
"""Served users compared with the warehouse in one query: bounds memory."""
_SAMPLE = "SELECT user_id FROM reputation USING SAMPLE 1000 ROWS"
_UNKNOWN_USERS = "SELECT member FROM served_member ANTI JOIN reputation ON encode(user_id) = member"
_WAITING_MINUTES = 60
"""Documents of the steps of so many minutes, or of the last step, may wait: `stream` takes a minute for a million."""
_Document = dict[str, Any] | None
_Compare = Callable[[duckdb.DuckDBPyConnection, Settings, PublishedInfo], Check]


def verify_served(settings: Settings) -> Iterator[Check]:
    """Check that a sample of served documents matches the warehouse; not checked before the first publication."""
    yield _with_warehouse(settings, _MATCH, _documents_match)


def verify_known_users(settings: Settings) -> Check:
    """Check that each document and each leaderboard entry belongs to a user of the warehouse. Scans the store."""
    return _with_warehouse(settings, _KNOWN_USERS, _known_users)


def verify_fresh(settings: Settings) -> Check:
    """Check that the served scores are no older than reputation.max_staleness_seconds."""
    info = published(settings)
    limit = settings.reputation.max_staleness_seconds
    if info is None:
        return Check("served scores are fresh", "fresh", passed=False, evidence="nothing is published yet")
    evidence = f"{info.staleness_seconds:.1f} s old, the limit is {limit:.0f} s"
    return Check("served scores are fresh", "fresh", info.staleness_seconds <= limit, evidence)


def _with_warehouse(settings: Settings, name: str, compare: _Compare) -> Check:
    """Compare what is served with the warehouse, if both are of the same lake version and time."""
    try:
        info = published(settings) if settings.has_document_store else None
        if info is None:
            return Check(name, "fresh", passed=None, evidence="nothing is published yet")
        if not settings.warehouse_path.exists():
            return Check(name, "fresh", passed=None, evidence=f"there is no warehouse: {_replacing(settings)}")
        with attach(settings.warehouse_path) as connection:
            evidence = _state_mismatch(connection, settings, info)
            if evidence:
                return Check(name, "fresh", passed=None, evidence=evidence)
            found = compare(connection, settings, info)
    except ConfigurationError as error:  # content that karmalake did not write: the message says what to do
        return Check(name, "fresh", passed=False, evidence=str(error))
    again = published(settings)
    if found.passed or (again and again.published_at == info.published_at):
        return found
    return Check(name, "fresh", passed=None, evidence="another publication completed during the check")


def _state_mismatch(connection: duckdb.DuckDBPyConnection, settings: Settings, info: PublishedInfo) -> str:
    """Return why what is served cannot be compared with the warehouse, with advice; empty if it can."""
    derived, served = stored_info(connection), info.stamp
    derived_order = derived.lake_version, epoch_us(derived.as_of)
    if derived_order == served.order:
        return ""
    evidence = f"lake version {served.lake_version} as of {served.as_of.isoformat()} is served, version "
    evidence += f"{derived.lake_version} as of {derived.as_of.isoformat()} is in the warehouse"
    if served.order < derived_order:
        return f"{evidence}: {Advice.PUBLISH}"
    if served.lake_version <= take_snapshot(open_lake(settings.lake_root)).version:
        return f"{evidence}: {_replacing(settings)}"
    return (
        f"{evidence}, and the lake itself is older: {Advice.REPLACE_NEWER.format(note=_publication_record(settings))}"
    )


def _replacing(settings: Settings) -> str:
    """Return the advice that leads to a newer warehouse: a refresh, or to wait for the process that makes it."""
    holder = draft_holder(settings.warehouse_path)
    if holder is None:
        return Advice.REFRESH
    return Advice.WAIT.format(seconds=settings.reputation.derive_interval_seconds, holder=holder)


def _publication_record(settings: Settings) -> str:
    """Return where the store records the publication."""
    where = settings.document_store
    if isinstance(where, CassandraSettings):
        return f"the row of prefix {where.prefix} in Cassandra's table publications"
    return f"the Redis key {publication_key(where.prefix)}"


def _documents_match(connection: duckdb.DuckDBPyConnection, settings: Settings, _: PublishedInfo) -> Check:
    """Compare a sample of documents with the store, except for their lake version and time.

    A document may be of an earlier step of decay: `stream` does not publish those of all users at once.
    """
    sample = documents(connection, connection.sql(_SAMPLE).pl()["user_id"])
    served = {user: read_reputation(user, settings) for user in sample["user_id"]}
    different = _different(sample, served)
    wrong = _not_waiting(connection, {user: served[user] for user in different})
    evidence = f"{amount(len(sample), 'user')} compared, {len(wrong):,} differ"
    if waiting := len(different) - len(wrong):
        evidence += f", {waiting:,} wait for their step of decay"
    if wrong:
        evidence += f", for example {wrong[:_MAX_EXAMPLES]}: {Advice.PUBLISH_FULL}"
    return Check(_MATCH, "fresh", not wrong, evidence)


def _different(right: pl.DataFrame, served: Mapping[str, _Document]) -> list[str]:
    """Return the users for whom something else is served than a frame of `documents` has."""
    pairs = zip(right["user_id"], right["document"], strict=True)
    return [user for user, document in pairs if _comparable(served[user]) != _comparable(json.loads(document))]


def _not_waiting(connection: duckdb.DuckDBPyConnection, served: Mapping[str, _Document]) -> list[str]:
    """Return the users, of some, whose document is not that of a step of decay of the last hour either."""
    wrong, info = [*served], stored_info(connection)
    policy = info.policy.at(info.as_of)
    last_steps = max(1, _WAITING_MINUTES // policy.rules.decay_step_minutes) if policy.decays else 0
    for steps in range(1, 1 + last_steps):
        if wrong:
            wrong = _different(documents_before_decay(connection, pl.Series("user_id", wrong), steps), served)
    return wrong


def _comparable(document: _Document) -> _Document:
    return document and {name: value for name, value in document.items() if name not in ORIGIN}


def _known_users(connection: duckdb.DuckDBPyConnection, settings: Settings, info: PublishedInfo) -> Check:
    """Look up all served users in the warehouse, a bounded number at a time."""
    counts, examples = dict[str, int](), list[str]()
    for view, members in _members(settings):
        unknown = members if view and view not in info.leaderboards else _unknown_users(connection, members)
        if len(unknown):
            kind = f"entries of the leaderboard {view}" if view else "documents"
            counts[kind] = counts.get(kind, 0) + len(unknown)
            examples = [*examples, *(user.decode("utf-8", "backslashreplace") for user in unknown[:_MAX_EXAMPLES])][
                :_MAX_EXAMPLES
            ]
    if not counts:
        return Check(_KNOWN_USERS, "fresh", passed=True, evidence="")
    shown = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    evidence = f"not of a user of the warehouse: {shown}, for example {examples}: {Advice.PUBLISH_FULL}"
    return Check(_KNOWN_USERS, "fresh", passed=False, evidence=evidence)


def _members(settings: Settings) -> Iterator[tuple[str | None, pl.Series]]:
    """Yield the served users by leaderboard (None for documents), in chunks of about `_MAX_USERS`."""
    view: str | None = None
    pending: list[pl.Series] = []
    for page in scan_users(settings.document_store):
        if pending and (page.view != view or sum(map(len, pending)) >= _MAX_USERS):
            yield view, pl.concat(pending).unique()
            pending.clear()
        view = page.view
        pending.append(page.users)
    if pending:
        yield view, pl.concat(pending).unique()


def _unknown_users(connection: duckdb.DuckDBPyConnection, members: pl.Series) -> pl.Series:
    connection.register("served_member", members.to_frame("member"))
    found = connection.sql(_UNKNOWN_USERS).pl()["member"]
    connection.unregister("served_member")
    return found
