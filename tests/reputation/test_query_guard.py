"""A reader's SQL is one query over the warehouse and the lake's files of its snapshot, and reaches nothing else."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipelines.errors import UsageError
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.query_guard import check_query
from pipelines.reputation.warehouse import Warehouse, open_warehouse
from pipelines.reputation.warehouse_file import Access, attach
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

EVENTS = [
    Event("a", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"}),
    Event("b", "bob", "DriverRated", NOW - 2 * DAY, {"rating": "1"}),
]
READING = [
    "SELECT user_id FROM events ORDER BY ALL",
    "FROM reputation",
    "FROM events;",
    "-- a comment\nVALUES (1)",
    "TABLE commits",
    "DESCRIBE reputation",
    "SUMMARIZE reputation",
    "SHOW TABLES",
    "EXPLAIN FROM reputation",
    "explain analyze FROM events",
    "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 4) FROM t",
    "SELECT user_id FROM events UNION ALL (FROM erased SELECT table_name)",
    "PIVOT events ON action_type IN ('DriverRated') USING count(*) GROUP BY user_id",
    "UNPIVOT (SELECT 1 AS a, 2 AS b) ON a, b",
]
WRITING = [
    "COPY (SELECT 1) TO '{victim}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{victim}'",
    "EXPLAIN ANALYZE EXPLAIN ANALYZE COPY (SELECT 1) TO '{victim}'",
    "WITH x AS (COPY (SELECT 1) TO '{victim}') FROM x",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{victim}') SELECT count(*) FROM x)",
    "FROM query('WITH x AS (COPY (SELECT 1) TO ''{victim}'') FROM x')",
    "FROM QUERY('SELECT 1')",
    "SELECT (SELECT count(*) FROM query('SELECT 1'))",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT 1; COPY (SELECT 1) TO '{victim}'",
    "COPY (PIVOT events ON action_type USING count(*)) TO '{victim}'",
    "EXPORT DATABASE '{folder}/exported'",
    "ATTACH '{folder}/other.duckdb'",
    "ATTACH ':memory:' AS other",
    "DETACH warehouse",
    "CREATE TABLE memory.main.made (a INTEGER)",
    "CREATE TEMP TABLE made AS SELECT 1",
    "CREATE OR REPLACE TEMP MACRO utc_day(x) AS x",
    "CREATE OR REPLACE TEMP VIEW events AS SELECT 1",
    "WITH x AS (INSERT INTO commits VALUES (1) RETURNING *) FROM x",
    "DELETE FROM reputation",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "SET VARIABLE as_of = 1",
    "USE memory",
    "PRAGMA enable_profiling",
    "CALL enable_logging(storage = 'file', storage_path = '{folder}/logs')",
    "FROM enable_logging(storage = 'file', storage_path = '{folder}/logs')",
    "FROM checkpoint()",
    "FROM system.main.force_checkpoint()",
    "FROM truncate_duckdb_logs()",
    "FROM disable_profiling()",
    "FROM register_external_resource('a', 'b', MAP {{}})",
    "FROM arrow_scan(NULL, NULL, NULL)",
    "SELECT user_id, Write_Log('x') FROM events",
    "SELECT system.main.sleep_ms(1)",
    "SELECT pg_sleep(0)",
    "SELECT nextval('x')",
    "CREATE SECRET s (TYPE s3)",
    "PREPARE p AS SELECT 1",
    "CHECKPOINT",
    "BEGIN",
    "",
    "-- nothing",
]
REACHING = [
    "FROM read_text('{secret}')",
    "FROM read_blob('{secret}')",
    "FROM '{secret}'",
    "FROM read_csv('{secret}')",
    "FROM read_ndjson('{secret}')",
    "FROM sniff_csv('{secret}')",
    "FROM parquet_metadata('{secret}')",
    "FROM glob('{folder}/*')",
    "FROM glob('/**')",
    "FROM read_text('{lake}/../../../secret.csv')",
    "FROM read_parquet('{folder}/lake/events/**/*.parquet')",
    "FROM read_duckdb('{secret}', table_name = 'reputation')",
    "FROM read_parquet('http://127.0.0.1:9/x.parquet')",
    "FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT getenv('HOME')",
]


REVEALING = [
    "FROM duckdb_databases()",
    "FROM duckdb_databases",
    "FROM system.main.duckdb_databases",
    "SELECT (SELECT any_value(path) FROM Duckdb_Databases())",
    "FROM pragma_database_list",
    "FROM pg_catalog.pg_settings",
    "FROM pg_database",
    "FROM duckdb_settings()",
    "FROM duckdb_views()",
    "FROM warehouse.information_schema.views",
    "FROM sqlite_master",
    "FROM query_table('duckdb_databases')",
    "FROM histogram('duckdb_databases', path)",
    "FROM duckdb_secrets()",
    "FROM duckdb_logs",
    "FROM duckdb_external_file_cache()",
    "SELECT current_setting('file_search_path')",
    "SELECT json_serialize_plan('SELECT current_setting(''allowed_paths'')', optimize := true)",
    "SHOW DATABASES",
    "SHOW ALL TABLES",
    "EXPLAIN ANALYZE FROM events",
    "FROM duckdb_tables()",
    "FROM duckdb_functions()",
    "FROM information_schema.tables",
    "FROM pragma_table_info('reputation')",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a warehouse, and a file beside the lake that queries must not read."""
    folder = tmp_path_factory.mktemp("locked")
    derive(snapshot_of(folder / "lake", EVENTS), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    (folder / "secret.csv").write_text("secret\nhidden\n")
    return folder


@pytest.fixture
def warehouse(folder: Path) -> Iterator[Warehouse]:
    with open_warehouse(folder) as opened:
        yield opened


def _filled(query: str, folder: Path) -> tuple[str, dict[Path, bytes]]:
    """Return a query about files of the folder, and the contents of all of them."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    victim = next(path for path in files if path.suffix == ".parquet")
    places = {"victim": victim, "folder": folder, "secret": folder / "secret.csv", "lake": victim.parent}
    return query.format(**places), files


@pytest.mark.parametrize("query", READING)
def test_a_query_is_allowed(warehouse: Warehouse, query: str) -> None:
    """All forms of queries, also in another handle and after a refresh."""
    assert warehouse.sql(query).width
    assert warehouse.arrow(query).num_columns
    assert warehouse.snapshot().sql(query).width
    warehouse.refresh()
    assert warehouse.sql(query).width


@pytest.mark.parametrize("query", WRITING)
def test_anything_but_a_query_is_rejected(warehouse: Warehouse, folder: Path, query: str) -> None:
    """Nothing is written, created, attached or set, at any depth of a query."""
    text, before = _filled(query, folder)
    with pytest.raises(UsageError):
        warehouse.sql(text)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert warehouse.sql("SELECT count(*) FROM events").item() == 2


@pytest.mark.parametrize("query", WRITING)
def test_the_check_refuses_by_itself(folder: Path, query: str) -> None:
    """With `allow_files` nothing else stops a query that writes: it is refused by its syntax, at any depth."""
    text, before = _filled(query, folder)
    with open_warehouse(folder, allow_files=True) as opened, pytest.raises(UsageError):
        opened.sql(text)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("FROM (" * 5_000 + "SELECT 1" + ")" * 5_000, "nested too deep: divide it"),
        ("FROM (" * 100_000 + "SELECT 1" + ")" * 100_000, "700,008 characters; at most 100,000"),
    ],
)
def test_a_query_that_is_too_deep_is_refused(warehouse: Warehouse, query: str, message: str) -> None:
    """DuckDB's parser overflows the stack at tens of thousands of levels, which would end the process."""
    with pytest.raises(UsageError, match=message):
        warehouse.sql(query)


def test_one_text_is_one_query(warehouse: Warehouse) -> None:
    """The rows of a second query would replace those of the first silently."""
    with pytest.raises(UsageError, match="2 statements in one text"):
        warehouse.sql("FROM reputation; FROM events")


@pytest.mark.parametrize("query", REACHING)
def test_no_other_data_is_reachable(warehouse: Warehouse, folder: Path, query: str) -> None:
    """No other file, no network address, no environment variable."""
    text, _ = _filled(query, folder)
    with pytest.raises(UsageError, match=r"Permission Error|does not exist|Binder Error"):
        warehouse.sql(text)


@pytest.mark.parametrize("query", REVEALING)
def test_the_place_of_the_warehouse_is_not_shown(warehouse: Warehouse, folder: Path, query: str) -> None:
    """Neither rows nor a refusal name a folder of this machine; with `allow_files` the reader is the operator."""
    try:
        shown = str(warehouse.arrow(query).to_pylist())
    except UsageError as error:
        shown = str(error)
    assert folder.name not in shown


@pytest.mark.slow
def test_every_function_of_from_is_known() -> None:
    """Those of a new release are refused until someone decides: here is each that readers may call."""
    with duckdb.connect() as connection:
        names = "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type LIKE 'table%'"
        known = {name for (name,) in connection.execute(names).fetchall()}
    allowed = {name for name in known if _is_allowed(name)}
    files = {name for name in allowed if name.startswith(("read_", "parquet_"))} | {"glob", "sniff_csv"}
    assert allowed - files == {
        *("unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree", "summary"),
        *("duckdb_columns", "duckdb_constraints", "duckdb_functions", "duckdb_keywords", "duckdb_tables"),
        *("duckdb_types", "icu_calendar_names", "pg_timezone_names", "pragma_table_info", "pragma_version"),
    }


def _is_allowed(name: str) -> bool:
    with duckdb.connect() as connection:
        try:
            check_query(connection, f"FROM {name}()")
        except UsageError:
            return False
    return True


def test_other_handles_are_restricted_too(warehouse: Warehouse, folder: Path) -> None:
    """A snapshot, and the connection to a newer warehouse after a refresh."""
    warehouse.refresh()
    for handle in (warehouse, warehouse.snapshot()):
        with pytest.raises(UsageError, match=r"(?s)Permission Error.*allow_files=True"):
            handle.sql(f"FROM read_text('{folder}/secret.csv')")


@pytest.mark.parametrize("query", [query for query in (*WRITING, *REACHING) if "COPY" in query or "FROM read" in query])
def test_the_connection_is_restricted_by_itself(folder: Path, query: str) -> None:
    """SQL that bypasses the check, such as a relation's methods, reaches only the snapshot's files."""
    text, before = _filled(query, folder)
    text = text.replace(str(next(path for path in before if path.suffix == ".parquet")), str(folder / "made"))
    with attach(folder / "warehouse.duckdb") as connection, pytest.raises(duckdb.Error):
        connection.execute(text).fetchall()
    assert {path for path in folder.rglob("*") if path.is_file()} == before.keys()


@pytest.mark.parametrize(
    "name",
    [
        "allow_community_extensions",
        "autoinstall_known_extensions",
        "autoload_known_extensions",
        "allow_persistent_secrets",
        "python_enable_replacements",
        "enable_external_access",
    ],
)
def test_each_barrier_is_set_and_locked(folder: Path, name: str) -> None:
    """Several of them stop the same query: each one is set nevertheless, and a query cannot lift it; in cursors too."""
    with attach(folder / "warehouse.duckdb") as connection:
        for one in (connection, connection.cursor()):
            assert one.execute("SELECT current_setting(?)", [name]).fetchone() == (False,)
            with pytest.raises(duckdb.InvalidInputException, match="configuration has been locked"):
                one.execute(f"SET {name} = true")


def test_allow_files_permits_other_files(folder: Path) -> None:
    """With `allow_files` a query may join any file; it is still a single query."""
    query = f"SELECT secret FROM '{folder}/secret.csv' CROSS JOIN (FROM events LIMIT 1)"  # noqa: S608
    with open_warehouse(folder, allow_files=True) as opened:
        assert opened.sql("FROM histogram(trends_daily, active_users)").height
        assert opened.sql(query).item() == "hidden"
        assert opened.snapshot().sql(query).item() == "hidden"
        assert opened.sql("SELECT count(*) FROM duckdb_databases() WHERE path IS NOT NULL").item() > 0
        with pytest.raises(UsageError, match="COPY is not for a warehouse"):
            opened.sql(f"COPY (SELECT 1) TO '{folder}/made.csv'")


def test_variables_of_python_are_not_tables(warehouse: Warehouse) -> None:
    """A name in a query is a table of the warehouse or unknown, never a Python variable of our code."""
    query = pl.DataFrame({"a": [1]})
    assert query.height
    for handle in (warehouse, warehouse.snapshot()):
        with pytest.raises(UsageError, match="Table with name query does not exist"):
            handle.sql("FROM query")


def test_days_are_utc_in_any_time_zone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A locked connection, its snapshots and the scores of other moments use UTC."""
    monkeypatch.setattr(
        duckdb, "connect", lambda *given, _connect=duckdb.connect, **named: _elsewhere(_connect(*given, **named))
    )
    with open_warehouse(folder) as opened:
        for handle in (opened, opened.snapshot()):
            assert (
                handle.sql("SELECT CAST(TIMESTAMPTZ '2026-01-01 12:00:00+05' AS VARCHAR)")
                .item()
                .endswith("07:00:00+00")
            )
        assert opened.as_of(AS_OF).scores().height == 2
        assert opened.explain("ann").height == 1
        assert opened.trend("activity").height


def _elsewhere(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    connection.execute("SET GLOBAL TimeZone = 'Pacific/Kiritimati'")
    return connection


def test_only_the_output_file_is_writable(folder: Path) -> None:
    """A command that writes rows may write to its own file only."""
    file = folder / "rows"
    with Warehouse(folder / "warehouse.duckdb", access=Access(output=file)) as opened:
        opened.relation("FROM events").query("made", f"COPY (FROM made) TO '{file}' (FORMAT csv)")
        with pytest.raises(duckdb.PermissionException):
            opened.relation("FROM events").query("made", f"COPY (FROM made) TO '{file}.other' (FORMAT csv)")
    assert len(file.read_text().splitlines()) == 3


def test_a_query_can_have_a_time_limit(warehouse: Warehouse) -> None:
    """A longer query is stopped with an error, as is the next one of the block; the warehouse stays usable."""
    endless = "SELECT count(*) FROM range(10_000_000_000) AS a(i), range(10_000) AS b(j) WHERE i % 7 = j"

    def ask_twice() -> None:
        with warehouse.time_limit(0.2):
            with suppress(duckdb.InterruptException):
                warehouse.sql(endless)
            warehouse.sql(endless)

    with pytest.raises(UsageError, match=r"no answer within 0\.2 s"):
        ask_twice()
    with warehouse.time_limit(60):
        assert warehouse.sql("SELECT 1").item() == 1
