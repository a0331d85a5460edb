"""Assembly. `build_defs` takes the source of the settings, so that tests build the very same definitions."""

from collections.abc import Callable

import dagster as dg

from assets import automation, checks, history, lake, scores
from assets.resources import Karmalake
from pipelines.settings import Settings, load_settings

# One process a run: the steps wait for each other anyway, and the lake's library does not survive a fork.
_EXECUTOR = dg.in_process_executor


def build_defs(read_settings: Callable[[], Settings] = load_settings) -> dg.Definitions:
    """Return all definitions, over the settings that `read_settings` gives in each run."""
    return dg.Definitions(
        assets=dg.load_assets_from_modules([history, lake, scores]),
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=automation.JOBS,
        schedules=automation.SCHEDULES,
        sensors=automation.SENSORS,
        resources={"karmalake": Karmalake(read_settings)},
        executor=_EXECUTOR,
    )


defs = build_defs()
