"""The configuration of a Kafka node for tests, with short waits and little memory.

Every node is broker and controller. Listeners: CONTROLLER; PLAINTEXT for clients and between brokers; PROXIED, which
clients reach through a proxy; SSL, which requires a client certificate; SASL_SSL with PLAIN and SCRAM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.services.certificates import Certificates
from tests.services.ports import HOST

SCRAM_MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_PROTOCOLS = {"CONTROLLER": "PLAINTEXT", "PROXIED": "PLAINTEXT"}
_MODULES = "org.apache.kafka.common.security"

_SHORT_WAITS = {
    "broker.heartbeat.interval.ms": "250",  # a killed broker is noticed after the session timeout
    "broker.session.timeout.ms": "2000",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "log.cleaner.backoff.ms": "1000",
    "log.initial.task.delay.ms": "100",  # retention is checked at once and then often
    "log.retention.check.interval.ms": "1000",
    "log.segment.delete.delay.ms": "1000",  # 0 is a loop without a pause: 5 % of a core while nothing happens
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
}
_LITTLE_WORK = {
    "auto.create.topics.enable": "false",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "metadata.max.idle.interval.ms": "0",  # no record without content twice a second
    "num.io.threads": "2",
    "num.network.threads": "2",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its id and, by listener, the port it listens on and the port that clients connect to."""

    id: int
    ports: Mapping[str, int]
    advertised: Mapping[str, int]


def node_properties(node: Node, nodes: Sequence[Node], data: Path) -> dict[str, str]:
    """Return the server.properties of one node of a cluster, without the secured listeners."""
    listeners = ",".join(f"{name}://{HOST}:{port}" for name, port in node.ports.items())
    advertised = ",".join(f"{name}://{HOST}:{port}" for name, port in node.advertised.items())
    voters = ",".join(f"{other.id}@{HOST}:{other.ports['CONTROLLER']}" for other in nodes)
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "log.dirs": str(data),
        "listeners": listeners,
        "advertised.listeners": advertised,
        "listener.security.protocol.map": ",".join(f"{name}:{_PROTOCOLS.get(name, name)}" for name in node.ports),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.quorum.voters": voters,
        **_replication(len(nodes)),
        **_SHORT_WAITS,
        **_LITTLE_WORK,
    }


def security_properties(certificates: Certificates, user: str, password: str) -> dict[str, str]:
    """Return the properties of the listeners SSL and SASL_SSL; one user may log in by every mechanism."""
    plain = f'{_MODULES}.plain.PlainLoginModule required user_{user}="{password}";'
    scram = f"{_MODULES}.scram.ScramLoginModule required;"
    sasl = "listener.name.sasl_ssl"
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.bundle("server")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "listener.name.ssl.ssl.client.auth": "required",
        f"{sasl}.sasl.enabled.mechanisms": ",".join(("PLAIN", *SCRAM_MECHANISMS)),
        f"{sasl}.plain.sasl.jaas.config": plain,
        **{f"{sasl}.{mechanism.lower()}.sasl.jaas.config": scram for mechanism in SCRAM_MECHANISMS},
    }


def to_text(properties: Mapping[str, str]) -> str:
    """Return the content of a .properties file."""
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def _replication(nodes: int) -> dict[str, str]:
    replicas, in_sync = str(min(nodes, 3)), "2" if nodes > 2 else "1"
    return {
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
    }
