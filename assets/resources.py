"""The one resource: where the settings come from. Nothing of them, secrets least of all, stands in run config."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import Snapshot, create_lake
from pipelines.local.services import with_local_endpoints
from pipelines.settings import Settings, load_settings


@dataclass(frozen=True)
class Karmalake:
    """Gives an asset what it works on; `read` is called in the run, so the environment of the run counts."""

    read: Callable[[], Settings] = load_settings

    @property
    def settings(self) -> Settings:
        """The settings, with the local broker and cache where none are configured."""
        return with_local_endpoints(self.read())

    def snapshot(self) -> Snapshot:
        """Return the newest whole state of the lake, creating an empty lake if there is none."""
        return take_snapshot(create_lake(self.settings.lake_root))
