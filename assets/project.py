"""What `dg` loads in a checkout: our definitions, and what `dg scaffold defs` wrote to the folder `assets/defs`."""

from pathlib import Path

import dagster as dg

from assets.definitions import build_defs


@dg.definitions
def project() -> dg.Definitions:
    """Return our definitions and those of the folder."""
    return dg.Definitions.merge(build_defs(), dg.load_from_defs_folder(path_within_project=Path(__file__).parent))
