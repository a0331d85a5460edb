"""The scores of all users at one moment, without publishing anything."""

from datetime import datetime

import duckdb
import polars as pl

from pipelines.lake.files import compare_checksums
from pipelines.lake.tables import Snapshot
from pipelines.reputation.lake_views import open_lake_views
from pipelines.reputation.merged_users import aliases_in
from pipelines.reputation.policy import Policy
from pipelines.reputation.scopes import find_scope, scope_query
from pipelines.reputation.steps import define_steps, materialize_fact
from pipelines.reputation.views import reputation_query


def scores(
    source: Snapshot | duckdb.DuckDBPyConnection,
    policy: Policy,
    as_of: datetime,
    known_at: datetime | None = None,
    scope: str | None = None,
) -> pl.DataFrame:
    """Compute the scores of every user who had an event before as_of, ordered by user_id.

    Columns: user_id, status ("active" or "suspended"), then for each view (`all_time`, `last_{N}_days`)
    `{view}_score` (Int64 if the policy only has whole points, Float64 if points decay, else Decimal), `{view}_events`,
    `{view}_rating_average` (null without ratings) and the policy's other measures, `{view}_rating_count`.
    scope: the name of a scope of the policy: a row per user and value, ordered by both, with `value` after user_id.
    `as_of` selects events by event time, as known today; `known_at` also by commit time, as known at that moment.
    A connection needs the views `events`, `merged_users` if users were merged, and `commits` for known_at; the call
    leaves temporary objects in it.
    Raises UsageError for an as_of without a time zone, and for a scope that the policy does not have, CorruptionError
    when a file of a snapshot is damaged.
    """
    if isinstance(source, Snapshot):
        compare_checksums(source.files.get("events", ()))
        with open_lake_views(source) as connection:
            return scores(connection, policy, as_of, known_at, scope)
    in_force = define_steps(source, policy, as_of, known_at, known=aliases_in(source, known_at))
    query = f"{reputation_query(in_force)}\nORDER BY user_id"
    if scope is not None:
        query = f"{scope_query(in_force, find_scope(in_force, scope))}\nORDER BY user_id, value"
    materialize_fact(source, in_force)
    return source.sql(query).pl()
