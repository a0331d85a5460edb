"""The one model of settings and the one reader of the environment.

Precedence: environment (`KARMALAKE_KAFKA_TOPIC`), then `karmalake.toml` in the working directory or at
`KARMALAKE_CONFIG` (`[kafka] topic = ...`), then the defaults below. Unknown keys are refused in both places; an empty
variable is as good as none.
Secrets are `SecretStr`: they never appear in a repr, an error or `karmalake doctor`.
"""

import difflib
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from pipelines.boundary.toml import all_problems, exists, parse_toml, read_toml
from pipelines.errors import ConfigurationError

_ENVIRONMENT_PREFIX = "KARMALAKE_"
_CONFIG_VARIABLE = "KARMALAKE_CONFIG"
_MESSAGES = {"extra_forbidden": "is not a setting", "model_type": "is a section of settings, not one setting"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class KafkaSettings(_Section):
    """The bus. Without `bootstrap_servers` the broker of `karmalake local start` is used."""

    bootstrap_servers: str | None = None
    """Comma-separated host:port list."""
    topic: str = Field(default="karmalake.events", pattern=r"^[A-Za-z0-9._-]{1,249}$")
    """The topic of events, keyed by user_id."""
    group_id: str = "karmalake"
    """The consumer group that offsets are committed to after the lake commit: advisory, never read back."""
    partitions: int = Field(default=4, ge=1)
    """Topic partitions of a topic that `karmalake topics ensure` creates."""
    replication_factor: int = Field(default=1, ge=1)
    """Replicas of a topic that `karmalake topics ensure` creates."""
    retention_hours: int = Field(default=168, ge=-1)
    """Retention of a topic that `karmalake topics ensure` creates; -1 keeps records forever."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, as the listener of the brokers has it."""
    ssl_cafile: Path | None = None
    """Certificates of the authorities that the brokers are trusted by; those of the system if there is none."""
    ssl_certfile: Path | None = None
    """The client's certificate, where the brokers ask for one."""
    ssl_keyfile: Path | None = None
    """The private key of the client's certificate."""
    ssl_password: SecretStr | None = None
    """The password of the private key."""
    ssl_check_hostname: bool = True
    """Whether a broker's certificate must name its host."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"] | None = None
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or GSSAPI."""
    sasl_username: str | None = None
    """The user name for PLAIN and SCRAM."""
    sasl_password: SecretStr | None = None
    """The password for PLAIN and SCRAM."""
    request_timeout_seconds: float = Field(default=30.0, gt=0)
    """How long the brokers may take to answer before it counts as an error."""

    def client_config(self) -> dict[str, Any]:
        """Return the arguments that every kafka-python client of this project is built with."""
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
        }
        if "SSL" in self.security_protocol:
            config |= {
                "ssl_check_hostname": self.ssl_check_hostname,
                "ssl_cafile": self.ssl_cafile and str(self.ssl_cafile),
                "ssl_certfile": self.ssl_certfile and str(self.ssl_certfile),
                "ssl_keyfile": self.ssl_keyfile and str(self.ssl_keyfile),
                "ssl_password": self.ssl_password and _Hidden(self.ssl_password.get_secret_value()),
            }
        if "SASL" in self.security_protocol:
            config |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password and _Hidden(self.sasl_password.get_secret_value()),
            }
        return config


class _Hidden(str):
    """A password for a library that logs what it was configured with."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"


class QueueSettings(_Section):
    """A message queue that is read instead of Kafka."""

    kind: Literal["rabbitmq", "sqs"] | None = None
    """rabbitmq or sqs; without it Kafka is read."""
    url: SecretStr | None = None
    """amqp:// address of RabbitMQ with user and password, or https:// address of an SQS queue."""
    name: str = "karmalake.events"
    """The queue of RabbitMQ; SQS has it in its address."""


