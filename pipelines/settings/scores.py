"""The settings of scores, of the feed of their changes, and of notifications."""

from pathlib import Path

from pydantic import Field

from pipelines.settings.values import Count, Days, Format, Seconds, Section, TopicOrNone


class NotifySettings(Section):
    """Notifications: `karmalake notify`."""

    rules: Path | None = None
    """The TOML file with the notification rules, described in docs/notifications.md."""
    group_id: str = "karmalake.notify"
    """The prefix of the consumer groups `{group_id}.{destination}`, whose offsets are the notifier's checkpoints."""
    max_in_flight: Count = Field(default=1_000, ge=1)
    """The maximum number of notifications in memory, divided equally among the destinations."""
    stop_seconds: Seconds = Field(default=10.0, ge=0)
    """How long a stopping notifier waits for requests in flight; those still unanswered are delivered again."""


class ReputationSettings(Section):
    """How events become scores."""

    policy: str = "default"
    """The name of a built-in policy or the path of a policy file, until `karmalake policy activate` replaces it."""
    pinned: bool = False
    """Whether `policy` is served whatever is activated: beside the policy in force of a lake, by a configuration with a
    data_dir and a prefix of its own, and with `lake.uri` for the lake of the other one."""
    derive_interval_seconds: Seconds = Field(default=30.0, gt=0)
    """How often `karmalake stream` refreshes warehouse.duckdb and moves the time windows. Its end replaces the file
    only after an erasure; the next start does, and `karmalake refresh`."""
    upload_interval_seconds: Seconds = Field(default=300.0, ge=0)
    """How often at most `karmalake stream` uploads the warehouse to a lake on S3, for readers on other machines: what
    changed since its base, and the base when it is a new one. `refresh`, `rebuild` and an erasure always do."""
    max_memory_share: float = Field(default=0.25, ge=0.001, le=1)
    """The share of the memory of the machine, or of its control group, that DuckDB may use for a rebuild or refresh;
    what exceeds it is written to a folder beside the warehouse. Other memory of the process comes on top."""
    max_staleness_seconds: Seconds = Field(default=900.0, gt=0)
    """The maximum staleness; above it, served scores are reported as stale."""


class FeedSettings(Section):
    """The feed: a record of each published change of a score, in the lake's table score_changes."""

    enabled: bool = False
    """Whether publications record what they changed. The first one then records a row for each user."""
    topic: TopicOrNone = "karmalake.scores"
    """The topic to which `karmalake stream` and `karmalake serve` relay the changes, keyed by user_id. A missing one
    is created, compacted, with `kafka.partitions`. Empty, in the file: the changes stay in the lake."""
    format: Format = "json"
    """The format of the changes on that topic: json, avro or protobuf, by the schemas of `karmalake contract show
    score-change`."""
    keep_days: Days | None = Field(default=None, ge=1)
    """How many days changes stay in the lake. The newest change of each user always does, so a replay from zero still
    gives every score. Unset: indefinitely."""
