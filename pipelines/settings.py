"""The settings of karmalake: the model, and the only code that reads the environment.

Precedence: environment (`KARMALAKE_KAFKA_TOPIC`), then `karmalake.toml` in the working directory or at
`KARMALAKE_CONFIG` (`[kafka] topic = ...`), then the defaults below. Unknown keys are rejected in both places; an empty
variable counts as unset. pydantic-settings would ignore unknown variables and hide the source of a value:
docs/decisions/0012-settings-sources.md.
Secrets are `SecretStr`: they never appear in a repr, an error or `karmalake doctor`.
"""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from pipelines.boundary.mistakes import FileFormat, Lines, MistakeError, path_of, spelled
from pipelines.boundary.toml import did_you_mean, exists, format_problems, key_lines, line_of, parse_toml, read_toml
from pipelines.errors import ConfigurationError

_ENVIRONMENT_PREFIX = "KARMALAKE_"
_CONFIG_VARIABLE = "KARMALAKE_CONFIG"
_MAX_IDLE_MS = 9 * 60 * 1000
"""The default of kafka-python, which requires more than the timeout of a request."""
_MISREAD = re.compile(r"[?\\]|%[0-9A-Fa-f]{2}")
"""What the lake's library takes for a separator or an escape in a path, and DuckDB for the end of one."""
_MISREAD_ON_S3 = re.compile(r"[#*\[\]{}]")
"""What is read as the end of a URI, or as a pattern, in that of an object only."""


def _comma_separated(value: object) -> object:
    """Return the names in a text. Raises ValueError for a list in JSON, whose brackets would be part of the names."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        raise ValueError("is a list in brackets: write the names without them, separated by commas, such as a,b")
    return [name.strip() for name in value.split(",")]


_Names = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
_Topic = Annotated[
    str, spelled(r"[A-Za-z0-9._-]{1,249}", "has to be the name of a topic: at most 249 letters, digits, ., _ and -")
]
_Prefix = Annotated[str, spelled(r"[A-Za-z0-9._-]{1,64}", "has to be 1 to 64 letters, digits, ., _ and -")]
_Keyspace = Annotated[
    str, spelled(r"[A-Za-z][A-Za-z0-9_]{0,47}", "has to be a letter, then at most 47 letters, digits and _")
]
_LakeUri = Annotated[
    str, spelled(r"(s3://[^/]+)?/.*[^/]", "has to be an absolute path or s3://BUCKET/PATH, without / at its end")
]
_StagingUri = Annotated[str, spelled(r"s3://[^/]+/.*[^/]", "has to be s3://BUCKET/PATH, without / at its end")]
_TopicOrNone = Annotated[
    str,
    spelled(
        r"[A-Za-z0-9._-]{0,249}", "has to be the name of a topic: at most 249 letters, digits, ., _ and -, or empty"
    ),
]
# A number without an upper bound would be accepted, and fail where a clock, a thread or a client converts it.
_Seconds = Annotated[float, Field(le=366 * 86_400)]
"""At most a year: threads wait for less than 2**63 nanoseconds."""
_TimeoutSeconds = Annotated[float, Field(le=86_400)]
"""At most a day: clients take milliseconds as an int32, some of them of two timeouts together."""
_AheadSeconds = Annotated[int, Field(le=10_000 * 366 * 86_400)]
"""At most the years that a time can have."""
_Hours = Annotated[int, Field(le=100 * 366 * 24)]
"""At most a century, as `_Days`."""
_Days = Annotated[int, Field(le=100 * 366)]
"""At most a century: the moment so many days ago must be one of the calendar."""
_Bytes = Annotated[int, Field(le=2**31 - 1)]
"""At most what a value of an Arrow column can have."""
_Count = Annotated[int, Field(le=2**31 - 1)]
"""At most an int32, as in Kafka's protocol."""

Format = Literal["protobuf", "avro", "json"]
"""The formats of the contract, and of foreign values that have a schema."""


