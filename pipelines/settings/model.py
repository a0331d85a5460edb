"""All settings, section by section, what they imply, and which of them contradict each other."""

from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator

from pipelines.boundary.mistakes import MistakeError
from pipelines.settings.buses import KafkaSettings, QueueSettings
from pipelines.settings.ingest import ContractSettings, HistorySettings, IngestSettings, RelaySettings, SourcesSettings
from pipelines.settings.operation import (
    DagsterSettings,
    DashboardSettings,
    LagSettings,
    MetricsSettings,
    QueriesSettings,
)
from pipelines.settings.scores import FeedSettings, NotifySettings, ReputationSettings
from pipelines.settings.stores import CassandraSettings, LakeSettings, RedisSettings, SparkSettings
from pipelines.settings.values import Section, require_usable


class Settings(Section):
    """All settings; `load_settings()` builds it."""

    data_dir: Path = Path("data")
    """The folder of lake/, index/, ingesters/, lag/, local/, base/, canary/, warehouse.duckdb, tombstones.txt (digests
    of erased users)."""
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
        require_usable(str(folder.absolute()))
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