class RedisSettings(_Section):
    """The cache. Without `url` the server of `karmalake local start` is used."""

    url: SecretStr | None = None
    """redis://, rediss:// or unix:// address; may hold a password, so it is a secret."""
    prefix: str = Field(default="reputation", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """A user's document is at `{prefix}:{user_id}`; bookkeeping keys start with `{prefix}.`."""
    socket_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long Redis may take to answer before it counts as an error."""
    ssl_cafile: Path | None = None
    """Certificates of the authorities that a rediss:// server is trusted by."""
    leaderboards: tuple[str, ...] = ()
    """Views of which a leaderboard is kept, such as all_time or last_30_days; in the environment, between commas."""

    @field_validator("leaderboards", mode="before")
    @classmethod
    def _between_commas(cls, value: object) -> object:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("leaderboards")
    @classmethod
    def _views(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"all_time|last_[1-9][0-9]*_days", name):
                raise ValueError(f"{name!r} is no view: all_time, or last_N_days with the N of a window of the policy")
        return tuple(dict.fromkeys(names))


class CassandraSettings(_Section):
    """Cassandra as the store of documents, instead of Redis; with `hosts` it is used."""

    hosts: tuple[str, ...] = ()
    """Nodes to begin with, of one data centre; in the environment, between commas."""
    port: int = Field(default=9042, ge=1, le=65_535)
    """Where they speak CQL."""
    keyspace: str = Field(default="karmalake", pattern=r"^[A-Za-z][A-Za-z0-9_]{0,47}$")
    """Has to be there: its replication is yours to choose. The tables in it are made."""
    prefix: str = Field(default="reputation", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Tells apart those who share a keyspace."""
    user: str | None = None
    """Whom to log in as; without one, nobody in particular."""
    password: SecretStr | None = None
    """The user's; better in the environment."""
    ssl_cafile: Path | None = None
    """Certificates of the authorities that the nodes are trusted by; encrypts."""
    request_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long a statement may take before it counts as an error."""

    @property
    def leaderboards(self) -> tuple[str, ...]:
        """None: Cassandra keeps no order by score."""
        return ()

    @field_validator("hosts", mode="before")
    @classmethod
    def _between_commas(cls, value: object) -> object:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class RelaySettings(_Section):
    """The relay from a service's outbox to the bus."""

    database_url: SecretStr | None = None
    """postgresql://, mysql://, mariadb:// or sqlite:/// address of the service's database; may hold a password."""


class NotifySettings(_Section):
    """The notifications branch: `karmalake notify`."""

    rules: Path | None = None
    """The TOML file that says who is told what, as docs/notifications.md has it."""
    group_id: str = "karmalake.notify"
    """Consumer groups are named `{group_id}.{destination}`: their offsets are the checkpoints of this branch."""
    max_in_flight: int = Field(default=1_000, ge=1)
    """Notifications in memory at most, divided equally among the destinations."""
    stop_seconds: float = Field(default=10.0, ge=0)
    """How long an ending notifier waits for requests under way; what is unanswered then is delivered again."""


class ContractSettings(_Section):
    """How events are written, and the bounds of a valid one; what is outside becomes a dead letter."""

    format: Literal["protobuf", "avro", "json"] = "protobuf"
    """How values without a schema id are written; one with an id, or a header that has it, as its schema says."""
    schemas_dir: Path | None = None
    """A folder of writers' schemas, each named by its id or GUID: 7.proto, 8.avsc, 9.json."""
    schema_registry_url: SecretStr | None = None
    """The registry (Confluent's HTTP API) that knows the other schema ids; may hold a password, so it is a secret."""

    max_event_id_bytes: int = Field(default=256, ge=1)
    """A longer event_id is rejected."""
    max_user_id_bytes: int = Field(default=256, ge=1)
    """A longer user_id is rejected."""
    max_action_type_bytes: int = Field(default=128, ge=1)
    """A longer action_type is rejected."""
    max_metadata_bytes: int = Field(default=65_536, ge=0)
    """Keys and values of one event together."""
    earliest: AwareDatetime = datetime(2000, 1, 1, tzinfo=UTC)
    """An event_time before this is out of range."""
    max_ahead_seconds: int = Field(default=86_400, ge=0)
    """How far event_time may lie ahead of the broker's time of the record."""
    strict_keys: bool = False
    """Whether a record whose key is not its user_id is a dead letter instead of a counted warning."""


class IngestSettings(_Section):
    """How a batch is cut and when ingest refuses to go on."""

    max_batch_records: int = Field(default=500_000, ge=1, le=5_000_000)
    """Records of one commit, about; bounds memory together with `max_batch_bytes`, for two batches at a time."""
    max_batch_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024)
    """Bytes of one commit, decompressed, and the one record batch that uses them up: at most 128 MiB more."""
    max_wait_seconds: float = Field(default=0.5, gt=0)
    """How long `stream`, or a poll of a queue, waits for a first record."""
    linger_seconds: float = Field(default=0.25, ge=0)
    """How long a batch of theirs that is not full waits for more: fewer, larger commits, each at most this later."""
    publish_dead_letters: bool = False
    """Whether dead letters are copied to the topic `{topic}.dlq` after their commit, with the reason in headers."""
    share_partitions: bool = False
    """Whether several ingesters divide the topic partitions through the consumer group; each needs real Kafka."""
    max_dead_letter_share: float = Field(default=0.5, ge=0, le=1)
    """Above this share of rejected records in a batch, of at least `min_records_for_share`, a topic partition halts."""
    min_records_for_share: int = Field(default=5_000, ge=1)
    """Smaller batches say little about the schema: their share is not judged."""
    max_dead_letter_run: int = Field(default=5_000, ge=1)
    """More rejected records than this in a row, and their topic partition halts; the others go on."""


class HistorySettings(_Section):
    """Files of history by day, for the asset `history` in Dagster; as the options of `karmalake backfill`."""

    path: str | None = None
    """A day's file, with {day} where its name has it: /history/rides-{day}.parquet."""
    user_id: str = "user_id"
    """The column of the user whose reputation it is about."""
    time: str = "timestamp"
    """The column of when it happened."""
    time_unit: Literal["s", "ms", "us", "iso"] = "iso"
    """What that column holds, unless it says so itself."""
    action_type: str | None = None
    """The action_type of every row; or else `action_type_column`."""
    action_type_column: str = "action_type"
    """The column that holds it."""
    metadata: dict[str, str] = {}
    """Name in the event and column of each; in the environment rating=stars,rater_id=rider."""
    event_id: str | None = None
    """The column of event ids; without it, a digest of the row."""
    delimiter: str | None = None
    """What separates the values of a row, one character or tab; without it a comma, in .tsv a tab."""
    days_may_be_missing: bool = False
    """Whether a day without a file is one on which nothing happened; otherwise it is a mistake."""

    @field_validator("metadata", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().split("=", 1) for pair in value.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("say name=column, and a comma between two of them")
        return dict(pairs)


class LakeSettings(_Section):
    """Where the Delta tables are, and their upkeep."""

    uri: str | None = Field(default=None, pattern=r"^s3://[^/]+/.*[^/]$")
    """s3://bucket/folder, instead of lake/ in data_dir; credentials and endpoint as AWS's own tools take them."""
    compact_after_files: int = Field(default=8, ge=2)
    """A day with at least this many files is merged by `karmalake compact`."""
    vacuum_retention_hours: float = Field(default=24.0, ge=1, le=168)
    """Files that no commit names, or that no snapshot of this age names, are removed by `karmalake vacuum`. At most a
    week: the log forgets by then that a file was replaced."""
    vacuum_interval_hours: float = Field(default=6.0, gt=0, le=168)
    """How often `karmalake stream` vacuums. The bytes of an erased user are on the disk for vacuum_retention_hours, and
    for so long more at most."""


class ReputationSettings(_Section):
    """What turns events into scores."""

    policy: str = "default"
    """The name of a shipped policy or the path of a policy file; `karmalake policy activate` puts another in force."""
    derive_interval_seconds: float = Field(default=30.0, gt=0)
    """How often `karmalake stream` puts a new warehouse.duckdb in place, and looks for windows that moved."""
    max_staleness_seconds: float = Field(default=900.0, gt=0)
    """Older than this, what is served is reported as stale."""


class LagSettings(_Section):
    """How far the lake is behind the bus, measured by `karmalake stream` beside its work, and kept as history."""

    interval_seconds: float = Field(default=15.0, gt=0)
    """How often `karmalake stream` measures, and `lag --watch`; relays and notifiers measure theirs as often."""
    keep_days: int = Field(default=14, ge=1)
    """How many days of measurements are kept in lag/; a day of one `stream` is some megabytes."""
    max_seconds: float = Field(default=300.0, gt=0)
    """A record that waits longer than this to get into the lake makes the check of lag in Dagster warn."""


class MetricsSettings(_Section):
    """`/metrics`, `/healthz` and `/readyz` of `karmalake stream`, `relay` and `notify`, over plain HTTP."""

    port: int | None = Field(default=None, ge=0, le=65_535)
    """Where they are served; 0 takes any free port. Without one they are not."""
    host: str = "127.0.0.1"
    """The address to listen on. There is no password: open it only to a network that may read metrics."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the server may be asked by, besides IP addresses, localhost and `host`, such as that of a service."""
    stalled_after_seconds: float = Field(default=600.0, gt=0)
    """A loop that has not turned for so long makes /healthz answer 503: longer than the longest rebuild takes."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _between_commas(cls, value: object) -> object:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class DashboardSettings(_Section):
    """Who is let in by `karmalake dashboard`."""

    token: SecretStr | None = Field(default=None, min_length=16)
    """What a visitor has to know; without it, each start makes a token and prints it within the address."""
    allowed_hosts: tuple[str, ...] = ()
    """Public names of the page, as a proxy before it has them, with the port where the address has one."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _between_commas(cls, value: object) -> object:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class Settings(_Section):
    """All settings; `load_settings()` builds it."""

    data_dir: Path = Path("data")
    """Holds lake/, index/, lag/, local/, warehouse.duckdb and tombstones.txt, the digests of users who were erased."""
    kafka: KafkaSettings = KafkaSettings()
    queue: QueueSettings = QueueSettings()
    redis: RedisSettings = RedisSettings()
    cassandra: CassandraSettings = CassandraSettings()
    relay: RelaySettings = RelaySettings()
    notify: NotifySettings = NotifySettings()
    contract: ContractSettings = ContractSettings()
    ingest: IngestSettings = IngestSettings()
    history: HistorySettings = HistorySettings()
    lake: LakeSettings = LakeSettings()
    lag: LagSettings = LagSettings()
    reputation: ReputationSettings = ReputationSettings()
    metrics: MetricsSettings = MetricsSettings()
    dashboard: DashboardSettings = DashboardSettings()

    @model_validator(mode="after")
    def _leaderboards_have_a_place(self) -> Self:
        if self.cassandra.hosts and self.redis.leaderboards:
            raise ValueError("redis.leaderboards are kept in Redis only, and cassandra.hosts names another store")
        return self

    @property
    def lake_root(self) -> str:
        """The folder or the URI of the Delta tables: the truth."""
        return self.lake.uri or str(self.data_dir / "lake")

    @property
    def serves(self) -> bool:
        """Whether a store of documents is configured."""
        return bool(self.cassandra.hosts) or self.redis.url is not None

    @property
    def documents(self) -> RedisSettings | CassandraSettings:
        """The store of documents: Cassandra if it is configured, else Redis."""
        return self.cassandra if self.cassandra.hosts else self.redis

    @property
    def index_dir(self) -> Path:
        """The dedup index: a cache of the lake."""
        return self.data_dir / "index"

    @property
    def tombstones_file(self) -> Path:
        """Who was erased, as digests, beside the lake's own table: it outlives the lake."""
        return self.data_dir / "tombstones.txt"

    @property
    def warehouse_path(self) -> Path:
        """The published DuckDB snapshot."""
        return self.data_dir / "warehouse.duckdb"

    @property
    def published_dir(self) -> Path:
        """What was published last, so that only changes are published next."""
        return self.data_dir / "published"

    @property
    def lag_dir(self) -> Path:
        """The history of lag: an observation, nothing depends on it."""
        return self.data_dir / "lag"

    @property
    def local_dir(self) -> Path:
        """State of the embedded broker and cache."""
        return self.data_dir / "local"


def load_settings(environment: dict[str, str] | None = None, working_dir: Path | None = None) -> Settings:
    """Read the settings from the environment and the configuration file.

    Raises ConfigurationError naming each unknown key or invalid value and where it stands.
    """
    environment = dict(os.environ) if environment is None else environment
    values, places = _from_file(environment, working_dir or Path.cwd())
    for name, value in environment.items():
        if name.startswith(_ENVIRONMENT_PREFIX) and name != _CONFIG_VARIABLE and value:
            _place(values, places, name, value)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, places)) from None


