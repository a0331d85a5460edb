"""A standalone Apache Spark: a master and two workers, each a process with folders of its own.

The workers find Spark's S3 client in the class path, as if it was installed on every machine.
"""

import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.services.jars import class_path, jars
from tests.services.ports import HOST, free_port
from tests.services.process import Server

_WORKERS = 2
_JVM_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # for runs of seconds
_EXECUTOR_MEMORY = "640m"


@dataclass(frozen=True, slots=True)
class SparkCluster:
    """A running cluster; `environment` has a driver use it."""

    environment: dict[str, str]
    work_folders: tuple[Path, ...]
    """The folder of each worker, with those of its executors."""

    def executors(self) -> list[int]:
        """Return how many executors each worker has run."""
        return [len(list(folder.glob("app-*/*"))) for folder in self.work_folders]


@contextmanager
def spark_cluster(folder: Path) -> Generator[SparkCluster]:
    """Yield a running cluster with its files in `folder`."""
    master = f"spark://{HOST}:{free_port()}"
    work_folders = tuple(folder / f"worker-{number}" for number in range(_WORKERS))
    with ExitStack() as stack:
        stack.enter_context(_master(folder, master))
        for work_folder in work_folders:
            stack.enter_context(_worker(work_folder, master))
        yield SparkCluster(configured(folder / "conf", {"spark.master": master}), work_folders)


def configured(folder: Path, settings: dict[str, str], *, s3: bool = True) -> dict[str, str]:
    """Write Spark's configuration for a driver with little memory; return the variable that names it."""
    folder.mkdir(parents=True)
    lines = {
        "spark.driver.bindAddress": HOST,
        "spark.driver.host": HOST,
        "spark.driver.extraJavaOptions": _JVM_OPTIONS,
        "spark.driver.memory": "1g",
        "spark.executor.extraJavaOptions": _JVM_OPTIONS,
        "spark.executor.memory": _EXECUTOR_MEMORY,
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
        **(_s3_client() if s3 else {}),
        **settings,
    }
    text = "".join(f"{key} {value}\n" for key, value in lines.items())
    (folder / "spark-defaults.conf").write_text(text, encoding="utf-8")
    return {"SPARK_CONF_DIR": str(folder), "PYSPARK_PYTHON": sys.executable}


def _s3_client() -> dict[str, str]:
    path = class_path(jars("hadoop-aws"))
    return {"spark.driver.extraClassPath": path, "spark.executor.extraClassPath": path}


def _master(folder: Path, address: str) -> Server:
    port = address.rpartition(":")[2]
    options = ("--host", HOST, "--port", port, "--webui-port", "0")
    return _daemon("master", folder, "master.Master", options, "New state: ALIVE")


def _worker(folder: Path, master: str) -> Server:
    options = ("--host", HOST, "--cores", "1", "--memory", _EXECUTOR_MEMORY, "--work-dir", str(folder), master)
    return _daemon(folder.name, folder, "worker.Worker", (*options, "--webui-port", "0"), "Successfully registered")


def _daemon(name: str, folder: Path, main_class: str, options: tuple[str, ...], ready_line: str) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    found = find_spec("pyspark")
    assert found is not None, "PySpark is not installed"
    assert found.origin is not None
    program = str(Path(found.origin).parent / "bin" / "spark-class")
    variables = {
        "SPARK_DAEMON_JAVA_OPTS": _JVM_OPTIONS,
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_LOCAL_IP": HOST,
    }
    environment = [f"{key}={value}" for key, value in variables.items()]
    command = ["env", *environment, program, f"org.apache.spark.deploy.{main_class}", *options]
    return Server(f"Spark's {name}", command, folder / f"{name}.log", ready_line)
