"""The only resource: the source of the settings, and the place in the graph. Run config contains no settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.partitions import DAYS
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import Snapshot, is_lake, open_lake
from pipelines.local.services import with_local_endpoints
from pipelines.settings import Settings, load_settings

NO_CONFIG: dict[str, Any] = {}
"""The config schema of what has no run config: without a schema, Dagster accepts and ignores any config."""


@dataclass(frozen=True)
class Karmalake:
    """Settings and snapshots for assets; `read` is called within the run, so the environment of the run applies."""

    read: Callable[[], Settings] = load_settings
    key_prefix: tuple[str, ...] = ()
    """The first parts of the key of every asset."""
    days: dg.DailyPartitionsDefinition = DAYS
    """The partitions of the assets by day."""

    @property
    def settings(self) -> Settings:
        """The settings, with the local broker and cache if none are configured."""
        return with_local_endpoints(self.read())

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the newest state of the lake. Raises UsageError if there is none."""
        return take_snapshot(open_lake(self.settings.lake_root))

    def has_lake(self) -> bool:
        """Return whether there is a lake."""
        return is_lake(self.settings.lake_root)

    def key(self, asset: dg.AssetsDefinition | dg.AssetSpec) -> dg.AssetKey:
        """Return the key of an asset in this graph."""
        return asset.key.with_prefix(self.key_prefix)

    def select(self, *assets: dg.AssetsDefinition | dg.AssetSpec) -> dg.AssetSelection:
        """Return the selection of assets in this graph, with their checks."""
        return dg.AssetSelection.assets(*map(self.key, assets))

    def select_checks(self, *checks: dg.AssetsDefinition) -> dg.AssetSelection:
        """Return the selection of asset checks in this graph."""
        keys = [key for check in checks for key in check.check_keys]
        here = [key.replace_asset_key(key.asset_key.with_prefix(self.key_prefix)) for key in keys]
        return dg.AssetSelection.checks(*here)
