"""Which SELECT a source may have."""

import duckdb
import pytest

from pipelines.mapping.row_wise import ROW, SelectError, check_select

_COLUMNS = frozenset({"a", "items", "user"})


@pytest.fixture(name="connection")
def _connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": 1})
    connection.execute(f'CREATE TABLE record (a INT, items INT[], "user" TEXT, {ROW} BIGINT)')
    connection.execute("INSERT INTO record VALUES (1, [1, 2], 'u', 0), (2, [3], 'v', 1)")
    return connection


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT a FROM record", {(1, 0), (2, 1)}),
        ("SELECT * FROM record WHERE a > 1", {(2, "[3]", "v", 1)}),
        ("SELECT a, item FROM record r, unnest(r.items) AS u(item)", {(1, 1, 0), (1, 2, 0), (2, 3, 1)}),
        ("SELECT a FROM record UNION ALL SELECT a + 9 FROM record", {(1, 0), (2, 1), (10, 0), (11, 1)}),
        ("WITH x AS (SELECT *, unnest(items) AS i FROM record) SELECT i FROM x", {(1, 0), (2, 0), (3, 1)}),
        ("SELECT n FROM (SELECT * FROM record) r JOIN (VALUES (1), (2)) v(n) ON n = a", {(1, 0), (2, 1)}),
        ('SELECT "user", list_sum(items) FROM record', {("u", 3, 0), ("v", 3, 1)}),
        ("FROM record SELECT list_transform(items, lambda x: x + 1)[1]", {(2, 0), (4, 1)}),
        ('SELECT r.a + floor(pi()) FROM record AS r WHERE COLUMNS(* EXCLUDE (items, "user")) > 1', {(5.0, 1)}),
    ],
)
def test_each_row_has_the_number_of_its_record(
    connection: duckdb.DuckDBPyConnection, query: str, rows: set[tuple[object, ...]]
) -> None:
    """Filters, unnest(), UNION ALL, WITH and joins with constants keep the record of each row."""
    tree = check_select(connection, query, _COLUMNS).tree
    found = connection.execute("FROM json_execute_serialized_sql(CAST(? AS VARCHAR))", [tree]).fetchall()
    assert {tuple(str(v) if isinstance(v, list) else v for v in row) for row in found} == rows


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT max(a) FROM record", "line 1: max() combines records"),
        ("SELECT a,\n  now() FROM record", "line 2: now is another value each time"),
        ("SELECT a,\n\n current_timestamp FROM record", "line 3: current_timestamp is another value each time"),
        ("SELECT current_date FROM record", "such as bus_time; there is no column current_date, if that is meant"),
        ("SELECT localtimestamp FROM record", "localtimestamp is another value"),
        ("SELECT today() FROM record", "today is another value"),
        ("SELECT random() FROM record", "random is another value"),
        ("SELECT uuid() FROM record", "uuid is another value"),
        ("SELECT gen_random_uuid() FROM record", "gen_random_uuid is another value"),
        ("SELECT nextval('s') FROM record", "nextval is another value"),
        ("SELECT ago(INTERVAL 1 DAY) FROM record", "ago is another value"),
        ("SELECT current_setting('threads') FROM record", "current_setting is another value"),
        ("SELECT getvariable('x') FROM record", "getvariable is another value"),
        ("SELECT a FROM record ORDER BY a", "ORDER BY has no meaning"),
        ("SELECT a FROM record LIMIT 1", "LIMIT depends on the batch"),
        ("SELECT DISTINCT a FROM record", "DISTINCT compares records"),
        ("SELECT a FROM record GROUP BY a", "GROUP BY combines records"),
        ("SELECT sum(a) OVER () FROM record", "sum() OVER combines records"),
        ("SELECT a FROM record QUALIFY row_number() OVER () = 1", "QUALIFY combines records"),
        ("SELECT a FROM record USING SAMPLE 1", "a sample depends on chance"),
        ("SELECT x.a FROM record x, record y", "a join of records with records"),
        ("SELECT x.a FROM record x JOIN (SELECT a FROM record) y ON true", "a join of records with records"),
        ("SELECT a FROM (VALUES (1)) v(n) RIGHT JOIN record ON true", "of joins, CROSS, INNER and LEFT"),
        ("SELECT a FROM (VALUES (1)) v(n) LEFT JOIN record ON true", "needs record on its left side"),
        ("SELECT (SELECT max(a) FROM record) FROM record", "a subquery in an expression"),
        ("SELECT a FROM record WHERE a IN (SELECT a FROM record)", "a subquery in an expression"),
        ("SELECT a FROM record UNION SELECT a FROM record", "compares records"),
        ("SELECT a FROM record EXCEPT ALL SELECT 1", "compares records"),
        ("SELECT a FROM record UNION ALL SELECT 1", "does not read record"),
        ("SELECT 1", "does not read record"),
        ("WITH record AS (SELECT 1 AS a) SELECT a FROM record", "hides the records"),
        ("WITH RECURSIVE t AS (SELECT a FROM record UNION ALL SELECT a FROM t) SELECT a FROM t", "is not allowed"),
        ("SELECT a FROM read_csv('x.csv')", "read_csv() is not allowed"),
        ("SELECT a FROM 'x.parquet'", "there is no relation"),
        ("SELECT * FROM duckdb_settings()", "duckdb_settings() is not allowed"),
        ("FROM query('SELECT 1')", "query() is not allowed"),
        ("SELECT a FROM information_schema.tables", "there is no relation"),
        ("SELECT 1 AS __karmalake_row FROM record", "reserved"),
        ("COPY record TO 'x'", "COPY is not a SELECT"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("SET threads = 1", "is not a SELECT"),
        ("SELEC", "is not SQL"),
        ("SELECT $1 FROM record", "a parameter has no value"),
        ("FROM (" * 300 + "FROM record" + ")" * 300, "it is nested too deep"),
        ("FROM (" * 3_000 + "FROM record" + ")" * 3_000, "it is nested too deep"),
        ("SELECT a FROM record GROUP BY ALL", "GROUP BY combines records"),
        ("SELECT #1 FROM record", "line 1: a column by its position is not allowed"),
        ("SELECT record FROM record", "record is a relation, and its whole row"),
        ("SELECT to_json(temp.main.record) FROM record", "record is a relation"),
        ("SELECT struct_extract_at(r, 1) FROM record AS r", "r is a relation"),
        ("WITH x AS (FROM record) SELECT x::VARCHAR FROM x", "x is a relation"),
        ("SELECT unnamed_subquery FROM (FROM record)", "unnamed_subquery is a relation"),
        ("SELECT COLUMNS('__karma.*') FROM record", "COLUMNS with a pattern is not allowed"),
        ("SELECT COLUMNS(lambda c: c LIKE '%row') FROM record", "COLUMNS with a pattern is not allowed"),
        ("SELECT current_localtimestamp() FROM record", "current_localtimestamp is another value"),
        ("SELECT current_localtime() FROM record", "current_localtime is another value"),
        ("SELECT version() FROM record", "version is another value"),
        ("SELECT age(TIMESTAMP '2020-01-01') FROM record", "age() of one time is of today"),
        (
            "SELECT json_serialize_plan('SELECT current_setting(''temp_directory'')', optimize := true) FROM record",
            "json_serialize_plan() is not allowed: it shows how this release of DuckDB reads a text as SQL",
        ),
        ("SELECT json_serialize_sql('SELECT 1') FROM record", "json_serialize_sql() is not allowed"),
        ("SELECT hash(a) FROM record", "hash() is not allowed: it is another number in another release"),
        ("SELECT list_aggregate([a], 'approx_quantile', 0.5) FROM record", "those are estimates"),
        ("SELECT [a].aggregate('Reservoir_Quantile', 0.5) FROM record", "those are estimates"),
        ("SELECT list_aggr([a], a) FROM record", "list_aggr() needs the name of its aggregate as a text"),
        ("SELECT list_approx_count_distinct([a]) FROM record", "list_approx_count_distinct is another value"),
        ("SELECT get_block_size('memory') FROM record", "get_block_size is another value"),
    ],
)
def test_what_depends_on_more_than_a_record_is_refused(
    connection: duckdb.DuckDBPyConnection, query: str, reason: str
) -> None:
    """Other records, time, chance, files and settings: none can change an event (`replay-equals-live`)."""
    with pytest.raises(SelectError) as error:
        check_select(connection, query, _COLUMNS)
    assert reason in str(error.value)