def _require_usable(path: str) -> None:
    if found := _MISREAD.search(path) or (path.startswith("s3:") and _MISREAD_ON_S3.search(path)):
        raise ValueError(
            f"{path} has {found[0]} in its name, which the libraries of the lake and of DuckDB read as something else: "
            "rename it, or choose another one"
        )


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class KafkaSettings(_Section):
    """The Kafka cluster. Without `bootstrap_servers` the broker of `karmalake local start` is used."""

    bootstrap_servers: str | None = None
    """Comma-separated list of host:port."""
    topic: _Topic = "karmalake.events"
    """The topic with the events, keyed by user_id."""
    group_id: str = "karmalake"
    """The consumer group to which offsets are committed after the lake commit: for lag tools only, never read."""
    partitions: _Count = Field(default=4, ge=1)
    """The number of topic partitions that `karmalake topics ensure` creates."""
    replication_factor: int = Field(default=1, ge=1, le=32_767)
    """The replication factor of a topic that `karmalake topics ensure` creates."""
    retention_hours: _Hours = Field(default=168, ge=-1)
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
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"] | None = None
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or GSSAPI."""
    sasl_username: str | None = None
    """The user name for PLAIN and SCRAM."""
    sasl_password: SecretStr | None = None
    """The password for PLAIN and SCRAM."""
    request_timeout_seconds: _TimeoutSeconds = Field(default=30.0, gt=0)
    """The timeout of a request to the brokers."""

    def client_config(self) -> dict[str, Any]:
        """Return the arguments of kafka-python clients. Raises ConfigurationError without `bootstrap_servers`."""
        if self.bootstrap_servers is None:
            raise ConfigurationError(
                "no Kafka broker is configured and no local one is running: start one with "
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


class QueueSettings(_Section):
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


class RedisSettings(_Section):
    """The cache. Without `url` the server of `karmalake local start` is used."""

    url: SecretStr | None = None
    """The redis://, rediss:// or unix:// URL, or redis+cluster:// or redis+sentinel://; a secret, since it may contain
    a password."""
    prefix: _Prefix = "reputation"
    """The document of a user is at `{prefix}:{user_id}`; keys for bookkeeping start with `{prefix}.`."""
    socket_timeout_seconds: _TimeoutSeconds = Field(default=10.0, gt=0)
    """The timeout of a command to Redis."""
    ssl_cafile: Path | None = None
    """The CA certificates that verify a rediss:// server."""
    leaderboards: _Names = ()
    """The views that have a leaderboard, such as all_time or last_30_days, or within a scope all_time.city=berlin;
    comma-separated in the environment."""

    @field_validator("leaderboards")
    @classmethod
    def _views(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"(all_time|last_[1-9][0-9]*_days)(\.[a-z0-9_]+=[^,:\x00-\x1f\x7f]+)?", name):
                raise ValueError(
                    f"{name!r} is not a view: use all_time, or last_N_days where N is a window of the policy; within a "
                    "scope VIEW.SCOPE=VALUE, such as all_time.city=berlin, where the value has no comma and no colon"
                )
        return tuple(dict.fromkeys(names))


class CassandraSettings(_Section):
    """Cassandra as the document store, instead of Redis. Used if `hosts` is set."""

    hosts: _Names = ()
    """The contact points, all in one data center; comma-separated in the environment."""
    port: int = Field(default=9042, ge=1, le=65_535)
    """The CQL port of the nodes."""
    keyspace: _Keyspace = "karmalake"
    """The keyspace. It must exist, since you choose its replication; karmalake creates the tables."""
    prefix: _Prefix = "reputation"
    """Distinguishes deployments that share a keyspace."""
    user: str | None = None
    """User name; unset means no authentication."""
    password: SecretStr | None = None
    """The password of the user; set it in the environment rather than in a file."""
    ssl_cafile: Path | None = None
    """The CA certificates that verify the nodes; if set, connections are encrypted."""
    request_timeout_seconds: _TimeoutSeconds = Field(default=10.0, gt=0)
    """The timeout of a statement."""

    @property
    def leaderboards(self) -> tuple[str, ...]:
        """Always empty: Cassandra cannot order users by score."""
        return ()


class RelaySettings(_Section):
    """The relay from a service's outbox to Kafka: `karmalake relay`."""

    database_url: SecretStr | None = None
    """The postgresql://, mysql://, mariadb:// or sqlite:/// URL of the service's database; may contain a password."""


class NotifySettings(_Section):
    """Notifications: `karmalake notify`."""

    rules: Path | None = None
    """The TOML file with the notification rules, described in docs/notifications.md."""
    group_id: str = "karmalake.notify"
    """The prefix of the consumer groups `{group_id}.{destination}`, whose offsets are the notifier's checkpoints."""
    max_in_flight: _Count = Field(default=1_000, ge=1)
    """The maximum number of notifications in memory, divided equally among the destinations."""
    stop_seconds: _Seconds = Field(default=10.0, ge=0)
    """How long a stopping notifier waits for requests in flight; those still unanswered are delivered again."""


