"""A real Apache Cassandra of one node on free ports, as a plain Java process."""

import json
from pathlib import Path

from tests.services.jars import class_path, jars
from tests.services.ports import HOST, free_port
from tests.services.process import Server

KEYSPACE = "tests"
# The modules that Cassandra's JVM options for Java 17 open.
_EXPORTS = ("java.base/jdk.internal.misc", "java.base/jdk.internal.ref", "java.base/java.lang.ref", "java.sql/java.sql")
_EXPORTS += ("java.management/com.sun.jmx.remote.security", "java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server")
_EXPORTS += ("jdk.unsupported/sun.misc", "jdk.compiler/com.sun.tools.javac.file")
_OPENS = tuple(
    f"java.base/{package}"
    for package in (
        *("java.io", "java.lang", "java.lang.module", "java.lang.reflect", "java.net", "java.nio", "java.util"),
        *("java.util.concurrent", "java.util.concurrent.atomic", "sun.nio.ch", "jdk.internal.loader"),
        *("jdk.internal.ref", "jdk.internal.reflect", "jdk.internal.math", "jdk.internal.module"),
        "jdk.internal.util.jar",
    )
)
_OPENS += ("jdk.management/com.sun.management.internal",)
_QUICKLY = ("-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.ring_delay_ms=0")
_JVM = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
_JVM += ("-Djava.security.manager=allow",)  # which Java 18 and newer refuse otherwise


class CassandraServer(Server):
    """A server with its data in `folder`; tests create the keyspace KEYSPACE."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        libraries = jars("cassandra")
        config = folder / "cassandra.yaml"
        config.write_text(json.dumps(_config(folder, free_port(), self.port)))  # JSON is YAML
        (agent,) = libraries.glob("jamm-*.jar")
        opened = [f"--add-exports={name}=ALL-UNNAMED" for name in _EXPORTS]
        opened += [f"--add-opens={name}=ALL-UNNAMED" for name in _OPENS]
        places = [f"-Dcassandra.config={config.as_uri()}", f"-Dcassandra.storagedir={folder}"]
        options = [*_JVM, *opened, f"-javaagent:{agent}", *places, *_QUICKLY, "-Dcassandra-foreground=yes"]
        command = ["java", *options, "-cp", class_path(libraries), "org.apache.cassandra.service.CassandraDaemon"]
        super().__init__("Cassandra", command, folder / "cassandra.log", "Startup complete")


def _config(folder: Path, storage_port: int, port: int) -> dict[str, object]:
    seeds = {"class_name": "org.apache.cassandra.locator.SimpleSeedProvider"}
    return {
        "cluster_name": "tests",
        "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "num_tokens": 1,
        "endpoint_snitch": "SimpleSnitch",
        "seed_provider": [seeds | {"parameters": [{"seeds": f"{HOST}:{storage_port}"}]}],
        "listen_address": HOST,
        "storage_port": storage_port,
        "rpc_address": HOST,
        "native_transport_port": port,
        "commitlog_sync": "periodic",
        "commitlog_sync_period": "10s",
        "commitlog_directory": str(folder / "commitlog"),
        "data_file_directories": [str(folder / "data")],
        "saved_caches_directory": str(folder / "saved"),
        "hints_directory": str(folder / "hints"),
        "cdc_raw_directory": str(folder / "cdc"),
        "auto_snapshot": False,
        "auto_bootstrap": False,
    }
