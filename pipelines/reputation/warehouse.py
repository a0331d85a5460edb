"""The door for notebooks: a published warehouse, opened read-only.

Owns opening and asking; what is in a warehouse is `derive.py`. A warehouse is an immutable file: opening one neither
blocks the pipeline nor changes under the reader, however many newer ones are published meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.errors import UsageError
from pipelines.lake.stores import let_read
from pipelines.reputation.explain import explain, explain_change
from pipelines.reputation.policy import Policy
from pipelines.reputation.scores import scores
from pipelines.reputation.sql import literal, statement
from pipelines.reputation.trends import ask, find_trend, trends
from pipelines.settings import load_settings

Parameters = Sequence[Any] | Mapping[str, Any] | None
_EVENTS = """
    SELECT * FROM events
    WHERE ($user_id IS NULL OR user_id = $user_id)
        AND ($action_type IS NULL OR action_type = $action_type)
        AND ($since IS NULL OR event_time >= $since)
        AND ($until IS NULL OR event_time < $until)
    ORDER BY event_time, event_id
"""


@dataclass(frozen=True, slots=True)
class Info:
    """What a warehouse reflects, by which rules, and who made it when."""

    lake_version: int
    as_of: datetime
    policy: Policy
    policy_version: str
    """The version that was in force at as_of."""
    derived_at: datetime
    karmalake_version: str
    recipe: str
    """Names the lake and the statements that it was made with."""
    last_batch: str | None
    """The batch that made lake_version."""


def open_warehouse(data_dir: Path | str | None = None) -> "Warehouse":
    """Open the published warehouse of a data directory (default: that of the settings).

    Raises UsageError when nothing has been published yet.
    """
    path = load_settings().warehouse_path if data_dir is None else Path(data_dir) / "warehouse.duckdb"
    return Warehouse(path)


def attach(path: Path) -> duckdb.DuckDBPyConnection:
    """Return a connection of its own to the warehouse at `path`, read-only.

    The file is attached to an empty database in memory: opened by its path, DuckDB would hand out the file that this
    process opened there earlier, even though a newer one has taken its place.
    """
    if not path.exists():
        raise UsageError(f"there is no warehouse at {path} yet: run `karmalake drain`, then `karmalake rebuild`")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(statement("attach", path=literal(str(path))))
    connection.execute("USE warehouse")
    if connection.execute(statement("views_of_objects")).fetchall():
        let_read(connection)
    return connection


def stored_info(connection: duckdb.DuckDBPyConnection) -> Info:
    """Return what the warehouse says about itself."""
    row = connection.sql("FROM snapshot_info").pl().row(0, named=True)
    return Info(
        lake_version=row["lake_version"],
        as_of=row["as_of"],
        policy=Policy.model_validate_json(row["policy"]),
        policy_version=row["policy_version"],
        derived_at=row["derived_at"],
        karmalake_version=row["karmalake_version"],
        recipe=row.get("recipe", ""),
        last_batch=row.get("last_batch"),
    )


class Warehouse:
    """One published snapshot: the tables of the reputations, and the lake's `events`, `commits`, ... as views.

    It stays what it is while newer ones are published; `refresh()` moves on. Answers are polars data frames;
    `arrow()` and `relation()` give the others. Not for use by several threads at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = attach(path)
        self.info = stored_info(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<Warehouse {self.path}: lake version {info.lake_version} as of {info.as_of:%Y-%m-%d %H:%M:%S} UTC, "
            f"policy {info.policy.name} {info.policy_version}>"
        )

    def close(self) -> None:
        """Let go of the snapshot."""
        self._connection.close()

    def refresh(self) -> bool:
        """Move to the warehouse that is published now; return whether it is another one. Relations made before end."""
        before = self.info
        connection = attach(self.path)
        self._connection.close()
        self._connection = connection
        self.info = stored_info(connection)
        return self.info != before

    def relation(self, query: str, params: Parameters = None) -> duckdb.DuckDBPyRelation:
        """Return a query as a lazy DuckDB relation. Values belong into `params` (`?` or `$name`)."""
        return self._connection.sql(query, params=params)

    def sql(self, query: str, params: Parameters = None) -> pl.DataFrame:
        """Return the rows of a query. Values belong into `params` (`?` or `$name`)."""
        return self.relation(query, params).pl()

    def arrow(self, query: str, params: Parameters = None) -> pa.Table:
        """Return the rows of a query as an Arrow table."""
        return self.relation(query, params).to_arrow_table()

    def events(
        self,
        user_id: str | None = None,
        action_type: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pl.DataFrame:
        """Return events of the lake, by event_time in [since, until), oldest first."""
        values = {"user_id": user_id, "action_type": action_type, "since": since, "until": until}
        return self.sql(_EVENTS, values)

    def reputation(self, user_id: str | None = None) -> pl.DataFrame:
        """Return status and scores of one user, or of all: one row a user, columns `{view}_score` and so on."""
        if user_id is None:
            return self.sql("FROM reputation ORDER BY user_id")
        return self.sql("FROM reputation WHERE user_id = ?", [user_id])

    def scores(
        self, as_of: datetime | None = None, known_at: datetime | None = None, policy: Policy | None = None
    ) -> pl.DataFrame:
        """Compute the scores at another moment, as known at another moment, or by another policy; see `scores()`.

        With known_at the rules, too, are those that were in force then.
        """
        return scores(self._connection, policy or self._policy(known_at), as_of or self.info.as_of, known_at)

    def explain(
        self,
        user_id: str,
        as_of: datetime | None = None,
        known_at: datetime | None = None,
        policy: Policy | None = None,
    ) -> pl.DataFrame:
        """Return every contribution to a user's score with its reason; `earned` adds up to it. See `explain()`.

        With known_at the rules, too, are those that were in force then.
        """
        rules = policy or self._policy(known_at)
        return explain(self._connection, rules, user_id, as_of or self.info.as_of, known_at)

    def explain_change(self, user_id: str, since: datetime, until: datetime | None = None) -> pl.DataFrame:
        """Return what came, went and expired in a user's score between two moments; see `explain_change()`."""
        return explain_change(self._connection, self.info.policy, user_id, since, until or self.info.as_of)

    def trend(
        self, name: str = "daily", since: date | None = None, until: date | None = None, **parameters: Any
    ) -> pl.DataFrame:
        """Return the rows of a trend whose UTC day (or first day) lies in [since, until); `trends()` has the names.

        Raises UsageError for an unknown trend or parameter.
        """
        return ask(self._connection, find_trend(name), since, until, parameters)

    def trends(self) -> pl.DataFrame:
        """Return what trends there are: name, meaning, and parameters with their defaults."""
        rows = [(trend.name, trend.meaning, trend.signature) for trend in trends().values()]
        return pl.DataFrame(rows, ["trend", "meaning", "parameters"], orient="row")

    def _policy(self, known_at: datetime | None) -> Policy:
        """Return the policy in force at a moment; before any was activated, or without one, the warehouse's."""
        if known_at is None:
            return self.info.policy
        rows = self.sql("SELECT policy FROM policies WHERE activated < ? ORDER BY activated DESC LIMIT 1", [known_at])
        return Policy.model_validate_json(rows["policy"][0]) if rows.height else self.info.policy