class ContractSettings(_Section):
    """The format of events, and the limits of a valid event; events beyond them become dead letters."""

    format: Format = "protobuf"
    """The format of values without a schema id. The schema determines the format of a value with an id."""
    schemas_dir: Path | None = None
    """A folder with the writers' schemas, each named by its id or GUID: 7.proto, 8.avsc, 9.json."""
    schema_registry_url: SecretStr | None = None
    """The URL of a schema registry (Confluent's HTTP API) for other schema ids; may contain a password."""

    max_event_id_bytes: _Bytes = Field(default=256, ge=1)
    """The maximum size of an event_id."""
    max_user_id_bytes: _Bytes = Field(default=256, ge=1)
    """The maximum size of a user_id."""
    max_action_type_bytes: _Bytes = Field(default=128, ge=1)
    """The maximum size of an action_type."""
    max_metadata_bytes: _Bytes = Field(default=65_536, ge=0)
    """The maximum total size of the metadata keys and values of an event."""
    earliest: AwareDatetime = datetime(2000, 1, 1, tzinfo=UTC)
    """The earliest valid event_time."""
    max_ahead_seconds: _AheadSeconds = Field(default=86_400, ge=0)
    """How far event_time may be ahead of the record time or of the clock of this machine, whichever is earlier."""
    strict_keys: bool = False
    """Whether a record whose key is not its user_id becomes a dead letter; otherwise it is only counted. Messages of a
    queue have no keys."""
    personal_keys: _Names = ()
    """The metadata keys whose values are user_ids, such as rater_id; comma-separated in the environment. From a
    `karmalake user merge` or `rename` on, former user_ids there stand for the current one. An erasure replaces the
    user_ids of the erased person there by a pseudonym. Every process needs the same keys."""


class SourcesSettings(_Section):
    """Topics that are not in our own contract: files that say what their events are."""

    folder: Path | None = None
    """The folder of the source files, NAME.toml; unset means the folder `sources` beside the configuration file or in
    the working directory, if there is one."""
    only: _Names = ()
    """The sources to use: names of source files, and `contract` for the topic kafka.topic; comma-separated in the
    environment. Empty means all of them."""


class IngestSettings(_Section):
    """The limits of a batch, and when ingest halts."""

    max_batch_records: int = Field(default=500_000, ge=1, le=5_000_000)
    """The approximate maximum of records per commit; with `max_batch_bytes` it bounds memory (for two batches)."""
    max_batch_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024)
    """The maximum of decompressed bytes per commit; the last record batch may exceed it by up to 128 MiB."""
    max_wait_seconds: _TimeoutSeconds = Field(default=0.5, gt=0)
    """How long `stream`, `ingest` or a poll of a queue waits for the first record."""
    linger_seconds: _TimeoutSeconds = Field(default=0.4, ge=0)
    """How long they then fill the batch before it is committed: longer means fewer commits, files and refreshes. The
    default leaves the rest of 0.6 s to commit, refresh and publish an event that comes alone; with 0 they wait for
    nothing."""
    publish_dead_letters: bool = False
    """Whether dead letters are copied to the topic `{topic}.dlq` after the commit, with the reason in headers."""
    share_partitions: bool = False
    """Whether several ingesters share the topic partitions through the consumer group; requires Apache Kafka, and is
    refused with a queue."""
    max_dead_letter_share: float = Field(default=0.5, ge=0, le=1)
    """The maximum share of rejected records in a batch; above it, the topic partition halts."""
    min_records_for_share: _Count = Field(default=5_000, ge=1)
    """The smallest batch for which `max_dead_letter_share` is checked."""
    max_dead_letter_run: _Count = Field(default=5_000, ge=1)
    """The maximum of consecutive rejected records; above it, the topic partition halts and the others continue."""


