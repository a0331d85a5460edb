"""The door for notebooks: a published warehouse, opened read-only.

Owns opening and asking; what is in a warehouse is `derive.py`. A warehouse is an immutable file: opening one neither
blocks the pipeline nor changes under the reader, however many newer ones are published meanwhile.
"""

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.contract.moments import Moment, instant
from pipelines.errors import ConfigurationError, UsageError
from pipelines.lake.stores import let_read
from pipelines.reputation.compare import compare_policies
from pipelines.reputation.explain import explain, explain_change
from pipelines.reputation.locked import check_query, lock
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.scores import scores
from pipelines.reputation.sql import literal, statement, use_utc
from pipelines.reputation.trends import ask, find_trend, trends
from pipelines.reputation.waiting import waiting
from pipelines.settings import load_settings

# The lake's files never change: where their parts are is read once.
_SETTINGS = "SET parquet_metadata_cache = true"
_SESSION = "USE warehouse"
_INTERRUPT_SECONDS = 0.1
"""After the first interruption: the next statement of what is asked would run without a limit."""
Parameters = Sequence[Any] | Mapping[str, Any] | None
AnyPolicy = Policy | str | Path
"""A policy, the name of a shipped one, or the path of a policy file."""
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


def open_warehouse(data_dir: Path | str | None = None, *, allow_files: bool = False) -> "Warehouse":
    """Open the published warehouse of a data directory (default: that of the settings).

    With `allow_files` its SQL may read files, such as your own CSV to join with, and load extensions: only for queries
    that you write yourself. Raises UsageError when nothing has been published yet.
    """
    path = load_settings().warehouse_path if data_dir is None else Path(data_dir) / "warehouse.duckdb"
    return Warehouse(path, access=Access(all_files=allow_files))


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection to a warehouse reaches besides the warehouse and the lake's files of its snapshot."""

    all_files: bool = False
    """Whether SQL may read every file, and load extensions."""
    output: Path | None = None
    """A file that we write rows to."""


