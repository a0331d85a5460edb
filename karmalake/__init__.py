"""karmalake as a library: the documented names, over the packages `pipelines` and `assets`.

    from karmalake import open_warehouse, read_reputation

`karmalake.outbox` is for services that emit events, `karmalake.dagster` for Dagster. In a checkout the two packages are
beside this one; an installation has them inside it, and takes no other name (`hatch_build.py`).
"""

from typing import TYPE_CHECKING, Any

import pipelines as _pipelines
from pipelines import __all__ as __all__
from pipelines import load_ipython_extension as load_ipython_extension

if TYPE_CHECKING:
    from pipelines import Warehouse as Warehouse
    from pipelines import open_warehouse as open_warehouse
    from pipelines import read_leaderboard as read_leaderboard
    from pipelines import read_rank as read_rank
    from pipelines import read_reputation as read_reputation


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_pipelines, name)
