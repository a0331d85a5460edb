"""Dagster's door: `dagster-webserver --module-name karmalake.dagster`, or `build_defs` in a code location of yours."""

from assets.definitions import build_defs, defs
from assets.launcher import WatchedRunLauncher

__all__ = ["WatchedRunLauncher", "build_defs", "defs"]
