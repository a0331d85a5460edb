"""What the server of `kills.py` has imported before it forks a child, and compiled loops that numba has loaded."""

import numpy as np
import pyarrow.dataset

import pipelines.dead_letters
import pipelines.emit.relay
import pipelines.lake.upkeep
import pipelines.refresh
import tests.draining
from pipelines.lake import search

__all__ = ["pipelines", "pyarrow", "tests"]

# The first loop that is called loads all that numba needs for any: a second of work, and no thread.
_NOTHING = np.zeros(1, np.uint64)
search.find(_NOTHING, _NOTHING, _NOTHING, _NOTHING, np.zeros(1, np.int64))
