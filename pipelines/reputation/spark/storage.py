"""The storage of a derivation on Spark: folders by path, S3 through Spark's own client, S3A.

Owns the names and settings of S3A, and what an error of storage means. Credentials, region and endpoint come from the
variables that the rest of karmalake uses (`lake/stores.py`); Spark sends them to its executors. Without keys there, S3A
looks for credentials itself, on every machine.
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pipelines.errors import ConfigurationError, KarmalakeError, TransientError, truncate
from pipelines.lake.files import read_footer
from pipelines.lake.stores import is_remote, list_files

_VARIABLES = {
    "fs.s3a.access.key": "AWS_ACCESS_KEY_ID",
    "fs.s3a.secret.key": "AWS_SECRET_ACCESS_KEY",
    "fs.s3a.session.token": "AWS_SESSION_TOKEN",
    "fs.s3a.endpoint": "AWS_ENDPOINT_URL",
    "fs.s3a.endpoint.region": "AWS_REGION",
}
_NO_CLIENT = re.compile(r"S3AFileSystem not found|NoClassDefFoundError: (software/amazon|org/apache/hadoop/fs/s3a)")
_NOT_FOUND = re.compile(r"FileNotFoundException|FILE_NOT_EXIST|PATH_NOT_FOUND|UNABLE_TO_INFER_SCHEMA|Mkdirs failed")
_S3_FAILED = re.compile(r"[\w.$]+(?:Exception|Error): (.*\bs3a://.*)")


def s3a_settings() -> dict[str, str]:
    """Return the settings of S3A for the store that the environment describes now."""
    found = {key: os.environ.get(variable) for key, variable in _VARIABLES.items()}
    found["fs.s3a.path.style.access"] = "true" if found["fs.s3a.endpoint"] else None
    return {key: value for key, value in found.items() if value}


def spark_path(location: str) -> str:
    """Return a path or URI of the lake as Spark names it."""
    return re.sub("^s3://", "s3a://", location)


def require_rows(folder: str, rows: int) -> None:
    """Raise ConfigurationError unless this machine sees as many rows in a folder as all machines have written there.

    A machine that does not share the folder has written to one of its own. A bucket is the same one for all.
    """
    if is_remote(folder):
        return
    if sum(read_footer(file).num_rows for file in list_files(folder, ".parquet")) != rows:
        raise _not_shared([folder])


@contextmanager
def translate_storage_errors(spark: SparkSession, locations: list[str]) -> Generator[None]:
    """Turn an error of Spark's storage into one sentence; other errors pass through unchanged.

    Raises ConfigurationError when S3A is missing or an executor does not see a file, TransientError when the object
    store does not answer.
    """
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        translated = _translate(spark, locations, str(error))
        if translated is None:
            raise
        raise translated from None


def _translate(spark: SparkSession, locations: list[str], text: str) -> KarmalakeError | None:
    if _NO_CLIENT.search(text):
        return ConfigurationError(
            "Spark lacks its S3 client: set spark.jars.packages to "
            f"org.apache.hadoop:hadoop-aws:{_hadoop_version(spark)} in spark-defaults.conf"
        )
    if failed := _S3_FAILED.search(text):
        return TransientError(
            f"Spark cannot use {' and '.join(filter(is_remote, locations))}: {truncate(failed[1])}; check "
            "AWS_ENDPOINT_URL and the credentials"
        )
    return _not_shared(locations) if _NOT_FOUND.search(text) else None


def _not_shared(locations: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"Spark does not find the files under {' and '.join(locations)} on all of its machines: share the folder "
        "among them under the same path, or copy the lake to an object store (`karmalake copy`)"
    )


def _hadoop_version(spark: SparkSession) -> str:
    """Return the version of Hadoop in Spark's jars, which hadoop-aws must have."""
    ((version,),) = spark.sql("SELECT java_method('org.apache.hadoop.util.VersionInfo', 'getVersion')").collect()
    return str(version)
