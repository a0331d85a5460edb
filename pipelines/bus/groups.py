"""Whether a broker has consumer groups.

The embedded one of `karmalake local start` accepts a member and never assigns it a topic partition: it waits silently.
"""

from pipelines.bus.clients import admin_client, translate_errors
from pipelines.errors import ConfigurationError
from pipelines.settings import KafkaSettings

_EMBEDDED_CLUSTER = "tansu_cluster"
"""The cluster id that the embedded broker reports. Apache Kafka's are random."""


def require_groups(kafka: KafkaSettings, needed_by: str) -> None:
    """Raise ConfigurationError if the broker is the embedded one; TransientError if none answers.

    needed_by: what needs consumer groups, for the message.
    """
    with translate_errors(kafka, "asking for the cluster id"), admin_client(kafka) as admin:
        cluster = admin.describe_cluster()["cluster_id"]
    if cluster == _EMBEDDED_CLUSTER:
        raise ConfigurationError(
            f"{needed_by} needs consumer groups, which the embedded broker at {kafka.bootstrap_servers} does not have: "
            "set kafka.bootstrap_servers (KARMALAKE_KAFKA_BOOTSTRAP_SERVERS) to the brokers of an Apache Kafka"
        )
