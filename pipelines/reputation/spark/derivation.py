"""The tables of a warehouse, computed by Apache Spark from the lake's Parquet files.

Owns Spark's input and output. Spark reads exactly the files of the snapshot, so it needs neither Delta's jars nor a
catalogue, and writes each table as Parquet to a staging folder, from which the draft then loads the rows: a warehouse
is the same whichever engine computed it. The staging folder is beside the draft, or on the object store of the lake,
where a killed process leaves it behind.
"""

import math
from datetime import datetime
from pathlib import Path

import duckdb
from pyspark.sql import Observation, SparkSession
from pyspark.sql.functions import count, lit

from pipelines.boundary.locked_sql import literal
from pipelines.lake.stores import is_remote, list_files, register_s3, temporary_folder
from pipelines.lake.tables import Snapshot
from pipelines.reputation.merged_users import Aliases, aliases_in
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.tables import policy_tables, variables
from pipelines.reputation.spark.session import open_session
from pipelines.reputation.spark.storage import require_rows, spark_path, translate_storage_errors
from pipelines.reputation.spark.translation import POWER, WHOLE_NUMBER, translate, translate_view
from pipelines.reputation.sql import one_row, statement
from pipelines.reputation.steps import epoch_us, fact_statement, first_steps, materialize_fact, step_statements
from pipelines.reputation.warehouse_tables import trend_tables, user_tables, weight_tables

_NO_ROWS = "WHERE false"
_TYPES = {str: "STRING", int: "BIGINT", list: "ARRAY<STRING>", type(None): "STRING"}


def derive_in_spark(
    connection: duckdb.DuckDBPyConnection,
    snapshot: Snapshot,
    policy: EffectivePolicy,
    as_of: datetime,
    staging: str | None,
) -> None:
    """Create the tables of a draft in Apache Spark, with the same rows as in DuckDB.

    Spark uses its own configuration (`spark-defaults.conf`; without one, all cores of this machine).
    staging: a URI under which Spark and this process exchange the tables; None means beside the draft.
    Raises ConfigurationError when Spark cannot start, lacks S3A or does not share the files, TransientError when the
    object store does not answer.
    """
    _create_empty(connection, policy)
    events = snapshot.files.get("events")
    if not events:
        return
    with temporary_folder(staging or _beside_draft(connection)) as folder, open_session() as spark:
        if is_remote(folder):
            register_s3(connection)
        with translate_storage_errors(spark, [events[0], folder]):
            _hand_over(spark, connection, policy)
            _prepare(spark, snapshot, policy, as_of, aliases_in(connection))
            _compute(spark, "fact", fact_statement(policy), folder)
            for name, query in (user_tables(policy) | trend_tables(policy)).items():
                _compute(spark, name, query, folder)
                _load(connection, name, folder)


def _hand_over(spark: SparkSession, connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> None:
    """Give Spark the weights of raters and the priors, computed when the steps of the connection were defined."""
    queries = dict[str, str]()
    if policy.rules.raters is not None:
        queries["rater_weight"] = "FROM rater_weight"
    if policy.rules.has_global_prior:
        queries["rating_prior"] = "SELECT day, prior FROM rating_prior"
    for name, query in queries.items():
        spark.createDataFrame(connection.sql(query).to_arrow_table()).createOrReplaceTempView(name)


def _beside_draft(connection: duckdb.DuckDBPyConnection) -> str:
    """Return the folder in which the draft spills; it is removed with the draft."""
    (spilled,) = one_row(connection.execute("SELECT current_setting('temp_directory')"))
    return str(Path(spilled).absolute())  # the JVM may run in another folder


def _create_empty(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> None:
    """Create the tables from DuckDB's own queries, which define columns and types; all but the weights are empty."""
    materialize_fact(connection, policy, _NO_ROWS)
    for name, query in (user_tables(policy, _NO_ROWS) | trend_tables(policy) | weight_tables(policy)).items():
        connection.execute(statement("create_table", name=name, query=query))


def _prepare(spark: SparkSession, snapshot: Snapshot, policy: EffectivePolicy, as_of: datetime, known: Aliases) -> None:
    """Define every step in a session; computes nothing yet."""
    define_functions(spark)
    for name, value in (variables(policy) | known.variables() | {"as_of": epoch_us(as_of)}).items():
        kind = _TYPES[type(value)]
        spark.sql(f"DECLARE OR REPLACE VARIABLE {name} {kind} DEFAULT CAST(:value AS {kind})", {"value": value})
    for name, rows in (policy_tables(policy) | ({"alias": known.table()} if known else {})).items():
        spark.createDataFrame(rows).createOrReplaceTempView(name)
    reader = spark.read.option("mergeSchema", "events" in snapshot.mixed)
    reader.parquet(*map(spark_path, snapshot.files["events"])).createOrReplaceTempView("events")
    for step in (*first_steps(policy, "events", "", known), *step_statements(policy)):
        name, query = translate_view(step)
        spark.sql(query).createOrReplaceTempView(name)  # CREATE VIEW would analyze all views below it again


def define_functions(spark: SparkSession) -> None:
    """Define the functions that translated statements call, in a session."""
    spark.sql(statement(WHOLE_NUMBER))
    spark.udf.register(POWER, math.pow, "double")


def _compute(spark: SparkSession, name: str, query: str, folder: str) -> None:
    """Write the rows of a table, and register them for the tables after it."""
    path = spark_path(f"{folder}/{name}")
    written = Observation()
    spark.sql(translate(query)).observe(written, count(lit(1)).alias("rows")).write.parquet(path)
    require_rows(f"{folder}/{name}", written.get["rows"])
    spark.read.parquet(path).createOrReplaceTempView(name)


def _load(connection: duckdb.DuckDBPyConnection, name: str, folder: str) -> None:
    """Insert the rows that Spark wrote into a table of the draft."""
    files = ", ".join(map(literal, list_files(f"{folder}/{name}", ".parquet")))
    connection.execute(statement("spark_insert", name=name, rows=statement("spark_rows", files=files)))