def attach(path: Path, access: Access = Access()) -> duckdb.DuckDBPyConnection:
    """Return a connection of its own to the warehouse at `path`, read-only and locked to what `access` says.

    The file is attached to an empty database in memory: opened by its path, DuckDB would hand out the file that this
    process opened there earlier, even though a newer one has taken its place.
    """
    if not path.exists():
        raise UsageError(f"there is no warehouse at {path} yet: run `karmalake drain`, then `karmalake rebuild`")
    connection = duckdb.connect()
    try:
        connection.execute(statement("attach", path=literal(str(path))))
        use_utc(connection)
        connection.execute(_SETTINGS)
        connection.execute(_SESSION)
        connection.sql("FROM snapshot_info").fetchall()  # a file that lost its end is found out here
        if connection.execute(statement("views_of_objects")).fetchall():
            let_read(connection)
        if not access.all_files:
            lock(connection, *([] if access.output is None else [access.output]))
    except duckdb.Error as error:
        said = str(error).partition("\n")[0].rstrip(".!")
        raise UsageError(
            f"the warehouse cannot be opened: {said}: let this user read it, or make it anew with `karmalake rebuild`"
        ) from None
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
    `arrow()`, `pandas()` and `relation()` give the others. Their SQL is one query, which reads the warehouse and the
    lake's files of this snapshot and nothing else, unless the warehouse was opened with `allow_files`. Moments are
    times with a zone, UTC days, or ISO 8601 text. A policy may be given by its name or file. A notebook is told of what
    takes longer than two seconds. Not for use by several threads at once: give each its `snapshot()`.
    """

    def __init__(
        self, path: Path, connection: duckdb.DuckDBPyConnection | None = None, access: Access = Access()
    ) -> None:
        self.path = path
        self._access = access
        self._connection = connection or attach(path, access)
        self.info = stored_info(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Warehouse {', '.join(f'{name} {value}' for name, value in self._described())}>"

    def _repr_html_(self) -> str:
        """Return what notebooks show: what the snapshot reflects, and what can be asked of it."""
        rows = [
            *self._described(),
            ("tables", ", ".join(self._ipython_key_completions_())),
            ("trends", ", ".join(trends())),
        ]
        left = 'style="text-align: left"'  # a notebook's own style has numbers in mind
        cells = (f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>" for name, value in rows)
        return f"<table>{''.join(cells)}</table>"

    def _described(self) -> list[tuple[str, str]]:
        info = self.info
        return [
            ("at", str(self.path)),
            ("lake version", str(info.lake_version)),
            ("as of", f"{info.as_of:%Y-%m-%d %H:%M:%S} UTC"),
            ("policy", f"{info.policy.name} {info.policy_version}"),
        ]

    def __getitem__(self, table: str) -> duckdb.DuckDBPyRelation:
        """Return a table or view as a lazy DuckDB relation; in notebooks the tab key completes its name.

        Raises UsageError, with the names that there are, for an unknown one.
        """
        if table not in (known := self._ipython_key_completions_()):
            raise UsageError(f"there is no table {table!r}: there are {', '.join(known)}")
        return self._connection.table(table)

    def _ipython_key_completions_(self) -> list[str]:
        rows = self.sql(
            "SELECT table_name FROM information_schema.tables WHERE table_catalog = 'warehouse' ORDER BY ALL"
        )
        return rows["table_name"].to_list()

    def close(self) -> None:
        """Let go of the snapshot."""
        self._connection.close()

    def refresh(self) -> bool:
        """Move to the warehouse that is published now; return whether it is another one.

        Relations and snapshots made before stay where they are.
        """
        before = self.info
        self._connection = attach(self.path, self._access)
        self.info = stored_info(self._connection)
        return self.info != before

    def snapshot(self) -> "Warehouse":
        """Return another handle on what this one shows now: it stays there while this one is refreshed.

        Closing this one closes it.
        """
        connection = self._connection.cursor()
        connection.execute(_SESSION)
        return Warehouse(self.path, connection, self._access)

    @contextmanager
    def limited(self, seconds: float) -> Generator[None]:
        """Interrupt what is asked within the block once so many seconds are over. Raises UsageError then."""
        done = threading.Event()

        def interrupt() -> None:
            pause = seconds
            while not done.wait(pause):
                self._connection.interrupt()
                pause = _INTERRUPT_SECONDS

        watching = threading.Thread(target=interrupt, daemon=True)
        watching.start()
        try:
            yield
        except duckdb.InterruptException:
            raise UsageError(f"no answer within {seconds:,.0f} s, so the query was ended: ask for less") from None
        finally:
            done.set()
            watching.join()

    def relation(self, query: str, params: Parameters = None) -> duckdb.DuckDBPyRelation:
        """Return a query as a lazy DuckDB relation. Values belong into `params` (`?` or `$name`).

        Raises UsageError for what is not one query.
        """
        check_query(self._connection, query)
        return self._connection.sql(query, params=params)

    def sql(self, query: str, params: Parameters = None) -> pl.DataFrame:
        """Return the rows of a query. Values belong into `params` (`?` or `$name`)."""
        with waiting("the query"):
            return self.relation(query, params).pl()

    def arrow(self, query: str, params: Parameters = None) -> pa.Table:
        """Return the rows of a query as an Arrow table."""
        with waiting("the query"):
            return self.relation(query, params).to_arrow_table()

    def pandas(self, query: str, params: Parameters = None) -> Any:
        """Return the rows of a query as a pandas data frame.

        Raises ConfigurationError where pandas is not installed: karmalake does not need it.
        """
        if find_spec("pandas") is None:
            raise ConfigurationError(
                ".pandas() needs pandas, which is not installed: pip install pandas, or take .sql() or .arrow() instead"
            )
        with waiting("the query"):
            return self.relation(query, params).df()

    def events(
        self,
        user_id: str | None = None,
        action_type: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
    ) -> pl.DataFrame:
        """Return events of the lake, by event_time in [since, until), oldest first."""
        begin, end = (None if moment is None else instant(moment) for moment in (since, until))
        return self.sql(_EVENTS, {"user_id": user_id, "action_type": action_type, "since": begin, "until": end})

    def reputation(self, user_id: str | None = None) -> pl.DataFrame:
        """Return status and scores of one user, or of all: one row a user, columns `{view}_score` and so on."""
        if user_id is None:
            return self.sql("FROM reputation ORDER BY user_id")
        return self.sql("FROM reputation WHERE user_id = ?", [user_id])

    def as_of(self, moment: Moment | None = None, known_at: Moment | None = None) -> "AsOf":
        """Return the door to the scores of another moment (by event time; None: that of the warehouse).

        Everything known today counts, late events and retractions included; with known_at only what was committed
        before that moment, by the rules that were in force then: what could be shown then.
        """
        then = self.info.as_of if moment is None else instant(moment)
        known = None if known_at is None else instant(known_at)
        return AsOf(self._connection, then, known, self._policy(known))

    def scores(self, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Compute everybody's scores, by another policy if one is given; see `AsOf.scores()`."""
        return self.as_of().scores(policy)

    def compare(self, policy: AnyPolicy, before: AnyPolicy | None = None) -> pl.DataFrame:
        """Return what another policy would make of everybody's score and rank; see `AsOf.compare()`."""
        return self.as_of().compare(policy, before)

    def explain(self, user_id: str, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Return every contribution to a user's score with its reason; see `AsOf.explain()`."""
        return self.as_of().explain(user_id, policy)

    def explain_change(self, user_id: str, since: Moment, until: Moment | None = None) -> pl.DataFrame:
        """Return what came, went and expired in a user's score between two moments; see `explain_change()`."""
        end = self.info.as_of if until is None else instant(until)
        with waiting(f"what changed for {user_id}"):
            return explain_change(self._connection, self.info.policy, user_id, instant(since), end)

    def trend(
        self, name: str = "daily", since: Moment | None = None, until: Moment | None = None, **parameters: Any
    ) -> pl.DataFrame:
        """Return the rows of a trend whose UTC day (or first day) lies in [since, until); `trends()` has the names.

        Raises UsageError for an unknown trend or parameter.
        """
        with waiting(f"the trend {name}"):
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


@dataclass(frozen=True, slots=True, repr=False)
class AsOf:
    """The scores of one moment, as now known or as known at another; `Warehouse.as_of()` gives it."""

    _connection: duckdb.DuckDBPyConnection
    moment: datetime
    known_at: datetime | None
    policy: Policy
    """The rules that count here, unless another policy is given."""

    def __repr__(self) -> str:
        known = "as now known" if self.known_at is None else f"as known at {self.known_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"<AsOf {self.moment:%Y-%m-%d %H:%M:%S} UTC, {known}, policy {self.policy.name}>"

    def scores(self, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Compute the scores of every user with an event before the moment: columns as in `reputation`.

        `{view}_score` is Int64 if the policy only has whole points, else Decimal.
        """
        rules = self._rules(policy)
        with waiting(f"scores by {rules.name}"):
            return scores(self._connection, rules, self.moment, self.known_at)

    def compare(self, policy: AnyPolicy, before: AnyPolicy | None = None) -> pl.DataFrame:
        """Return everybody's all-time score and rank by `before` (None: the rules that count here) and by `policy`.

        Columns as `compare_policies()` has them, the largest change first. Nothing is published.
        """
        rules, old = self._rules(policy), self._rules(before)
        with waiting(f"{old.name} beside {rules.name}"):
            return compare_policies(self._connection, old, rules, self.moment, self.known_at)

    def explain(self, user_id: str, policy: AnyPolicy | None = None) -> pl.DataFrame:
        """Return every contribution to a user's score with its reason; `earned` adds up to it. See `explain()`."""
        with waiting(f"the explanation of {user_id}"):
            return explain(self._connection, self._rules(policy), user_id, self.moment, self.known_at)

    def _rules(self, policy: AnyPolicy | None) -> Policy:
        if policy is None:
            return self.policy
        return policy if isinstance(policy, Policy) else load_policy(policy)
