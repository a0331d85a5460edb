"""The nightly report of docs/notebooks.md: its code is run as it stands, in Dagster, on a small warehouse."""

import re
import runpy
from pathlib import Path
from unittest import mock

import dagster as dg
import nbformat
import pytest
from dagster._core.workspace.autodiscovery import loadable_targets_from_python_file  # what `-f FILE` loads

from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from tests.conftest import REPOSITORY
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of

_PAGE = (REPOSITORY / "docs" / "notebooks.md").read_text(encoding="utf-8")
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
_CELLS = (
    "%load_ext karmalake\nfrom karmalake import open_warehouse\nwarehouse = open_warehouse(data_dir)",
    "warehouse.reputation()",
    'warehouse.plot.trend("activity")',
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the two files of the report; the warehouse is elsewhere, as the settings say."""
    data = tmp_path / "data"
    events = [Event("a", "ann", "DriverRated", NOW - 3 * DAY, {"rating": "5"})]
    derive(snapshot_of(data / "lake", events), load_policy("default"), AS_OF, data / "warehouse.duckdb")
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(data))
    folder = tmp_path / "report"
    folder.mkdir()
    (code,) = (code for code in _CODE.findall(_PAGE) if "nightly_report" in code)
    (folder / "report.py").write_text(code, encoding="utf-8")
    return folder


def _write_notebook(folder: Path, *cells: str) -> None:
    parameters = nbformat.v4.new_code_cell('data_dir = "data"', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    code = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), folder / "report.ipynb")


def test_the_report_is_mailed_as_an_attachment(tmp_path: Path) -> None:
    """The function of the page sends one message, from and to the given addresses, with the whole page."""
    (code,) = (code for code in _CODE.findall(_PAGE) if "smtplib" in code)
    (tmp_path / "mail.py").write_text(f"from pathlib import Path\n{code}", encoding="utf-8")
    page = tmp_path / "report.html"
    page.write_text("<p>Ada: 16 ★</p>", encoding="utf-8")
    with mock.patch("smtplib.SMTP") as smtp:
        runpy.run_path(str(tmp_path / "mail.py"))["mail"](page, "smtp.example.com", "us@example.com", "me@example.com")
    smtp.assert_called_once_with("smtp.example.com")
    (message,) = smtp.return_value.__enter__.return_value.send_message.call_args.args
    assert (message["From"], message["To"]) == ("us@example.com", "me@example.com")
    (attached,) = message.iter_attachments()
    assert attached.get_filename() == "report.html"
    assert attached.get_payload(decode=True) == page.read_bytes()


def test_dagster_loads_every_file_of_definitions_of_the_docs(tmp_path: Path) -> None:
    """Each is loaded as by `dagster dev -f`, which refuses a module with more than one object of definitions."""
    pages = (page.read_text(encoding="utf-8") for page in sorted((REPOSITORY / "docs").glob("*.md")))
    recipes = [code for page in pages for code in _CODE.findall(page) if "dg.Definitions" in code]
    assert len(recipes) > 1
    for number, code in enumerate(recipes):
        (tmp_path / f"recipe_{number}.py").write_text(code, encoding="utf-8")
        (target,) = loadable_targets_from_python_file(str(tmp_path / f"recipe_{number}.py"))
        assert target.attribute == "defs"


@pytest.mark.slow
def test_the_report_is_a_page_with_charts(folder: Path) -> None:
    """The asset runs the notebook on the warehouse of the settings; the page has tables and images, but no code."""
    _write_notebook(folder, *_CELLS)
    made = runpy.run_path(str(folder / "report.py"))
    result = dg.materialize([made["nightly_report"]])
    assert result.success
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "data:image/svg+xml;base64," in page
    assert "ann" in page
    assert "open_warehouse" not in page
    _is_scheduled(made["defs"])


def _is_scheduled(defs: dg.Definitions) -> None:
    """Check that Dagster loads it beside the other assets, runs it nightly, and knows what it depends on."""
    repository = defs.get_repository_def()
    assert repository.get_schedule_def("every_night").cron_schedule == "0 6 * * *"
    parents = repository.asset_graph.get(dg.AssetKey("nightly_report")).parent_keys
    assert parents == {dg.AssetKey("reputation")}
    assert repository.asset_graph.get(dg.AssetKey("reputation")).is_materializable


@pytest.mark.slow
def test_a_cell_that_fails_fails_the_run(folder: Path) -> None:
    """The notebook with the error stays, and no page is written."""
    _write_notebook(folder, _CELLS[0], "warehouse.sql('FROM nothing')")
    made = runpy.run_path(str(folder / "report.py"))
    assert not dg.materialize([made["nightly_report"]], raise_on_error=False).success
    assert "Table with name nothing does not exist" in (folder / "report.ran.ipynb").read_text(encoding="utf-8")
    assert not (folder / "report.html").exists()
