"""The Spark session of a derivation: in the caller's Spark if one is active, else in one started for it.

Owns the settings that the derivation requires. Cluster and resources are Spark's own configuration.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from pipelines.errors import ConfigurationError
from pipelines.reputation.spark.storage import s3a_settings

_SETTINGS = {
    "spark.sql.ansi.enabled": "true",  # overflow is an error, as in DuckDB
    "spark.sql.mapKeyDedupPolicy": "LAST_WIN",  # map_concat takes the later map's values, as in DuckDB
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.session.timeZone": "UTC",
}
_ON_THIS_MACHINE: dict[str, Any] = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",  # any local user or website could open it
}
"""For an unconfigured Spark: it runs in this process, and no other machine connects to it."""
_CONFIGURED_BY = ("SPARK_CONF_DIR", "SPARK_HOME", "PYSPARK_SUBMIT_ARGS")


@contextmanager
def open_session() -> Generator[SparkSession]:
    """Yield a new session of the active Spark of this process, or start Spark and stop it afterwards.

    Raises ConfigurationError when Spark does not start.
    """
    running = SparkSession.getActiveSession()
    spark = running or _start()
    try:
        session = spark.newSession()
        for key, value in (_SETTINGS | s3a_settings()).items():
            session.conf.set(key, value)
        yield session
    finally:
        if running is None:
            spark.stop()


def _start() -> SparkSession:
    """Start Spark without console output: the command line shows its own progress, and errors are raised."""
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