class HistorySettings(_Section):
    """Files of history by day, for the Dagster asset `history`; they match the options of `karmalake backfill`."""

    path: str | None = None
    """The path of the file of a day, with {day} as the placeholder: /history/rides-{day}.parquet."""
    source: str | None = None
    """The source file, sources/NAME.toml, that says what the rows are, instead of the columns below; without a `path`,
    the address with {day} of its `files` is the file of a day."""
    user_id: str = "user_id"
    """The column with the user whose reputation the event is about."""
    time: str = "timestamp"
    """The column with the event time."""
    time_unit: Literal["s", "ms", "us", "ns", "iso", "rfc2822"] = "iso"
    """The unit of that column, unless its type specifies it."""
    time_format: str | None = None
    """The format of that column in the names of strptime, such as %d.%m.%Y, instead of `time_unit`."""
    time_zone: str | None = None
    """The zone of times that name none, such as Europe/Berlin; unset means UTC."""
    user: str | None = None
    """The user of every row; unset means that the column `user_id` holds it."""
    action_type: str | None = None
    """The action_type of every row; unset means that `action_type_column` holds it."""
    action_type_column: str = "action_type"
    """The column with the action_type."""
    metadata: dict[str, str] = {}
    """The metadata keys and their columns; in the environment rating=stars,rater_id=rider."""
    event_id: str | None = None
    """The column with the event id; unset means a digest of the row."""
    identity: list[str] = []
    """The columns that make a row an event of its own, without an `event_id`; empty means all of them."""
    number_rows: bool = False
    """Whether equal rows of a file are separate events."""
    format: str | None = None
    """csv, json, parquet, arrow, orc, avro or xlsx; unset means what the name or the content of a file says."""
    delimiter: str | None = None
    """The delimiter of a CSV file, or `tab`; unset means the one that its header has."""
    quote: str | None = None
    """The quote of a CSV file; empty means that no value is quoted, unset that it is found in the file."""
    escape: str | None = None
    """The character before a quote within a quoted value of a CSV file; unset means that quotes are doubled."""
    comment: str | None = None
    """The character that begins lines of a CSV file that are not rows."""
    encoding: str | None = None
    """The encoding of text files, such as cp1252; unset means that it is found in the file."""
    columns: list[str] = []
    """The names of the columns of CSV files without a header."""
    decimal_comma: bool | None = None
    """Whether 4,5 is the number 4.5 in a CSV file; unset means that the file shows it."""
    null: list[str] = []
    """Texts that stand for no value, such as NULL."""
    days_may_be_missing: bool = False
    """Whether a day without a file counts as a day without events; otherwise it is an error."""

    @field_validator("metadata", mode="before")
    @classmethod
    def _parse_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().split("=", 1) for pair in value.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("write name=column pairs, separated by commas")
        return dict(pairs)


class LakeSettings(_Section):
    """The location of the Delta tables, and their maintenance."""

    uri: _LakeUri | None = None
    """s3://bucket/folder, or the absolute path of a folder, instead of lake/ in data_dir. Credentials and endpoint of
    S3 come from the AWS_* variables."""
    compact_after_files: _Count = Field(default=8, ge=2)
    """`karmalake compact` merges files that belong together, once there are this many: small ones, large ones of a day,
    large ones whose days overlap."""
    vacuum_retention_hours: float = Field(default=24.0, ge=1, le=168)
    """`karmalake vacuum` removes files that no commit references, or no snapshot younger than this, and lets the
    checkpoints of each table's log name replaced files that long. At most a week."""
    vacuum_interval_hours: float = Field(default=6.0, gt=0, le=168)
    """How often `karmalake stream` vacuums. The data of an erased user stays on the disk for at most
    vacuum_retention_hours plus this interval."""

    @field_validator("uri")
    @classmethod
    def _has_a_usable_path(cls, uri: str | None) -> str | None:
        if uri is not None:
            _require_usable(uri)
        return uri

    @property
    def on_s3(self) -> bool:
        """Whether the lake is on S3."""
        return self.uri is not None and self.uri.startswith("s3:")


class SparkSettings(_Section):
    """Apache Spark as the engine of `karmalake rebuild --engine spark`; its own configuration sets the rest."""

    staging_uri: _StagingUri | None = None
    """s3://bucket/folder, where Spark hands its tables to DuckDB. Unset means {lake.uri}-staging if the lake is on S3,
    else a folder beside the warehouse."""


