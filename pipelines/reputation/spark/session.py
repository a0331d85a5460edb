"""The session of Spark that a derivation runs in: its own, or the one that the caller has.

Owns what the derivation needs Spark to be set to. Where it runs and with how much is Spark's own configuration.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from pipelines.errors import ConfigurationError

_SETTINGS = {
    "spark.sql.ansi.enabled": "true",  # a number too large is an error, as in DuckDB, not another number
    "spark.sql.mapKeyDedupPolicy": "LAST_WIN",  # map_concat as in DuckDB: the later map's values
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.session.timeZone": "UTC",
}
_ON_THIS_MACHINE: dict[str, Any] = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",  # a page that every user and site could ask
}
"""Where Spark is not configured: it runs within this process, and no other machine has to reach it."""
_CONFIGURED_BY = ("SPARK_CONF_DIR", "SPARK_HOME", "PYSPARK_SUBMIT_ARGS")


@contextmanager
def open_session() -> Generator[SparkSession]:
    """Yield a new session within the running Spark of this process, or start Spark and end it afterwards.

    Raises ConfigurationError when Spark does not start.
    """
    running = SparkSession.getActiveSession()
    spark = running or _start()
    try:
        session = spark.newSession()
        for key, value in _SETTINGS.items():
            session.conf.set(key, value)
        yield session
    finally:
        if running is None:
            spark.stop()


def _start() -> SparkSession:
    """Start Spark, quietly: the command line shows its own progress, and errors come as exceptions too."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("karmalake rebuild").config("spark.ui.showConsoleProgress", "false")
    if not any(map(os.environ.get, _CONFIGURED_BY)):
        for key, value in _ON_THIS_MACHINE.items():
            builder = builder.config(key, value)
    try:
        return builder.config("spark.log.level", "ERROR").getOrCreate()
    except PySparkRuntimeError as error:
        raise ConfigurationError(
            f"Apache Spark does not start: {error}. It needs Java 17 or newer in the PATH"
        ) from None
