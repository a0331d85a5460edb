"""The settings of the buses: Kafka, or a queue instead of it."""

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from pipelines.boundary.mistakes import MistakeError
from pipelines.errors import ConfigurationError
from pipelines.settings.values import Count, Hours, Section, TimeoutSeconds, Topic

_MAX_IDLE_MS = 9 * 60 * 1000
"""The default of kafka-python, which requires more than the timeout of a request."""


class KafkaSettings(Section):
    """The Kafka cluster. Without `bootstrap_servers` the broker of `karmalake local start` is used."""

    bootstrap_servers: str | None = None
    """Comma-separated list of host:port."""
    topic: Topic = "karmalake.events"
    """The topic with the events, keyed by user_id."""
    group_id: str = "karmalake"
    """The consumer group to which offsets are committed after the lake commit: for lag tools only, never read."""
    partitions: Count = Field(default=4, ge=1)
    """The number of topic partitions that `karmalake topics ensure` creates."""
    replication_factor: int = Field(default=1, ge=1, le=32_767)
    """The replication factor of a topic that `karmalake topics ensure` creates."""
    retention_hours: Hours = Field(default=168, ge=-1)
    """The retention of a topic that `karmalake topics ensure` creates; -1 retains records indefinitely."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, to match the listener of the brokers."""
    ssl_cafile: Path | None = None
    """The CA certificates that verify the brokers; unset means those of the system."""
    ssl_certfile: Path | None = None
    """The client certificate, if the brokers require one."""
    ssl_keyfile: Path | None = None
    """The private key of the client certificate."""
    ssl_password: SecretStr | None = None
    """The password of the private key."""
    ssl_check_hostname: bool = True
    """Whether the certificate of a broker must match its host name."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."""
    sasl_username: str | None = None
    """The user name."""
    sasl_password: SecretStr | None = None
    """The password of the user."""
    request_timeout_seconds: TimeoutSeconds = Field(default=30.0, gt=0)
    """The timeout of a request to the brokers."""

    @model_validator(mode="after")
    def _secured_as_it_says(self) -> Self:
        """Otherwise a login without effect looks like an outage, and a certificate without effect like encryption."""
        protocol = self.security_protocol
        for part, prefix in (("SSL", "ssl_"), ("SASL", "sasl_")):
            given = [name for name in type(self).model_fields if name.startswith(prefix) and self.is_given(name)]
            if given and part not in protocol:
                raise MistakeError(
                    (given[0],),
                    f"has no effect with kafka.security_protocol = {protocol}: choose one with {part}, or remove it",
                )
        if "SASL" in protocol:
            self.require_with("security_protocol", "sasl_mechanism", "sasl_username", "sasl_password")
        self.require_with("ssl_keyfile", "ssl_certfile")
        self.require_with("ssl_password", "ssl_certfile")
        return self

    def client_config(self) -> dict[str, Any]:
        """Return the arguments of kafka-python clients. Raises ConfigurationError without `bootstrap_servers`."""
        if self.bootstrap_servers is None:
            raise ConfigurationError(
                "no Kafka broker is configured, and none that this user can use runs locally: start one with "
                "`karmalake local start`, or set KARMALAKE_KAFKA_BOOTSTRAP_SERVERS"
            )
        config: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",")],
            "client_id": "karmalake",
            "security_protocol": self.security_protocol,
            "request_timeout_ms": int(self.request_timeout_seconds * 1000),
            "connections_max_idle_ms": max(_MAX_IDLE_MS, int(self.request_timeout_seconds * 2000)),
        }
        if "SSL" in self.security_protocol:
            config |= {
                "ssl_check_hostname": self.ssl_check_hostname,
                "ssl_cafile": self.ssl_cafile and str(self.ssl_cafile),
                "ssl_certfile": self.ssl_certfile and str(self.ssl_certfile),
                "ssl_keyfile": self.ssl_keyfile and str(self.ssl_keyfile),
                "ssl_password": self.ssl_password and _RedactedStr(self.ssl_password.get_secret_value()),
            }
        if "SASL" in self.security_protocol:
            config |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password and _RedactedStr(self.sasl_password.get_secret_value()),
            }
        return config


class _RedactedStr(str):
    """A password for a library that logs its configuration."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"


_QUEUE_URLS = {
    "rabbitmq": (("amqp", "amqps"), "amqp://user:password@host:5672/vhost, with %23 for # and so on"),
    "sqs": (("http", "https"), "https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE, without a user or password"),
}
"""By kind the schemes of a URL, and what to write."""


class QueueSettings(Section):
    """A message queue as the source of events, instead of Kafka."""

    kind: Literal["rabbitmq", "sqs"] | None = None
    """rabbitmq or sqs; unset means Kafka."""
    url: SecretStr | None = None
    """The amqp:// URL of RabbitMQ with user and password, or the https:// URL of an SQS queue."""
    name: str = Field(default="karmalake.events", min_length=1)
    """The name of the RabbitMQ queue; the URL of an SQS queue includes it."""

    @model_validator(mode="after")
    def _url_of_its_kind(self) -> Self:
        if self.kind and self.url and not _is_url_of(self.kind, self.url.get_secret_value()):
            raise MistakeError(("url",), f"is not the URL of a queue of {self.kind}: write {_QUEUE_URLS[self.kind][1]}")
        return self

    @model_validator(mode="after")
    def _has_a_kind(self) -> Self:
        if self.kind is None and self.model_fields_set & {"url", "name"}:
            raise MistakeError(("kind",), "is missing where queue.url or queue.name is set: rabbitmq or sqs")
        return self


def _is_url_of(kind: str, url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # it has to be a number
    except ValueError:
        return False
    if parts.scheme not in _QUEUE_URLS[kind][0] or not parts.hostname or parts.fragment:
        return False
    return kind != "sqs" or ("@" not in parts.netloc and parts.path.strip("/") != "")