class ReputationSettings(_Section):
    """How events become scores."""

    policy: str = "default"
    """The name of a built-in policy or the path of a policy file, until `karmalake policy activate` replaces it."""
    pinned: bool = False
    """Whether `policy` is served whatever is activated: beside the policy in force of a lake, by a configuration with a
    data_dir and a prefix of its own, and with `lake.uri` for the lake of the other one."""
    derive_interval_seconds: _Seconds = Field(default=30.0, gt=0)
    """How often `karmalake stream` refreshes warehouse.duckdb and moves the time windows. Its end replaces the file
    only after an erasure; the next start does, and `karmalake refresh`."""
    upload_interval_seconds: _Seconds = Field(default=300.0, ge=0)
    """How often at most `karmalake stream` uploads the warehouse to a lake on S3, for readers on other machines: what
    changed since its base, and the base when it is a new one. `refresh`, `rebuild` and an erasure always do."""
    max_memory_share: float = Field(default=0.25, ge=0.001, le=1)
    """The share of the memory of the machine, or of its control group, that DuckDB may use for a rebuild or refresh;
    what exceeds it is written to a folder beside the warehouse. Other memory of the process comes on top."""
    max_staleness_seconds: _Seconds = Field(default=900.0, gt=0)
    """The maximum staleness; above it, served scores are reported as stale."""


class FeedSettings(_Section):
    """The feed: a record of each published change of a score, in the lake's table score_changes."""

    enabled: bool = False
    """Whether publications record what they changed. The first one then records a row for each user."""
    topic: _TopicOrNone = "karmalake.scores"
    """The topic to which `karmalake stream` and `karmalake serve` relay the changes, keyed by user_id. A missing one
    is created, compacted, with `kafka.partitions`. Empty, in the file: the changes stay in the lake."""
    format: Format = "json"
    """The format of the changes on that topic: json, avro or protobuf, by the schemas of `karmalake contract show
    score-change`."""
    keep_days: _Days | None = Field(default=None, ge=1)
    """How many days changes stay in the lake. The newest change of each user always does, so a replay from zero still
    gives every score. Unset: indefinitely."""


class LagSettings(_Section):
    """The lag of the lake behind the bus: `karmalake stream` measures it and stores its history."""

    interval_seconds: _Seconds = Field(default=15.0, gt=0)
    """How often `karmalake stream`, `ingest`, `relay`, `notify` and `lag --watch` measure lag."""
    keep_days: _Days = Field(default=14, ge=1)
    """How many days of measurements lag/ retains; one `stream` writes a few megabytes a day."""
    max_seconds: _Seconds = Field(default=300.0, gt=0)
    """The maximum time a record may wait for its commit; above it, the Dagster check of lag warns."""


class MetricsSettings(_Section):
    """`/metrics`, `/healthz` and `/readyz` of `karmalake stream`, `ingest`, `relay` and `notify`, over plain HTTP."""

    port: int | None = Field(default=None, ge=0, le=65_535)
    """The port; 0 means any free port, unset means that they are not served."""
    host: str = "127.0.0.1"
    """The address to listen on. There is no authentication: expose it only to networks that may read metrics."""
    allowed_hosts: _Names = ()
    """Accepted host names besides IP addresses, localhost and `host`, such as that of a Kubernetes service."""
    stalled_after_seconds: _Seconds = Field(default=600.0, gt=0)
    """A loop without an iteration for this long makes /healthz return 503. Set it above the duration of a rebuild."""


class QueriesSettings(_Section):
    """Limits of readers' queries: `sql`, `trend`, `open_warehouse()`, sessions of the dashboard, asset `anomalies`."""

    max_memory_share: float = Field(default=0.5, ge=0.001, le=1)
    """The share of the memory of the machine, or of its control group, that the queries of an opened warehouse may use,
    and all sessions of the dashboard that show the same publication; rows that were returned do not count, and one
    large value can exceed it. The default leaves the other half to ingest and refreshes beside them."""
    max_spill_bytes: int = Field(default=16 * 1024 * 1024 * 1024, ge=0, le=2**63 - 1)
    """The maximum of bytes that those queries may write when the memory is used up, to a folder beside the warehouse,
    or a temporary one if the data folder is read-only."""


class PageSettings(_Section):
    """Access to a page that we serve."""

    token: SecretStr | None = Field(default=None, min_length=16)
    """The access token; unset means that each start generates one and prints it as part of the URL."""
    allowed_hosts: _Names = ()
    """Public host names of the page behind a reverse proxy, with the port if the URL has one."""


class DagsterSettings(PageSettings):
    """Access to `karmalake dagster`: a user with this token can start and end runs."""


class DashboardSettings(PageSettings):
    """Access to `karmalake dashboard`, where readers change nothing."""

    query_seconds: _Seconds = Field(default=60.0, gt=0)
    """The maximum time for computing a section of the page. `karmalake sql` and Python have no limit of time: Ctrl-C
    ends their queries."""


