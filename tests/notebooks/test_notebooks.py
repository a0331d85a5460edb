"""Each notebook runs from top to bottom on the demo's data and reproduces its committed outputs."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pipelines.settings import Settings
from pipelines.simulate.story import BOMBED_USER
from tests.conftest import REPOSITORY
from tests.notebooks.running import NOTEBOOKS, make_bare_world, make_world, run, run_in_turn
from tests.share import share

_MAX_BYTES = 200_000
_MACHINE_PATH = re.compile(r"(?<![\w.<])/(?:home|root|tmp|usr|Users|private|var|work)/|127\.0\.0\.1")


@pytest.fixture(scope="module")
def notebook_folder(local_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder beside `data`, which holds a derived lake, as in the repository after the demo."""
    data = tmp_path_factory.mktemp("notebooks") / "data"
    kafka = local_settings.kafka.model_copy(update={"topic": "notebooks"})
    return make_world(local_settings.model_copy(update={"data_dir": data, "kafka": kafka}))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_reproduces_its_committed_outputs(path: Path, notebook_folder: Path) -> None:
    """Every cell runs, and its output equals the committed one; `make notebooks` updates them.

    Nothing is written to standard error, where warnings would be. Times are shown in UTC in every time zone.
    """
    shown = _outputs(run(path, notebook_folder, zone="Pacific/Kiritimati"))
    assert [output for outputs in shown for output in outputs if output.get("name") == "stderr"] == []
    assert shown == _outputs(nbformat.read(path, as_version=4))


_LACKING = [
    pytest.param(
        (),
        {"01": "has no events yet", "02": "no events of user", "03": "events of the demo", "04": "has no two"},
        id="no event",
    ),
    pytest.param(
        ("ann,2026-06-29T10:00:00Z,5",),
        {"03": "events of the demo", "04": "has no two DriverRated of 2026-06-23"},
        id="one event",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("ratings", "stopped"), share(_LACKING, 2))
def test_says_what_a_lake_lacks(ratings: tuple[str, ...], stopped: dict[str, str], tmp_path: Path) -> None:
    """On a lake with hardly any events, a notebook ends with a sentence about that, or shows what there is."""
    for name, errors in run_in_turn(NOTEBOOKS, make_bare_world(tmp_path, *ratings), user_id="ann").items():
        sentence = stopped.get(name[:2])
        assert len(errors) == bool(sentence), (name, errors)
        assert all(re.match(rf"(Usage|Karmalake)Error: .*{sentence}", error) for error in errors), errors


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_contains_no_trace_of_a_machine(path: Path) -> None:
    """It is small, run from top to bottom, without errors, and without paths or addresses of a machine."""
    text = path.read_text(encoding="utf-8")
    assert len(text) < _MAX_BYTES
    assert _MACHINE_PATH.findall(text) == []
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_begins_with_parameters(path: Path) -> None:
    """The first cell of code has the tag of papermill, alone, and assigns constants; all of them are used."""
    first, *others = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert first.metadata.get("tags") == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    for assigned in ast.parse(first.source).body:
        assert isinstance(assigned, ast.Assign)
        assert ast.literal_eval(assigned.value) is not None
        (name,) = map(ast.unparse, assigned.targets)
        assert any(re.search(rf"\b{name}\b", cell.source) for cell in others)
    assert "data_dir" in first.source
    assert not any("../data" in cell.source for cell in others)


def test_the_command_of_papermill_asks_for_a_user_of_the_demo() -> None:
    """The command of docs/notebooks.md sets a parameter of its notebook, to a user that `make demo` makes."""
    page = (REPOSITORY / "docs" / "notebooks.md").read_text(encoding="utf-8")
    ((path, name, value),) = re.findall(r"\$ papermill (\S+) \S+ --cwd notebooks -p (\S+) (\S+)", page)
    cells = nbformat.read(REPOSITORY / path, as_version=4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert re.search(rf"^{name} = ", first.source, re.MULTILINE)
    assert value == BOMBED_USER


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_questions_and_ends_with_one(path: Path) -> None:
    """It lists its questions, shows a chart whose title is a finding, and ends with an exercise that checks itself."""
    cells = nbformat.read(path, as_version=4).cells
    assert "what this notebook answers" in cells[0].source.lower()
    headings = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert [line for line in headings if line.startswith("## ")][-1] == "## Your turn"
    assert "no answer yet" in json.dumps(cells[-3:])
    charts = [cell for cell in cells if "alt.Chart" in cell.source]
    assert charts
    assert all(re.search(r"title=(alt\.Title\(\s*)?f(\"|inding)", cell.source) for cell in charts)


def _outputs(notebook: Any) -> list[list[dict[str, Any]]]:
    return [
        [{name: value for name, value in output.items() if name != "execution_count"} for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
