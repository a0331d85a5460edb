"""A real Apache Kafka in KRaft mode: one or more brokers, each a Java process that can be killed and restarted.

This module owns processes, ports and data folders; `kafka_properties.py` has the configuration of a node, and
`kafka_distribution.py` the jars.
"""

import base64
import contextlib
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from kafka import KafkaAdminClient
from pydantic import SecretStr

from pipelines.settings import KafkaSettings
from tests.services.certificates import make_certificates
from tests.services.kafka_distribution import Distribution, distribution, share_base_classes
from tests.services.kafka_properties import SCRAM_MECHANISMS, Node, node_properties, security_properties, to_text
from tests.services.ports import HOST, free_port
from tests.services.process import Server
from tests.services.proxy import Proxy
from tests.services.waiting import PATIENCE_SECONDS, wait_for

USER = "karma"
PASSWORD = "a-kafka-password"  # noqa: S105 # of a server that lives as long as a test
_READY_LINE = "Kafka Server started"

_SECURE = ("SSL", "SASL_SSL")

Listener = Literal["PLAINTEXT", "PROXIED", "SSL", "SASL_SSL"]


class KafkaCluster:
    """Brokers 0 to n-1, each also a controller: the cluster works while a majority of them runs.

    As a context manager it is formatted and started on entry and killed on exit; data and logs stay in `folder`.
    `secure` adds the listeners SSL and SASL_SSL, `proxied` a listener behind one proxy per broker.
    """

    def __init__(
        self,
        folder: Path,
        brokers: int = 1,
        *,
        secure: bool = False,
        proxied: bool = False,
        properties: Mapping[str, str] | None = None,
        java: Distribution | None = None,
    ) -> None:
        self.certificates = make_certificates(folder / "certificates") if secure else None
        self._folder = folder
        self._java = java or _with_class_archive(distribution())
        self._properties = dict(properties or {})
        listeners = ("CONTROLLER", "PLAINTEXT", *(["PROXIED"] if proxied else []), *(_SECURE if secure else []))
        ports = [{listener: free_port() for listener in listeners} for _ in range(brokers)]
        self.proxies = [Proxy(own["PROXIED"]) for own in ports if proxied]
        advertised = [{"PROXIED": proxy.port} for proxy in self.proxies] or [{}] * brokers
        listeners_by_node = zip(ports, advertised, strict=True)
        self._nodes = [Node(index, own, own | outside) for index, (own, outside) in enumerate(listeners_by_node)]
        self._servers = [self._server(node) for node in self._nodes]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            for proxy in self.proxies:
                started.enter_context(proxy)
            self._format()
            for server in self._servers:
                started.push(server)
                server.launch()
            for server in self._servers:
                server.wait_until_ready()
            wait_for("every broker to know the others", self._is_complete)
            self._started = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.__exit__(kind, error, trace)

    @property
    def bootstrap_servers(self) -> str:
        """host:port of every broker, unencrypted, comma-separated."""
        return self.addresses("PLAINTEXT")

    def addresses(self, listener: Listener) -> str:
        """Return host:port of every broker for clients of this listener, comma-separated."""
        return ",".join(f"{HOST}:{node.advertised[listener]}" for node in self._nodes)

    def settings(self, listener: Listener = "PLAINTEXT", **changes: Any) -> KafkaSettings:
        """Return settings that connect through a listener: SSL with the client's certificate, SASL_SSL as USER."""
        values: dict[str, Any] = {"bootstrap_servers": self.addresses(listener)}
        if self.certificates is not None and listener in {"SSL", "SASL_SSL"}:
            values |= {"security_protocol": listener, "ssl_cafile": self.certificates.ca}
        if self.certificates is not None and listener == "SSL":
            values["ssl_certfile"] = self.certificates.certificate("client")
            values["ssl_keyfile"] = self.certificates.key("client")
        if listener == "SASL_SSL":
            mechanism = SCRAM_MECHANISMS[-1]
            values |= {"sasl_mechanism": mechanism, "sasl_username": USER, "sasl_password": SecretStr(PASSWORD)}
        return KafkaSettings(**(values | changes))

    def admin(self, **changes: Any) -> Any:
        """Return a KafkaAdminClient, a context manager; typed Any because its stubs are years older than it."""
        client: Any = KafkaAdminClient
        return client(**self.settings(**changes).client_config())

    def new_topic(self, partitions: int = 1, **configs: str) -> str:
        """Create a topic with a unique name and return the name; `retention_ms="1"` sets retention.ms."""
        name = f"topic-{uuid.uuid4().hex[:12]}"
        self.create_topic(name, partitions, **configs)
        return name

    def create_topic(self, name: str, partitions: int = 1, **configs: str) -> None:
        """Create a topic and wait until every topic partition has a leader."""
        topic = {
            "num_partitions": partitions,
            "configs": {key.replace("_", "."): value for key, value in configs.items()},
        }
        with self.admin() as admin:
            admin.create_topics({name: topic}, wait_for_metadata=True)

    def start(self, broker: int) -> None:
        """Restart a stopped broker with the same data and ports."""
        self._servers[broker].start()

    def stop(self, broker: int) -> None:
        """Stop a broker gracefully: it hands over its leaderships first."""
        self._servers[broker].stop()

    def kill(self, broker: int) -> None:
        """Kill a broker with SIGKILL."""
        self._servers[broker].kill()

    def pause(self, broker: int) -> None:
        """Pause a broker with SIGSTOP: connections stay open, but nothing responds."""
        self._servers[broker].pause()

    def resume(self, broker: int) -> None:
        """Resume a paused broker."""
        self._servers[broker].resume()

    def damage(self, broker: int, place: str) -> None:
        """Change a byte of the last record batch of a log (TOPIC-PARTITION), while its broker is down."""
        self.stop(broker)
        (segment,) = self._folder.glob(f"broker-{broker}/{place}/*.log")
        content = bytearray(segment.read_bytes())
        content[-3] ^= 0xFF
        segment.write_bytes(content)
        self.start(broker)

    def _is_complete(self) -> bool:
        for address in self.bootstrap_servers.split(","):
            with self.admin(bootstrap_servers=address) as admin:
                if len(admin.describe_cluster()["brokers"]) < len(self._nodes):
                    return False
        return True

    def _server(self, node: Node) -> Server:
        command = self._java.command("kafka.Kafka", str(self._config(node)))
        return Server(f"Kafka broker {node.id}", command, self._folder / f"broker-{node.id}.log", _READY_LINE)

    def _config(self, node: Node) -> Path:
        return self._folder / f"broker-{node.id}.properties"

    def _format(self) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        arguments = ["format", "--cluster-id=" + cluster_id, "--ignore-formatted"]
        security: dict[str, str] = {}
        if self.certificates is not None:
            security = security_properties(self.certificates, USER, PASSWORD)
            arguments += [f"--add-scram={name}=[name={USER},password={PASSWORD}]" for name in SCRAM_MECHANISMS]
        for node in self._nodes:
            data = self._folder / f"broker-{node.id}"
            properties = node_properties(node, self._nodes, data) | security | self._properties
            self._config(node).write_text(to_text(properties))
        _run_together(
            [
                self._java.command("kafka.tools.StorageTool", *arguments, "--config", str(self._config(node)))
                for node in self._nodes
            ]
        )


def _run_together(commands: list[list[str]]) -> None:
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    for process in processes:
        with process:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, output.decode(errors="replace")


def _with_class_archive(java: Distribution) -> Distribution:
    """Return the distribution with its class archive, which the first broker writes when it stops."""
    archive = java.archive()
    if not archive.exists():
        share_base_classes()
        with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
            written = Path(temporary) / archive.name
            with KafkaCluster(Path(temporary), java=java.writing(written)) as first:
                first.stop(0)
            written.rename(archive)
    return java.using(archive)
