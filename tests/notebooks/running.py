"""Run the notebooks on a small, fixed version of the demo's data, the source of their committed outputs.

`python -m tests.notebooks` runs them and saves the outputs.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from pipelines.bus.topics import ensure_topic
from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import produce_records
from pipelines.lake.tables import open_lake
from pipelines.refresh import rebuild_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.notebook_progress import PROGRESS
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import Settings
from pipelines.simulate.simulator import simulate
from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
_SEED, _EVENTS = 1, 20_000
_END = datetime(2026, 6, 30, 12, tzinfo=UTC)  # in the middle of a day, like the demo's
_TIMEOUT_SECONDS = 120


def make_world(settings: Settings) -> Path:
    """Fill a lake as `make demo` does, with the faults of a bus; return a folder beside it for the notebooks."""
    ensure_topic(settings.kafka)
    produce_records(settings.kafka, simulate(_SEED, _EVENTS, end=_END).records)
    with open_ingest(settings) as ingest:
        drain(ingest, lambda _: None)
    activate(open_lake(settings.lake_root), load_policy("levels-by-city"))
    rebuild_warehouse(settings, _END)
    folder = settings.data_dir.parent / "notebooks"
    folder.mkdir()
    return folder


def run(path: Path, folder: Path) -> Any:
    """Return a notebook with the outputs of a run from top to bottom, without progress messages."""
    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": _TIMEOUT_SECONDS, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # independent of the Python version
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("metadata") != PROGRESS]
    return notebook
