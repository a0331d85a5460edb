"""Each notebook runs from top to bottom on a small lake of the simulator's, without a warning."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import produce_records
from pipelines.emit.simulator import simulate
from pipelines.emit.topics import ensure_topic
from pipelines.refresh import rebuild_warehouse
from pipelines.settings import Settings
from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture
def beside_data(settings: Settings) -> Path:
    """Return an empty folder whose neighbour `data` holds a derived lake, as in the repository after the demo."""
    ensure_topic(settings.kafka)
    produce_records(settings.kafka, simulate(1, 3_000, days=30).records)
    with open_ingest(settings) as ingest:
        drain(ingest, lambda _: None)
    rebuild_warehouse(settings)
    folder = settings.data_dir.parent / "notebooks"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, beside_data: Path) -> None:
    """Every cell runs; nothing is written to standard error, where warnings would be."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(beside_data)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert [output for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path: Path) -> None:
    """What a run leaves, such as outputs and execution counts, is not kept: it would be stale on the next change."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
