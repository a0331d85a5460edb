"""The documents that are served: one JSON text per user, computed by SQL from a published warehouse.

Owns the document's members; the serving stage decides where and when documents are published.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.errors import ConfigurationError
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.numbers import MINUTE_US
from pipelines.reputation.policy.scopes import OMITTED
from pipelines.reputation.scopes import scope_relation
from pipelines.reputation.sql import statement
from pipelines.reputation.views import View, view_columns, views
from pipelines.reputation.warehouse_file import Info, attach, stored_info
from pipelines.reputation.warehouse_tables import views_of_sums

_PART_USERS = 50_000
"""Users of one part: some 70 MB of documents."""
SHOWN = ",\n    shown_json AS shown"
"""A column for `documents_of`: that of `shown_rows`, by the same statement."""
_SETTING = "the setting redis.leaderboards (KARMALAKE_REDIS_LEADERBOARDS)"
ORIGIN = frozenset({"as_of", "decayed_to", "lake_version"})
"""Members that say what a document was computed from; a document that differs only in them is not published again."""


def documents(
    source: duckdb.DuckDBPyConnection | Path | str, users: pl.Series | None = None, leaderboards: Sequence[str] = ()
) -> pl.DataFrame:
    """Return the document of every user of a warehouse, ordered by user_id.

    users: user_ids (String) to restrict the result to; unknown ones are ignored. None: all users.
    leaderboards: names of views whose scores are returned as well; within a scope `{view}.{scope}={value}`.
    Columns: `user_id` and `document` (String), `digest` (UInt64), and for each view of `leaderboards` `{view}_score`
    (Float64): the user's score there, or null for a suspended user whom the policy hides and for one without the value.
    The digest covers the document without the members of `ORIGIN`, and the scores within scopes: while it is unchanged,
    the published document stays, with its older as_of.
    Raises UsageError when there is no warehouse at the path, ConfigurationError for a view or scope that its policy
    lacks.
    """
    if not isinstance(source, duckdb.DuckDBPyConnection):
        with attach(Path(source)) as connection:
            return documents(connection, users, leaderboards)
    parts = [*document_parts(source, users, leaderboards)]
    return pl.concat(parts).sort("user_id")


def document_parts(
    connection: duckdb.DuckDBPyConnection, users: pl.Series | None = None, leaderboards: Sequence[str] = ()
) -> Generator[pl.DataFrame]:
    """Yield documents like `documents`, a bounded number at a time, in no order: those of all users need not fit.

    Nothing else may use the connection until the generator is exhausted or closed. Raises like `documents`.
    """
    return documents_of(connection, stored_info(connection), "reputation", users, leaderboards)


def documents_before_decay(connection: duckdb.DuckDBPyConnection, users: pl.Series, steps: int) -> pl.DataFrame:
    """Return the documents of users of a warehouse whose points decay, without its last steps of decay.

    For users whose scores changed by these steps only, they are those from before, except for the members of `ORIGIN`.
    Columns as in `documents`.
    """
    info = stored_info(connection)
    in_force = info.policy.at(info.as_of)
    step_us = in_force.rules.decay_step_minutes * MINUTE_US
    queries = views_of_sums(replace(in_force, decayed_to_us=in_force.decayed_to_us - steps * step_us))
    scopes = {name: f"({queries[scope_relation(name)]})" for name in in_force.rules.scopes}
    return pl.concat(documents_of(connection, info, f"({queries['reputation']})", users, (), scopes))


def documents_of(
    connection: duckdb.DuckDBPyConnection,
    info: Info,
    source: str,
    users: pl.Series | None,
    leaderboards: Sequence[str],
    scopes: Mapping[str, str] | None = None,
    more: str = "",
) -> Generator[pl.DataFrame]:
    """Yield documents like `document_parts`, from rows of `reputation`; at least one part, which may be empty.

    info: what the rows reflect; the row of `snapshot_info` may be an older one.
    source: a table, or a query in parentheses, with the rows of `reputation` of at least these users.
    scopes: the same for each scope by its name; None: the tables or views of the warehouse.
    more: further columns as SQL, each after a comma.
    """
    in_force = info.policy.at(info.as_of)
    for name, value in _origin(info).items():
        connection.execute(f"SET VARIABLE document_{name} = ?", [value])
    of_scopes = map(_scope_members, in_force.rules.scopes)
    own = [_defaults(in_force), *_level(in_force), *_members(in_force), *of_scopes]
    sources = scopes or {name: scope_relation(name) for name in in_force.rules.scopes}
    ranked = [_find_ranked(name, in_force) for name in leaderboards]
    connection.execute("SET VARIABLE ranked_values = CAST(? AS VARCHAR[])", [[each.value for each in ranked]])
    fragments = {
        "source": source,
        "members": ",\n        ".join(own),
        "scores": _scores(ranked, in_force) + more,
        "ranked": "".join(f" || ';' || coalesce(CAST(ranked_{n} AS VARCHAR), '')" for n, _ in _scoped(ranked)),
    }
    with _only(connection, users) as only:
        joins = _scopes(sources, in_force, only) + _ranked_joins(ranked, sources, only)
        query = statement("documents", only=only, scopes=joins, **fragments)
        names = {f"leaderboard_{n}": f"{name}_score" for n, name in enumerate(leaderboards)}
        with connection.sql(query).to_arrow_reader(_PART_USERS) as parts:
            yield pl.DataFrame(pa.Table.from_batches([*islice(parts, 1)], parts.schema)).rename(names)
            for part in parts:
                yield pl.DataFrame(part).rename(names)


def shown_rows(connection: duckdb.DuckDBPyConnection, source: str, users: pl.Series) -> pl.DataFrame:
    """Return what is shown of users: `user_id`, and `shown`, the row of `reputation` as JSON (both String).

    source: like that of `documents_of`. users: user_ids (String); unknown ones are ignored.
    """
    with _only(connection, users) as only:
        return connection.sql(statement("shown_rows", source=source, only=only)).pl()


def shown_users(connection: duckdb.DuckDBPyConnection) -> pl.Series:
    """Return the user_ids (String) of all who are shown."""
    return connection.sql(statement("shown_users")).pl()["user_id"]


@contextmanager
def _only(connection: duckdb.DuckDBPyConnection, users: pl.Series | None) -> Generator[str]:
    """Yield the join that restricts rows to some users (String), or nothing for all of them (None)."""
    if users is None:
        yield ""
        return
    connection.register("document_user", users.unique().to_frame("user_id"))
    try:
        yield "SEMI JOIN document_user USING (user_id)"
    finally:
        connection.unregister("document_user")


def rfc3339(moment: datetime) -> str:
    """Return a moment as RFC 3339 text in UTC with a Z, with microseconds only if they are not zero."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _origin(info: Info) -> dict[str, str | int]:
    """Return what documents say of their origin, by the names of variables of the statement."""
    return {
        "moments": _moments(info),
        "policy": info.policy.name,
        "policy_version": info.policy_version,
        "lake_version": info.lake_version,
    }


