"""Peer (b): Apache Spark Structured Streaming, `dropDuplicates` over all of the run, writing Delta.

One JVM with as many threads as cores; the source, the state and the table are exactly-once by checkpoints. Values
are decoded in Python workers, by whole Arrow batches: the jar of spark-protobuf, which would do it in the JVM, was not
to be had from Maven where this was written. The session starts, and jars are fetched, before the clock.
"""

import os
import sys
from importlib.metadata import version

from pyspark.sql import SparkSession

from benchmarks.peers.protocol import REPOSITORY, Job, serve
from benchmarks.peers.rows import decode_batches

_SPARK, _DELTA, _SCALA = version("pyspark"), version("delta-spark"), "2.13"
_PACKAGES = (
    f"org.apache.spark:spark-sql-kafka-0-10_{_SCALA}:{_SPARK}",
    f"io.delta:delta-spark_{_SPARK.rpartition('.')[0]}_{_SCALA}:{_DELTA}",
)
_ROW = "event_id string, user_id string, action_type string, event_time timestamp, metadata map<string, string>"
_SETTINGS = {
    "spark.jars.packages": ",".join(_PACKAGES),
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.sql.session.timeZone": "UTC",
    "spark.driver.memory": "3g",
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
}


def _session() -> SparkSession:
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}  # of the Python workers
    builder = SparkSession.builder.master("local[*]").appName("peer")
    for key, value in _SETTINGS.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.conf.set("spark.sql.shuffle.partitions", str(spark.sparkContext.defaultParallelism))
    return spark


def _warm_up(_: Job) -> None:
    _session().range(1).count()


def _drain(job: Job) -> None:
    kafka = {
        "kafka.bootstrap.servers": job.bootstrap_servers,
        "subscribe": job.topic,
        "startingOffsets": "earliest",
    }
    records = _session().readStream.format("kafka").options(**kafka).load()
    rows = records.select("value").mapInArrow(decode_batches, _ROW)
    write = rows.dropDuplicates(["event_id"]).writeStream.format("delta").trigger(availableNow=True)
    query = write.option("checkpointLocation", f"{job.folder}/checkpoint").start(f"{job.folder}/rows")
    query.awaitTermination()


if __name__ == "__main__":
    serve(_drain, _warm_up)
