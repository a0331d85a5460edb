"""Run the notebooks and save their outputs: `make notebooks`."""

import tempfile
from pathlib import Path

import nbformat

from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.settings import Settings
from tests.notebooks.running import NOTEBOOKS, make_world, run


def main() -> None:
    """Create the simulated world in a temporary folder; update each notebook in place."""
    with tempfile.TemporaryDirectory() as scratch:
        bare = Settings(data_dir=Path(scratch) / "data")
        start(bare)
        try:
            folder = make_world(with_local_endpoints(bare))
            for path in NOTEBOOKS:
                nbformat.write(run(path, folder), path)
        finally:
            stop(bare)


main()