class Settings(_Section):
    """All settings; `load_settings()` builds it."""

    data_dir: Path = Path("data")
    """The folder of lake/, index/, lag/, local/, base/, canary/, warehouse.duckdb, tombstones.txt (digests of erased
    users)."""
    kafka: KafkaSettings = KafkaSettings()
    queue: QueueSettings = QueueSettings()
    redis: RedisSettings = RedisSettings()
    cassandra: CassandraSettings = CassandraSettings()
    relay: RelaySettings = RelaySettings()
    notify: NotifySettings = NotifySettings()
    contract: ContractSettings = ContractSettings()
    sources: SourcesSettings = SourcesSettings()
    ingest: IngestSettings = IngestSettings()
    history: HistorySettings = HistorySettings()
    lake: LakeSettings = LakeSettings()
    lag: LagSettings = LagSettings()
    reputation: ReputationSettings = ReputationSettings()
    feed: FeedSettings = FeedSettings()
    spark: SparkSettings = SparkSettings()
    metrics: MetricsSettings = MetricsSettings()
    queries: QueriesSettings = QueriesSettings()
    dashboard: DashboardSettings = DashboardSettings()
    dagster: DagsterSettings = DagsterSettings()

    @field_validator("data_dir")
    @classmethod
    def _has_a_usable_path(cls, folder: Path) -> Path:
        _require_usable(str(folder.absolute()))
        return folder

    @model_validator(mode="after")
    def _leaderboards_need_redis(self) -> Self:
        if self.cassandra.hosts and self.redis.leaderboards:
            message = "leaderboards require Redis, and cassandra.hosts names another store: remove one of them"
            raise MistakeError(("redis", "leaderboards"), message)
        return self

    @model_validator(mode="after")
    def _one_ingester_of_a_queue(self) -> Self:
        if self.queue.kind and self.ingest.share_partitions:
            raise MistakeError(
                ("ingest", "share_partitions"),
                "divides the topic partitions of Kafka, and queue.kind names a queue, which has one ingester: remove "
                "one of them",
            )
        return self

    @model_validator(mode="after")
    def _pinned_apart(self) -> Self:
        if self.reputation.pinned and self.lake.uri is None:
            raise MistakeError(
                ("reputation", "pinned"),
                "needs lake.uri, the place of the lake whose policy in force others serve, and a data_dir of its own",
            )
        if self.reputation.pinned and self.feed.enabled:
            raise MistakeError(
                ("feed", "enabled"),
                "feed.enabled and reputation.pinned are both set: a lake has one feed, of the policy in force; set "
                "feed.enabled = false where another policy is served beside it",
            )
        default = type(self.document_store)().prefix
        if self.reputation.pinned and self.document_store.prefix == default:
            raise MistakeError(
                ("reputation", "pinned"),
                f"needs a prefix of its own (redis.prefix or cassandra.prefix): {default} is that of the policy in "
                "force",
            )
        return self

    @property
    def lake_root(self) -> str:
        """The folder or URI of the Delta tables, the source of truth."""
        return self.lake.uri or str(self.data_dir / "lake")

    @property
    def spark_staging(self) -> str | None:
        """The URI under which Spark hands its tables to DuckDB; None means beside the warehouse."""
        return self.spark.staging_uri or (f"{self.lake.uri}-staging" if self.lake.on_s3 else None)

    @property
    def has_document_store(self) -> bool:
        """Whether Redis or Cassandra is configured."""
        return bool(self.cassandra.hosts) or self.redis.url is not None

    @property
    def document_store(self) -> RedisSettings | CassandraSettings:
        """The settings of the document store: Cassandra if it is configured, else Redis."""
        return self.cassandra if self.cassandra.hosts else self.redis

    @property
    def index_dir(self) -> Path:
        """The dedup index: a cache of the lake."""
        return self.data_dir / "index"

    @property
    def tombstones_file(self) -> Path:
        """The digests of erased users; a copy of the lake's table that outlives the lake."""
        return self.data_dir / "tombstones.txt"

    @property
    def warehouse_path(self) -> Path:
        """The published DuckDB file."""
        return self.data_dir / "warehouse.duckdb"

    @property
    def published_dir(self) -> Path:
        """State of the last publication, so that the next one sends changes only."""
        return self.data_dir / "published"

    @property
    def relays_feed(self) -> bool:
        """Whether the changes of the feed are relayed to a topic."""
        return self.feed.enabled and bool(self.feed.topic)

    @property
    def feed_path(self) -> Path:
        """What the feed said last of each user: a cache of the lake's table score_changes."""
        return self.data_dir / "score_changes.sqlite"

    @property
    def lag_dir(self) -> Path:
        """The history of lag. Nothing depends on it."""
        return self.data_dir / "lag"

    @property
    def local_dir(self) -> Path:
        """The state of the embedded broker and cache; a pinned policy uses those of the data_dir with its lake."""
        beside = self.reputation.pinned and not self.lake.on_s3
        return (Path(self.lake_root).parent if beside else self.data_dir) / "local"