def _moments(info: Info) -> str:
    """Return the members `as_of` and, where points decay, `decayed_to` as JSON, each after a comma."""
    moments = {"as_of": info.as_of, "decayed_to": info.decayed_to}
    return "".join(f',"{name}":"{rfc3339(moment)}"' for name, moment in moments.items() if moment)


def _members(policy: EffectivePolicy) -> list[str]:
    return [_member(view, policy) for view in views(policy)]


def _scope_members(name: str) -> str:
    """Return the members of a scope as SQL: the views of each value, and the number of values left out."""
    found = f"coalesce(by_{name}, CAST('{{}}' AS JSON))"
    return f"by_{name} := {found}, by_{name}{OMITTED} := coalesce(by_{name}{OMITTED}, 0)"


def _scopes(sources: Mapping[str, str], policy: EffectivePolicy, only: str) -> str:
    """Return the joins that give a document the columns of `_scope_members`; nothing without scopes."""
    members = ", ".join(_members(policy))
    limits = {name: str(scope.limit) for name, scope in policy.rules.scopes.items()}
    return "".join(
        "\n" + statement("scope_document", scope=name, source=source, limit=limits[name], members=members, only=only)
        for name, source in sources.items()
    )


def _member(view: View, policy: EffectivePolicy) -> str:
    """Return the document's member of a view as SQL: `reputation_{view}` with the view's columns."""
    fields = ", ".join(f"{column} := {view.name}_{column}" for column in view_columns(policy))
    return f"reputation_{view.name} := struct_pack({fields})"


