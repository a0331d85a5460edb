"""Run the notebooks on a small, fixed version of the demo's data, the source of their committed outputs.

`python -m tests.notebooks` runs them and saves the outputs.
"""

import os
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from pipelines.backfill import backfill
from pipelines.bus.topics import ensure_topic
from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import produce_records
from pipelines.lake.tables import create_lake, open_lake
from pipelines.refresh import rebuild_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.notebook_progress import PROGRESS
from pipelines.reputation.policy_file import load_policy
from pipelines.settings import Settings
from pipelines.simulate.simulator import simulate
from pipelines.sources.files import ColumnMapping
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


def make_bare_world(folder: Path, *ratings: str) -> Path:
    """Derive a lake of some ratings, such as `ann,2026-06-29T10:00:00Z,5`; return a folder beside it."""
    settings = Settings(data_dir=folder / "data")
    create_lake(settings.lake_root)
    if ratings:
        history = folder / "history.csv"
        history.write_text("\n".join(("rated,at,stars", *ratings, "")))
        mapping = ColumnMapping("rated", "at", "iso", action_type="DriverRated", metadata=(("rating", "stars"),))
        backfill(settings, history, mapping, lambda _: None)
    rebuild_warehouse(settings, _END)
    (folder / "notebooks").mkdir()
    return folder / "notebooks"


def run(path: Path, folder: Path, zone: str = "UTC") -> Any:
    """Return a notebook with the outputs of a run from top to bottom, without progress messages.

    zone: the time zone of its machine.
    """
    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": _TIMEOUT_SECONDS, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute(
        env=os.environ | {"TZ": zone}
    )
    notebook.metadata["language_info"] = {"name": "python"}  # independent of the Python version
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("metadata") != PROGRESS]
    return notebook


def run_in_turn(paths: list[Path], folder: Path, **parameters: str) -> dict[str, list[str]]:
    """Return the first error of each notebook, as its type and sentence; they share a kernel, to save time.

    Parameters replace those of any notebook. What comes after its first error, or starts services, is not looked at.
    """
    notebook = nbformat.v4.new_notebook()
    for path in paths:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        begun = list(takewhile(lambda cell: "open_ingest" not in cell.source, cells))
        given = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in parameters.items()))
        reset = nbformat.v4.new_code_cell("%reset -f")
        for cell in (reset, begun[0], given, *begun[1:]):
            notebook.cells.append(nbformat.v4.new_code_cell(cell.source, metadata={"notebook": path.stem}))
    options = {"timeout": _TIMEOUT_SECONDS, "allow_errors": True}
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()
    found = {path.stem: list[str]() for path in paths}
    for cell in notebook.cells:
        errors = [f"{output.ename}: {output.evalue}" for output in cell.outputs if output.output_type == "error"]
        found[cell.metadata["notebook"]] += errors
    return {name: errors[:1] for name, errors in found.items()}
