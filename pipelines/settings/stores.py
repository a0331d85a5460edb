"""The settings of what is stored where: the lake, the document stores, and Spark, which reads the lake."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from pipelines.boundary.mistakes import MistakeError
from pipelines.settings.values import (
    Count,
    Keyspace,
    LakeUri,
    Names,
    Prefix,
    Section,
    StagingUri,
    TimeoutSeconds,
    require_usable,
)


class RedisSettings(Section):
    """The cache. Without `url` the server of `karmalake local start` is used."""

    url: SecretStr | None = None
    """The redis://, rediss:// or unix:// URL, or redis+cluster:// or redis+sentinel://; a secret, since it may contain
    a password."""
    prefix: Prefix = "reputation"
    """The document of a user is at `{prefix}:{user_id}`; keys for bookkeeping start with `{prefix}.`."""
    socket_timeout_seconds: TimeoutSeconds = Field(default=10.0, gt=0)
    """The timeout of a command to Redis."""
    ssl_cafile: Path | None = None
    """The CA certificates that verify a rediss:// server."""
    leaderboards: Names = ()
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


class CassandraSettings(Section):
    """Cassandra as the document store, instead of Redis. Used if `hosts` is set."""

    hosts: Names = ()
    """The contact points, all in one data center; comma-separated in the environment."""
    port: int = Field(default=9042, ge=1, le=65_535)
    """The CQL port of the nodes."""
    keyspace: Keyspace = "karmalake"
    """The keyspace. It must exist, since you choose its replication; karmalake creates the tables."""
    prefix: Prefix = "reputation"
    """Distinguishes deployments that share a keyspace."""
    user: str | None = None
    """User name; unset means no authentication."""
    password: SecretStr | None = None
    """The password of the user; set it in the environment rather than in a file."""
    ssl_cafile: Path | None = None
    """The CA certificates that verify the nodes; if set, connections are encrypted."""
    request_timeout_seconds: TimeoutSeconds = Field(default=10.0, gt=0)
    """The timeout of a statement."""

    @model_validator(mode="after")
    def _user_with_password(self) -> Self:
        self.require_with("user", "password")
        self.require_with("password", "user")
        if not self.hosts and (given := [name for name in ("user", "password", "ssl_cafile") if self.is_given(name)]):
            raise MistakeError((given[0],), "has no effect without cassandra.hosts, which selects Cassandra: set it")
        return self

    @property
    def leaderboards(self) -> tuple[str, ...]:
        """Always empty: Cassandra cannot order users by score."""
        return ()


class LakeSettings(Section):
    """The location of the Delta tables, and their maintenance."""

    uri: LakeUri | None = None
    """s3://bucket/folder, or the absolute path of a folder, instead of lake/ in data_dir. Credentials and endpoint of
    S3 come from the AWS_* variables."""
    compact_after_files: Count = Field(default=8, ge=2)
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
            require_usable(uri)
        return uri

    @property
    def on_s3(self) -> bool:
        """Whether the lake is on S3."""
        return self.uri is not None and self.uri.startswith("s3:")


class SparkSettings(Section):
    """Apache Spark as the engine of `karmalake rebuild --engine spark`; its own configuration sets the rest."""

    staging_uri: StagingUri | None = None
    """s3://bucket/folder, where Spark hands its tables to DuckDB. Unset means {lake.uri}-staging if the lake is on S3,
    else a folder beside the warehouse."""
