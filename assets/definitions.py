"""Assembly. `build_defs` takes the source of the settings, so that tests build the very same definitions."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets import automation, checks, history, lake, scores, upkeep
from assets.resources import Karmalake
from pipelines.settings import Settings, load_settings

# One process a run: the steps wait for each other anyway, and the lake's library does not survive a fork.
_EXECUTOR = dg.in_process_executor
_OWNERS = ["team:reputation"]
_ROOT = Path(__file__).parents[1]
_READ_MORE = {
    "history": "docs/backfilling.md",
    "reputation": "notebooks/02_why_is_this_score.ipynb",
    "user_days": "notebooks/01_reputation_trends.ipynb",
    "trends": "notebooks/01_reputation_trends.ipynb",
    "anomalies": "docs/trends.md",
    "reputation_cache": "docs/redis.md",
    "dead_letters": "docs/operations.md",
    "audit": "docs/operations.md",
}
"""The notebook or page that begins where an asset ends."""


def build_defs(read_settings: Callable[[], Settings] = load_settings) -> dg.Definitions:
    """Return all definitions, over the settings that `read_settings` gives in each run."""
    return dg.Definitions(
        assets=_assets(),
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=automation.JOBS,
        schedules=automation.SCHEDULES,
        sensors=automation.SENSORS,
        resources={"karmalake": Karmalake(read_settings)},
        executor=_EXECUTOR,
    )


def _assets() -> Sequence[Any]:
    """Return the assets with their owners and, for "open in editor", their code and what to read next."""
    loaded = dg.load_assets_from_modules([history, lake, scores, upkeep], include_specs=True)
    ours = [asset for asset in loaded if isinstance(asset, dg.AssetsDefinition | dg.AssetSpec)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # at worst a link is gone
        return dg.with_source_code_references(dg.map_asset_specs(_described, ours))


def _described(spec: dg.AssetSpec) -> dg.AssetSpec:
    """Name whom to ask, and link what to read next."""
    page = _READ_MORE.get(spec.key.to_user_string())
    if page is not None:
        reference = dg.LocalFileCodeReference(file_path=str(_ROOT / page), label=page)
        spec = spec.merge_attributes(
            metadata={"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}
        )
    return spec.replace_attributes(owners=_OWNERS)


defs = build_defs()