@pytest.mark.slow
def test_every_volatile_function_of_the_catalogue_is_refused(connection: duckdb.DuckDBPyConnection) -> None:
    """The catalogue of this DuckDB decides, not a list."""
    names = connection.execute(
        "SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar' "
        "GROUP BY ALL HAVING bool_and(stability <> 'CONSISTENT') OR bool_or(stability = 'VOLATILE')"
    ).fetchall()
    assert len(names) > 20
    for (name,) in names:
        with pytest.raises(SelectError):
            check_select(connection, f"SELECT {name}() FROM record", _COLUMNS)  # noqa: S608 - of the catalogue


def test_times_with_a_zone_are_pure_in_a_catalogue_that_knows_of_the_setting(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    """As releases of DuckDB from 2.0.1 on call functions of them, operators too; what has no other form is refused."""
    connection.execute("""
        CREATE TEMP MACRO duckdb_functions() AS TABLE SELECT * REPLACE (
            CASE WHEN parameter_types::VARCHAR LIKE '%TIME ZONE%' OR function_name LIKE 'current_local%'
                 THEN 'CONSISTENT_WITHIN_QUERY' ELSE stability END AS stability)
        FROM system.main.duckdb_functions()
    """)
    check_select(connection, "SELECT strftime(make_timestamptz(a) + INTERVAL 1 DAY, '%x') FROM record", _COLUMNS)
    for query in ("SELECT current_localtimestamp() FROM record", "SELECT current_setting('TimeZone') FROM record"):
        with pytest.raises(SelectError, match="another value each time"):
            check_select(connection, query, _COLUMNS)
