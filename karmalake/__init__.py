"""karmalake as a library: the documented names, over the packages `pipelines` and `assets`.

    from karmalake import open_warehouse, read_reputation

Names are imported on first use, so that the command line starts quickly. In a checkout the two packages are beside this
one; an installation has them inside it, and takes no other name (`hatch_build.py`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.backfill import backfill
    from pipelines.contract.time_like import TimeLike, to_utc
    from pipelines.mapping.source_files import read_source
    from pipelines.operate.loads import list_loads, preview_withdrawal, withdraw_loads
    from pipelines.reputation.as_of import AsOf
    from pipelines.reputation.explain import explain, explain_change
    from pipelines.reputation.policy import Policy
    from pipelines.reputation.policy_file import load_policy, parse_policy, shipped_policies
    from pipelines.reputation.shown import Shown, ShownChange, explain_shown
    from pipelines.reputation.warehouse import Warehouse, open_warehouse
    from pipelines.reputation.warehouse_file import Info
    from pipelines.serving.read import (
        LeaderboardEntry,
        PublishedInfo,
        published,
        read_leaderboard,
        read_rank,
        read_reputation,
    )
    from pipelines.settings import Settings, load_settings
    from pipelines.sources.files import ColumnMapping
    from pipelines.sources.options import ReadOptions

__all__ = [
    "AsOf",
    "ColumnMapping",
    "Info",
    "LeaderboardEntry",
    "Policy",
    "PublishedInfo",
    "ReadOptions",
    "Settings",
    "Shown",
    "ShownChange",
    "TimeLike",
    "Warehouse",
    "backfill",
    "explain",
    "explain_change",
    "explain_shown",
    "list_loads",
    "load_policy",
    "load_settings",
    "open_warehouse",
    "parse_policy",
    "preview_withdrawal",
    "published",
    "read_leaderboard",
    "read_rank",
    "read_reputation",
    "read_source",
    "shipped_policies",
    "to_utc",
    "withdraw_loads",
]

_MODULES = {
    "pipelines.backfill": ("backfill",),
    "pipelines.contract.time_like": ("TimeLike", "to_utc"),
    "pipelines.mapping.source_files": ("read_source",),
    "pipelines.operate.loads": ("list_loads", "preview_withdrawal", "withdraw_loads"),
    "pipelines.reputation.explain": ("explain", "explain_change"),
    "pipelines.reputation.policy": ("Policy",),
    "pipelines.reputation.policy_file": ("load_policy", "parse_policy", "shipped_policies"),
    "pipelines.reputation.shown": ("Shown", "ShownChange", "explain_shown"),
    "pipelines.reputation.as_of": ("AsOf",),
    "pipelines.reputation.warehouse": ("Warehouse", "open_warehouse"),
    "pipelines.reputation.warehouse_file": ("Info",),
    "pipelines.serving.read": (
        "LeaderboardEntry",
        "PublishedInfo",
        "published",
        "read_leaderboard",
        "read_rank",
        "read_reputation",
    ),
    "pipelines.settings": ("Settings", "load_settings"),
    "pipelines.sources.files": ("ColumnMapping",),
    "pipelines.sources.options": ("ReadOptions",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """Register `%%karma`, and charts that need no network, in a notebook that runs `%load_ext karmalake`."""
    from pipelines.boundary.extras import require_extra  # noqa: PLC0415 - see the docstring of this module

    require_extra("notebooks", "charts in a notebook")
    import_module("pipelines.reputation.notebook_magic").register(shell)
    import_module("pipelines.reputation.charts").draw_still()
