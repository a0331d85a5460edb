"""The trends of each UTC day, kept by differences: a publication reads no user who did not change.

A table of sums over users changes by the sums over the users who changed: of their rows as they are now, minus those of
their rows as they were. The base has the sums of its rows, the file of changes has the differences to them, and a view
adds both (`base.py`). A row whose sums are all zero does not exist. Means and quantiles change by no difference:
`trends_daily` is a view over sums, and `trends_scores` is computed from the counts of the scores of a day, for the days
on which these changed. The SQL is `sql/day_sums.sql`.
"""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager

import duckdb
import pyarrow as pa

from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.sql import arrow_rows, statement
from pipelines.reputation.user_rows import Columns, columns_of, table_form
from pipelines.reputation.warehouse_tables import DAY_SUMS, SCORES, day_sums, score_trends


def create_view_of_sums(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Create the view that adds what changed to the sums of the base."""
    connection.execute(statement("day_sums_view", name=name, **_fragments(connection, name)))


def update_trends(
    connection: duckdb.DuckDBPyConnection,
    policy: EffectivePolicy,
    columns: Mapping[str, Columns],
    before: Mapping[str, pa.Table],
    after: Mapping[str, pa.Table],
) -> None:
    """Add the difference between all rows of some users, before and after, to the trends.

    before, after: TABLES_BY_DAY in their stored form. columns: those of the tables.
    """
    with (
        _sources(connection, "before", columns, before) as earlier,
        _sources(connection, "after", columns, after) as later,
    ):
        were, are = day_sums(policy, earlier), day_sums(policy, later)
        for name in DAY_SUMS:
            fragments = _fragments(connection, name)
            queries = {"before": were[name], "after": are[name]}
            connection.execute(statement("day_sums_difference", name=name, **queries, **fragments))
            connection.execute(statement("day_sums_add", name=name, **fragments))
    connection.execute(statement("day_sums_delete_scores"))
    trends = score_trends(statement("day_sums_scores"))
    connection.execute(statement("insert_rows", name=SCORES, query=trends))


@contextmanager
def _sources(
    connection: duckdb.DuckDBPyConnection, prefix: str, columns: Mapping[str, Columns], tables: Mapping[str, pa.Table]
) -> Generator[dict[str, str]]:
    """Make rows readable; yield a query of each table."""
    with ExitStack() as stack:
        sources = dict[str, str]()
        for name, rows in tables.items():
            stack.enter_context(arrow_rows(connection, rows, f"{prefix}_{name}"))
            read = statement("user_rows_read", columns=table_form(columns[name]), rows=f"{prefix}_{name}")
            sources[name] = f"({read})"
        yield sources


def _fragments(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, str]:
    """Return the parts of the statements that depend on the columns of a table of sums."""
    keys, columns = DAY_SUMS[name], columns_of(connection, f"base.main.{name}")
    sums = {column: kind for column, kind in columns.items() if column not in keys}
    return {
        "keys": ", ".join(keys),
        "sums": ", ".join(f"CAST(sum({column}) AS {kind}) AS {column}" for column, kind in sums.items()),
        "negated": ", ".join(f"-{column} AS {column}" for column in sums),
        "has_any": " OR ".join(f"sum({column}) <> 0" for column in sums),
        "same": " AND ".join(f"stored.{key} IS NOT DISTINCT FROM difference.{key}" for key in keys),
        "cancels": " AND ".join(f"stored.{column} + difference.{column} = 0" for column in sums),
        "added": ", ".join(f"{column} = stored.{column} + difference.{column}" for column in sums),
    }