def _from_file(environment: dict[str, str], working_dir: Path) -> tuple[dict[str, Any], dict[str, str]]:
    named = environment.get(_CONFIG_VARIABLE)
    path = Path(named) if named else working_dir / "karmalake.toml"
    if not exists(path):
        if named:
            raise ConfigurationError(f"{_CONFIG_VARIABLE} names {path}, which does not exist")
        return {}, {}
    text = read_toml(path, ConfigurationError)
    return parse_toml(text, str(path), ConfigurationError, float), {"": str(path)}


def _place(values: dict[str, Any], places: dict[str, str], name: str, value: str) -> None:
    key = name.removeprefix(_ENVIRONMENT_PREFIX).lower()
    section, _, field = key.partition("_")
    if section not in Settings.model_fields or not field:
        values[key], places[key] = value, name
    elif isinstance(inner := values.setdefault(section, {}), dict):
        inner[field], places[f"{section}.{field}"] = value, name


def _explain(error: ValidationError, places: dict[str, str]) -> str:
    lines: list[str] = []
    for problem in error.errors(include_input=False, include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        place = places.get(key) or places.get("") or "the settings"
        said = _MESSAGES.get(problem["type"], problem["msg"])
        lines.append(f"{place}: {key}: {said}" + (_meant(key) if problem["type"] == "extra_forbidden" else ""))
    return all_problems(lines, len(lines))


def _meant(key: str) -> str:
    """Return the setting that is written most like an unknown one, as the end of a sentence."""
    close = difflib.get_close_matches(key, list(_names()), 1)
    return f": do you mean {close[0]}?" if close else ""


def _names() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{inner}" for inner in section.model_fields)
        else:
            yield name
