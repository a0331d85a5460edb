"""karmalake: events from Kafka, each counted once, into a lake; scores derived, explained and served.

    from pipelines import open_warehouse, read_reputation

Public names are imported on first use, so that the command line starts quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.reputation.warehouse import Warehouse, open_warehouse
    from pipelines.serving.read import read_leaderboard, read_rank, read_reputation

__all__ = ["Warehouse", "open_warehouse", "read_leaderboard", "read_rank", "read_reputation"]

_MODULES = {
    "Warehouse": "pipelines.reputation.warehouse",
    "open_warehouse": "pipelines.reputation.warehouse",
    "read_leaderboard": "pipelines.serving.read",
    "read_rank": "pipelines.serving.read",
    "read_reputation": "pipelines.serving.read",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def load_ipython_extension(shell: Any) -> None:
    """Register `%%karma`, and charts that need no network, in a notebook that runs `%load_ext pipelines`."""
    from pipelines.boundary.extras import require_extra  # noqa: PLC0415 - see the docstring of this module

    require_extra("notebooks", "charts in a notebook")
    import_module("pipelines.reputation.notebook_magic").register(shell)
    import_module("pipelines.reputation.charts").draw_still()
