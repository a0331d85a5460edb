"""The settings of karmalake: the model, and the only code that reads the environment.

Precedence: environment (`KARMALAKE_KAFKA_TOPIC`), then `karmalake.toml` in the working directory or at
`KARMALAKE_CONFIG` (`[kafka] topic = ...`), then the defaults below. Unknown keys are rejected in both places; an empty
variable counts as unset. pydantic-settings would ignore unknown variables and hide the source of a value:
docs/decisions/0012-settings-sources.md.
Secrets are `SecretStr`: they never appear in a repr, an error or `karmalake doctor`.
"""

from pipelines.settings.buses import KafkaSettings, QueueSettings
from pipelines.settings.ingest import ContractSettings, HistorySettings, IngestSettings, RelaySettings, SourcesSettings
from pipelines.settings.loading import load_settings
from pipelines.settings.model import Settings
from pipelines.settings.operation import (
    DagsterSettings,
    DashboardSettings,
    LagSettings,
    MetricsSettings,
    PageSettings,
    QueriesSettings,
)
from pipelines.settings.scores import FeedSettings, NotifySettings, ReputationSettings
from pipelines.settings.stores import CassandraSettings, LakeSettings, RedisSettings, SparkSettings
from pipelines.settings.values import Format

__all__ = [
    "CassandraSettings",
    "ContractSettings",
    "DagsterSettings",
    "DashboardSettings",
    "FeedSettings",
    "Format",
    "HistorySettings",
    "IngestSettings",
    "KafkaSettings",
    "LagSettings",
    "LakeSettings",
    "MetricsSettings",
    "NotifySettings",
    "PageSettings",
    "QueriesSettings",
    "QueueSettings",
    "RedisSettings",
    "RelaySettings",
    "ReputationSettings",
    "Settings",
    "SourcesSettings",
    "SparkSettings",
    "load_settings",
]
