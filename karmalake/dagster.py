"""Dagster's door: what `karmalake dagster` shows, and `build_defs` for a code location of yours."""

from assets.definitions import build_defs, defs
from assets.launcher import WatchedRunLauncher

__all__ = ["WatchedRunLauncher", "build_defs", "defs"]
