"""Loads what numba needs for any compiled loop, by calling one: a second of work, and no thread."""

import numpy as np

from pipelines.lake import search

_NOTHING = np.zeros(1, np.uint64)
search.find(_NOTHING, _NOTHING, _NOTHING, _NOTHING, np.zeros(1, np.int64))
