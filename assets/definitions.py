"""Assembly of all definitions. `build_defs` takes the source of the settings, so that tests can replace it."""

import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, cast

import dagster as dg

from assets import checks, history, lake, scores, upkeep
from assets.automation import jobs, schedules
from assets.partitions import DAYS, days_from
from assets.resources import Karmalake
from assets.sensors import sensors
from pipelines.contract.time_like import to_utc
from pipelines.errors import UsageError, is_transient
from pipelines.first_day import first_day
from pipelines.settings import Settings, load_settings

_LOG = logging.getLogger(__name__)
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
_Asset = dg.AssetsDefinition | dg.AssetSpec


def build_defs(
    read_settings: Callable[[], Settings] = load_settings,
    *,
    key_prefix: str | Sequence[str] = (),
    partitions_start: date | str | None = None,
    git_url: str | None = None,
    git_branch: str = "main",
) -> dg.Definitions:
    """Return all definitions.

    read_settings: is called here, for the first day, and in each run.
    key_prefix: the first parts of the key of every asset, so that assets of yours can have the same names: with
    `"karmalake"`, depend on `dg.AssetKey(["karmalake", "events"])`.
    partitions_start: the first day (UTC) of the assets by day; None: the day of the first event in the lake or of the
    first file of history, whichever is earlier, when the code location is loaded; today if both are later, and
    2010-01-01 if the lake cannot be read then.
    git_url: the repository on GitHub or GitLab to which the links to the code go; None: that of the package, or without
    one to the local files.
    git_branch: its branch, tag or commit.
    Raises UsageError for a text that is no day, and ConfigurationError for invalid settings.
    """
    prefix = tuple(filter(None, [key_prefix] if isinstance(key_prefix, str) else key_prefix))
    git_url = git_url or _repository()
    karmalake = Karmalake(read_settings, prefix, days_from(_first_day(read_settings, partitions_start)))
    all_jobs = jobs(karmalake)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # code references are in beta
        return dg.Definitions(
            assets=_linked(_assets(karmalake, git_url), git_url, git_branch),
            asset_checks=dg.load_asset_checks_from_modules([checks], prefix or None),
            jobs=all_jobs,
            schedules=schedules(karmalake, all_jobs),
            sensors=sensors(karmalake),
            resources={"karmalake": karmalake},
            executor=_EXECUTOR,
        )


def _repository() -> str | None:
    """Return the address of the repository, as installed from `project.urls` of pyproject.toml.

    None without one, and for hosts other than GitHub and GitLab: Dagster refuses to link to others.
    """
    urls = dict(url.split(", ", 1) for url in metadata("karmalake").get_all("Project-URL") or ())
    address = urls.get("Repository", "")
    return address if any(host in address for host in ("github", "gitlab")) else None


def _first_day(read_settings: Callable[[], Settings], start: date | str | None) -> date:
    if start is None:
        return _first_day_of_all(read_settings())
    try:
        return to_utc(start).date()
    except UsageError:
        raise UsageError(f"partitions_start must be a day like 2024-05-01, not {start!r}") from None


def _first_day_of_all(settings: Settings) -> date:
    """Return the first day that there is anything of, today at the latest; the earliest one if that is not known.

    A code location that fails when it is loaded starts nothing by its schedules until it is reloaded by hand.
    """
    today = datetime.now(UTC).date()
    try:
        return min(first_day(settings) or today, today)  # the first event may be ahead of time
    except Exception as error:
        if not is_transient(error):
            raise
        first = date.fromisoformat(str(DAYS.get_first_partition_key()))
        _LOG.warning("%s; until this code location is reloaded, assets by day have the days from %s on", error, first)
        return first


def _assets(karmalake: Karmalake, git_url: str | None) -> list[_Asset]:
    modules = [history, lake, scores, upkeep]
    prefix = karmalake.key_prefix or None
    loaded = dg.load_assets_from_modules(modules, key_prefix=prefix, source_key_prefix=prefix, include_specs=True)
    return [_described(asset, karmalake, git_url) for asset in loaded if isinstance(asset, _Asset)]


def _linked(assets: list[_Asset], git_url: str | None, git_branch: str) -> Sequence[Any]:
    """Return the assets with links to a repository instead of local files."""
    if git_url is None:
        return assets
    mapping = dg.AnchorBasedFilePathMapping(Path(__file__), "assets/definitions.py")
    return dg.link_code_references_to_git(assets, git_url, git_branch, mapping)


def _described(asset: _Asset, karmalake: Karmalake, git_url: str | None) -> _Asset:
    """Add the days and the owners of an asset, and links to its code and further reading."""
    name = asset.key.path[-1]
    pages = [_ROOT / _READ_MORE[name]] if name in _READ_MORE else []
    links: list[Any] = [_link(page) for page in pages if git_url or page.exists()]  # a wheel does not include them
    if isinstance(asset, dg.AssetsDefinition):
        compute = inspect.unwrap(cast("Any", asset.op.compute_fn).decorated_fn)
        links.append(_link(Path(inspect.getfile(compute)), compute.__code__.co_firstlineno))
    metadata = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=links)}
    days = None if asset.partitions_def is None else karmalake.days
    [described] = dg.map_asset_specs(
        lambda spec: spec.replace_attributes(owners=_OWNERS, partitions_def=days).merge_attributes(metadata=metadata),
        [asset],
    )
    return described


def _link(path: Path, line: int | None = None) -> dg.LocalFileCodeReference:
    label = path.relative_to(_ROOT).as_posix()
    return dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=label)


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of karmalake, by the settings of the process."""
    return build_defs()
