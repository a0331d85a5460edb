"""Load numba's runtime by calling a compiled loop: it takes a second, and starts no thread."""

import numpy as np

from pipelines.lake import search

_NOTHING = np.zeros(1, np.uint64)
search.find(_NOTHING, _NOTHING, _NOTHING, _NOTHING, np.zeros(1, np.int64))