@dataclass(frozen=True, slots=True)
class _Ranked:
    """What a leaderboard ranks: a view, overall or within a value of a scope."""

    view: str
    scope: str
    """Empty: overall."""
    value: str


def require_ranked(leaderboards: Sequence[str], policy: EffectivePolicy, setting: str = _SETTING) -> None:
    """Raise ConfigurationError unless a policy has what the leaderboards rank.

    setting: what names the leaderboards, for the message.
    """
    for name in leaderboards:
        _find_ranked(name, policy, setting)


def _find_ranked(name: str, policy: EffectivePolicy, setting: str = _SETTING) -> _Ranked:
    view, _, within = name.partition(".")
    scope, _, value = within.partition("=")
    named = f"{setting} names {name!r}"
    _require(named, "view", view, [each.name for each in views(policy)])
    if scope:
        _require(named, "scope", scope, policy.rules.scopes)
    return _Ranked(view, scope, value)


def _require(named: str, kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigurationError(f"{named}, but the policy has no such {kind}: it has {', '.join(known) or 'none'}")


def _scoped(ranked: Sequence[_Ranked]) -> list[tuple[int, _Ranked]]:
    """Return the leaderboards within scopes, with their numbers."""
    return [(number, each) for number, each in enumerate(ranked) if each.scope]


def _scores(ranked: Sequence[_Ranked], policy: EffectivePolicy) -> str:
    """Return the score columns for leaderboards as SQL, by number, each preceded by a comma."""
    hidden = "status = 'suspended'" if policy.rules.status.rule == "hide" else "false"
    scores = [f"ranked_{number}" if each.scope else f"{each.view}_score" for number, each in enumerate(ranked)]
    column = "CASE WHEN {hidden} THEN NULL ELSE CAST({score} AS DOUBLE) END AS leaderboard_{number}"
    columns = (column.format(hidden=hidden, score=score, number=number) for number, score in enumerate(scores))
    return "".join(f",\n    {each}" for each in columns)


def _ranked_joins(ranked: Sequence[_Ranked], sources: Mapping[str, str], only: str) -> str:
    """Return the joins that give each user the scores within scopes that leaderboards rank."""
    return "".join(
        "\n" + statement("scope_ranked", no=f"{no}", view=each.view, source=sources[each.scope], only=only)
        for no, each in _scoped(ranked)
    )


def _level(policy: EffectivePolicy) -> list[str]:
    """Return the member `level` as SQL, if the policy has levels: its name, the next one, and the points up to it."""
    fields = "name := level, next := next_level, needed := points_to_next_level"
    return [f"level := struct_pack({fields})"] if policy.rules.levels else []


def _defaults(policy: EffectivePolicy) -> str:
    """Return the member `defaults` as SQL: by measure, the policy's value to show where the measure is missing."""
    defaults = {name: measure.default for name, measure in policy.rules.all_measures.items()}
    fields = (f"{name} := CAST({'NULL' if number is None else number} AS DOUBLE)" for name, number in defaults.items())
    return f"defaults := struct_pack({', '.join(fields)})"
