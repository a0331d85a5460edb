"""karmalake: events of Kafka, each counted once, into a lake; scores derived, explained and served.

    from pipelines import open_warehouse, read_reputation

They are imported when they are first used, so that the command line starts quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.reputation.warehouse import Warehouse, open_warehouse
    from pipelines.serving.read import read_leaderboard, read_rank, read_reputation

__all__ = ["Warehouse", "open_warehouse", "read_leaderboard", "read_rank", "read_reputation"]

_HOMES = {
    "Warehouse": "pipelines.reputation.warehouse",
    "open_warehouse": "pipelines.reputation.warehouse",
    "read_leaderboard": "pipelines.serving.read",
    "read_rank": "pipelines.serving.read",
    "read_reputation": "pipelines.serving.read",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def load_ipython_extension(shell: Any) -> None:
    """Bring `%%karma` into a notebook that says `%load_ext pipelines`, and charts that need no network."""
    import_module("pipelines.reputation.magic").register(shell)
    import_module("pipelines.reputation.charts").draw_still()
