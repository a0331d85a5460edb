"""The tables of a warehouse, computed by Apache Spark from the lake's Parquet files.

Owns what Spark is given and what it gives back. It reads exactly the files of the snapshot, so neither Delta's jars nor
a catalogue are needed, and writes each table as Parquet beside the draft, which takes the rows in: a published
warehouse does not tell who computed it. A crash leaves Parquet files in the draft's temporary folder, which goes with
the draft.
"""

import math
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
from pyspark.sql import SparkSession

from pipelines.errors import ConfigurationError
from pipelines.lake.stores import is_remote
from pipelines.lake.tables import Snapshot
from pipelines.reputation.policy import InForce
from pipelines.reputation.policy.tables import policy_tables, variables
from pipelines.reputation.spark.session import open_session
from pipelines.reputation.spark.translation import FUNCTIONS, POWER, translate
from pipelines.reputation.sql import literal, one_row, statement
from pipelines.reputation.stages import epoch_us, fact, materialize, steps
from pipelines.reputation.tables import trends, user_tables

_NOTHING = "WHERE false"
_TYPES = {str: "STRING", int: "BIGINT", list: "ARRAY<STRING>", type(None): "STRING"}


def in_spark(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, policy: InForce, as_of: datetime) -> None:
    """Create the tables of a draft: the same rows as DuckDB's, computed by Spark.

    Spark runs as its own configuration says (`spark-defaults.conf`; without one, on all cores of this machine).
    Raises ConfigurationError when it cannot start.
    """
    _create_empty(connection, policy)
    if not snapshot.files.get("events"):
        return
    if is_remote(snapshot.files["events"][0]):
        raise ConfigurationError("--engine spark reads a lake in a folder, not on an object store: leave it out")
    (spilled,) = one_row(connection.execute("SELECT current_setting('temp_directory')"))
    folder = Path(spilled).absolute()  # Java may have started in another folder
    folder.mkdir(exist_ok=True)
    with open_session() as spark, TemporaryDirectory(dir=folder) as written:
        _prepare(spark, snapshot, policy, as_of)
        _compute(spark, "fact", fact(policy), written)
        for name, query in (user_tables(policy) | trends(policy)).items():
            _compute(spark, name, query, written)
            rows = statement("spark/rows", files=literal(f"{written}/{name}/*.parquet"))
            connection.execute(statement("spark/insert", name=name, rows=rows))


def _create_empty(connection: duckdb.DuckDBPyConnection, policy: InForce) -> None:
    """Create the tables without rows, by DuckDB's own queries: they say what the columns are, and their types."""
    materialize(connection, policy, _NOTHING)
    for name, query in (user_tables(policy, _NOTHING) | trends(policy)).items():
        connection.execute(statement("table", name=name, query=query))


def _prepare(spark: SparkSession, snapshot: Snapshot, policy: InForce, as_of: datetime) -> None:
    """Define every step in a session; computes nothing yet."""
    define_functions(spark)
    for name, value in (variables(policy) | {"as_of": epoch_us(as_of)}).items():
        kind = _TYPES[type(value)]
        spark.sql(f"DECLARE OR REPLACE VARIABLE {name} {kind} DEFAULT CAST(:value AS {kind})", {"value": value})
    for name, rows in policy_tables(policy).items():
        spark.createDataFrame(rows).createOrReplaceTempView(name)
    spark.read.parquet(*snapshot.files["events"]).createOrReplaceTempView("events")
    for step in (statement("known_event", source="events", known=""), *steps(policy)):
        spark.sql(translate(step))


def define_functions(spark: SparkSession) -> None:
    """Define, in a session, what translated statements call."""
    for name in FUNCTIONS:
        spark.sql(statement(f"spark/{name}"))
    spark.udf.register(POWER, math.pow, "double")


def _compute(spark: SparkSession, name: str, query: str, folder: str) -> None:
    """Write the rows of a table; those after it read them."""
    spark.sql(translate(query)).write.parquet(f"{folder}/{name}")
    spark.read.parquet(f"{folder}/{name}").createOrReplaceTempView(name)
