"""The only resource: the source of the settings. Run config contains no settings and no secrets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import Snapshot, create_lake
from pipelines.local.services import with_local_endpoints
from pipelines.settings import Settings, load_settings

NO_CONFIG: dict[str, Any] = {}
"""The config schema of what has no run config: without a schema, Dagster accepts and ignores any config."""


@dataclass(frozen=True)
class Karmalake:
    """Settings and snapshots for assets; `read` is called within the run, so the environment of the run applies."""

    read: Callable[[], Settings] = load_settings

    @property
    def settings(self) -> Settings:
        """The settings, with the local broker and cache if none are configured."""
        return with_local_endpoints(self.read())

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the newest state of the lake; creates an empty lake if there is none."""
        return take_snapshot(create_lake(self.settings.lake_root))
