"""Assembly of all definitions. `build_defs` takes the source of the settings, so that tests can replace it."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import dagster as dg

from assets import automation, checks, history, lake, scores, upkeep
from assets.resources import Karmalake
from pipelines.settings import Settings, load_settings

# One process per run: the steps depend on each other anyway, and the lake's library is not fork-safe.
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
"""The notebook or page with more about an asset."""


def build_defs(read_settings: Callable[[], Settings] = load_settings) -> dg.Definitions:
    """Return all definitions; `read_settings` is called in each run."""
    return dg.Definitions(
        assets=_assets(),
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=automation.JOBS,
        schedules=automation.SCHEDULES,
        sensors=automation.SENSORS,
        resources={"karmalake": Karmalake(read_settings)},
        executor=_EXECUTOR,
    )


def _assets() -> list[dg.AssetsDefinition | dg.AssetSpec]:
    loaded = dg.load_assets_from_modules([history, lake, scores, upkeep], include_specs=True)
    ours = [asset for asset in loaded if isinstance(asset, dg.AssetsDefinition | dg.AssetSpec)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # code references are in beta
        return [_described(asset) for asset in ours]


def _described(asset: dg.AssetsDefinition | dg.AssetSpec) -> dg.AssetsDefinition | dg.AssetSpec:
    """Add the owners of an asset, and links to its code and further reading."""
    name = asset.key.to_user_string()
    pages = [_ROOT / _READ_MORE[name]] if name in _READ_MORE else []
    links: list[Any] = [_link(page) for page in pages if page.exists()]  # a wheel does not include them
    if isinstance(asset, dg.AssetsDefinition):
        compute = inspect.unwrap(cast("Any", asset.op.compute_fn).decorated_fn)
        links.append(_link(Path(inspect.getfile(compute)), compute.__code__.co_firstlineno))
    metadata = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=links)}
    [described] = dg.map_asset_specs(
        lambda spec: spec.replace_attributes(owners=_OWNERS).merge_attributes(metadata=metadata), [asset]
    )
    return described


def _link(path: Path, line: int | None = None) -> dg.LocalFileCodeReference:
    label = path.relative_to(_ROOT).as_posix()
    return dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=label)


defs = build_defs()