def load_settings(environment: dict[str, str] | None = None, working_dir: Path | None = None) -> Settings:
    """Read the settings from the environment and the configuration file.

    Raises ConfigurationError with the source of each unknown key and invalid value.
    """
    environment = dict(os.environ) if environment is None else environment
    values, sources, lines = _from_file(environment, working_dir or Path.cwd())
    for name, value in environment.items():
        if name.startswith(_ENVIRONMENT_PREFIX) and name != _CONFIG_VARIABLE and value:
            _set(values, sources, name, value)
    _add_sources_folder(values, _config_path(environment, working_dir or Path.cwd()).parent)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_format(error, sources, lines)) from None


def _from_file(environment: dict[str, str], working_dir: Path) -> tuple[dict[str, Any], dict[str, str], Lines]:
    """Return the values of the configuration file, the file as the source of every key, and the line of each."""
    path = _config_path(environment, working_dir)
    if not exists(path):
        if environment.get(_CONFIG_VARIABLE):
            raise ConfigurationError(f"{_CONFIG_VARIABLE} names {path}, which does not exist")
        return {}, {}, {}
    text = read_toml(path, ConfigurationError)
    return parse_toml(text, str(path), ConfigurationError, float), {"": str(path)}, key_lines(text)


def _config_path(environment: dict[str, str], working_dir: Path) -> Path:
    """Return where the configuration file is, or would be."""
    named = environment.get(_CONFIG_VARIABLE)
    return Path(named) if named else working_dir / "karmalake.toml"


def _add_sources_folder(values: dict[str, Any], beside: Path) -> None:
    """Set the default of `sources.folder`, if there is such a folder."""
    section, folder = values.setdefault("sources", {}), beside / "sources"
    if isinstance(section, dict) and "folder" not in section and folder.is_dir():
        section["folder"] = folder


def _set(values: dict[str, Any], sources: dict[str, str], name: str, value: str) -> None:
    """Set the value of an environment variable, and its name as the source of the key."""
    key = name.removeprefix(_ENVIRONMENT_PREFIX).lower()
    section, _, field = key.partition("_")
    if section not in Settings.model_fields or not field:
        values[key], sources[key] = value, name
    elif isinstance(inner := values.setdefault(section, {}), dict):
        inner[field], sources[f"{section}.{field}"] = value, name


def _format(error: ValidationError, sources: dict[str, str], lines: Lines) -> str:
    """Return the sentences about mistakes, each with the variable or the line; values may be secrets."""
    problems = error.errors(include_input=False, include_url=False)
    return format_problems((_sentence(each, sources, lines) for each in problems), len(problems))


def _sentence(problem: ErrorDetails, sources: dict[str, str], lines: Lines) -> str:
    path = path_of(problem)
    key = ".".join(path)
    variable, file, line = sources.get(key), sources.get(""), line_of(path, lines)
    if problem["type"] == "model_type":
        remedy = "is a section of settings, not one setting"
    elif variable and problem["type"] == "extra_forbidden":
        remedy = f"is not a setting{_closest(variable) or ': remove it'}"
    else:
        remedy = FileFormat(Settings, "settings", unknown="is not a setting").remedy(problem, path)
    place = variable or (f"{file}:{line}" if file and line else file) or "the settings"
    return ": ".join(part for part in (place, key, remedy) if part)


def _closest(variable: str) -> str:
    """Return the end of a message that asks for the most similar variable, or an empty string."""
    known = [name.replace(".", "_").upper() for name in _setting_names()]
    meant = did_you_mean(variable.removeprefix(_ENVIRONMENT_PREFIX), known)
    return meant.replace("'", f"'{_ENVIRONMENT_PREFIX}", 1)


def _setting_names() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{inner}" for inner in section.model_fields)
        else:
            yield name
