"""A rebuild on a cluster of Spark whose machines share nothing but the object store of the lake."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pa_fs
import pytest

from pipelines.lake.stores import resolve_store
from pipelines.lake.tables import create_lake
from pipelines.refresh import rebuild_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.policy import Policy
from pipelines.settings import LakeSettings, Settings
from tests.lake import builders as making
from tests.reputation.history import AS_OF, Event, events_table
from tests.reputation.policies import policy
from tests.reputation.test_spark import _EVENTS, _POLICIES, assert_same_tables, history
from tests.services.jars import jars
from tests.services.object_store import ObjectStore
from tests.services.requirements import require
from tests.services.spark_cluster import SparkCluster, configured, spark_cluster
from tests.services.waiting import PATIENCE_SECONDS
from tests.share import share

pytestmark = [pytest.mark.jvm, pytest.mark.slow]

_REBUILD = [sys.executable, "-c", "from pipelines.cli import main; main()", "rebuild", "--engine", "spark"]
_FEW_RULES = policy()
_ON_THIS_MACHINE = {"spark.master": "local[1]"}
_IMPATIENT = {"spark.hadoop.fs.s3a.attempts.maximum": "1", "spark.hadoop.fs.s3a.retry.limit": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """Return a running cluster of two workers."""
    require("hadoop-aws")
    with spark_cluster(tmp_path_factory.mktemp("spark")) as running:
        yield running


def make_lake(root: str, events: list[Event], rules: Policy = _FEW_RULES) -> None:
    """Create a lake with a policy in force, by itself one of few rules, in two commits."""
    lake = create_lake(root)
    half = len(events) // 2
    for name, part in (("first", events[:half]), ("second", events[half:])):
        making.commit(lake, lake.table("events"), name, events_table(part).drop_columns(["batch_id"]))
    activate(lake, rules)


def rebuild(folder: Path, spark: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `karmalake rebuild --engine spark` with a folder of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    named = {"KARMALAKE_DATA_DIR": str(folder / "data")} | variables
    command = [*_REBUILD, "--as-of", AS_OF.isoformat()]
    limit = 3 * PATIENCE_SECONDS
    environment = inherited | named | spark | {"PYTHONPATH": os.getcwd()}  # noqa: PTH109
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=limit, check=False
    )


def files_of(location: str) -> list[str]:
    store, path = resolve_store(location)
    selector = pa_fs.FileSelector(path, recursive=True, allow_not_found=True)
    return [info.path for info in store.get_file_info(selector) if info.is_file]


@pytest.mark.parametrize("name", share(["everything", "versions"], 2))
def test_two_workers(object_store: ObjectStore, cluster: SparkCluster, uri: str, tmp_path: Path, name: str) -> None:
    """Two workers without a shared folder compute DuckDB's tables to the last bit, and leave nothing in the bucket."""
    make_lake(uri, history(_EVENTS, 2_000, days=12), _POLICIES[name])
    settings = Settings(data_dir=tmp_path / "duckdb", lake=LakeSettings(uri=uri))
    rebuild_warehouse(settings, AS_OF)
    before = cluster.executors()
    done = rebuild(tmp_path, cluster.environment, KARMALAKE_LAKE_URI=uri)
    assert done.returncode == 0, done.stderr
    assert all(after > earlier for earlier, after in zip(before, cluster.executors(), strict=True))
    assert_same_tables(tmp_path / "data" / "warehouse.duckdb", settings.warehouse_path)
    assert settings.spark_staging is not None
    assert files_of(settings.spark_staging) == []
    assert [path for folder in (tmp_path, *cluster.work_folders) for path in folder.rglob("*.parquet")] == []


def test_a_lake_that_the_workers_do_not_see(cluster: SparkCluster, tmp_path: Path) -> None:
    """The error says what to share. Here every process sees a folder of its own under one path, as on another host."""
    make_lake(str(tmp_path / "data" / "lake"), history(_EVENTS, 50, days=1))
    done = rebuild(tmp_path, cluster.environment, KARMALAKE_DATA_DIR="/proc/self/cwd/data")
    assert done.returncode == 78, done.stderr
    assert "on all of its machines: share the folder" in " ".join(done.stderr.split())
    assert not (tmp_path / "data" / "warehouse.duckdb").exists()


def test_spark_without_its_s3_client(object_store: ObjectStore, uri: str, tmp_path: Path) -> None:
    """The error names the jar in the version that fits, that of the jars of these tests."""
    require("hadoop-aws")
    make_lake(uri, history(_EVENTS, 50, days=1))
    done = rebuild(tmp_path, configured(tmp_path / "conf", _ON_THIS_MACHINE, s3=False), KARMALAKE_LAKE_URI=uri)
    assert done.returncode == 78, done.stderr
    (client,) = jars("hadoop-aws").glob("hadoop-aws-*.jar")
    version = client.stem.removeprefix("hadoop-aws-")
    assert f"spark.jars.packages to org.apache.hadoop:hadoop-aws:{version} in " in " ".join(done.stderr.split())


def test_spark_does_not_reach_the_bucket(object_store: ObjectStore, uri: str, tmp_path: Path) -> None:
    """An outage for Spark alone names the place; nothing is published, and nothing stays in the bucket."""
    require("hadoop-aws")
    make_lake(uri, history(_EVENTS, 50, days=1))
    proxied = {"spark.hadoop.fs.s3a.proxy.host": "127.0.0.1", "spark.hadoop.fs.s3a.proxy.port": "9"}
    spark = configured(tmp_path / "conf", _ON_THIS_MACHINE | _IMPATIENT | proxied)
    done = rebuild(tmp_path, spark, KARMALAKE_LAKE_URI=uri)
    assert done.returncode == 75, done.stderr
    assert f"Spark cannot use {uri}" in " ".join(done.stderr.split())
    assert files_of(f"{uri}-staging") == []


def test_a_missing_bucket(object_store: ObjectStore, uri: str, tmp_path: Path) -> None:
    """A staging place that cannot be written to is noticed before Spark starts."""
    make_lake(uri, history(_EVENTS, 50, days=1))
    staging = "s3://no-such-bucket/staging"
    done = rebuild(tmp_path, {}, KARMALAKE_LAKE_URI=uri, KARMALAKE_SPARK_STAGING_URI=staging)
    assert done.returncode == 75, done.stderr
    assert f"{staging}" in " ".join(done.stderr.split())
