"""docs/trends.md agrees with the code: every trend with its parameters and columns, and the figures measured."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.trends import trends
from pipelines.reputation.warehouse import Warehouse
from tests.conftest import REPOSITORY
from tests.reputation.history import AS_OF, snapshot_of

PAGE = (REPOSITORY / "docs" / "trends.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    folder = tmp_path_factory.mktemp("page")
    derive(snapshot_of(folder), load_policy("default"), AS_OF, folder / "warehouse.duckdb")
    with Warehouse(folder / "warehouse.duckdb") as opened:
        yield opened


@pytest.mark.parametrize("name", trends())
def test_a_trend_has_its_section(name: str, warehouse: Warehouse) -> None:
    """The section lists exactly the columns, in their order, and names every parameter."""
    [section] = re.findall(rf"^### {name}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    columns = re.findall(r"`(\w+)`", section.split("Columns:")[1])
    assert columns == warehouse.trend(name).columns
    assert {parameter for parameter in trends()[name].parameters if f"`{parameter}`" not in section} <= {"fdr"}


def test_the_figures_are_those_measured() -> None:
    """Each row of the last measurement is on the page."""
    results = json.loads(Path(REPOSITORY, "benchmarks/results/anomalies.json").read_text(encoding="utf-8"))
    for row in results["rows"]:
        counts = (row["planted"], row["trend"], row["users"], row["named"], f"{row['recall']:.2f}")
        assert f"| {' | '.join(map(str, counts))} | {row['alarms']} | {row['right']} | {row['precision']:.2f} |" in PAGE
    for name, alarms in results["false_alarms"].items():
        assert f"| {name} | {' | '.join(map(str, alarms.values()))} |" in PAGE
    for name, counts in results["bitcoin_otc"].items():
        count = "none" if counts["alarms"] == 0 else f"{counts['alarms']} alarms"
        assert f"- `{name}`: {count}" in PAGE


def test_the_predictions_are_those_measured() -> None:
    """Each row of the last leave-one-out prediction is on the page, to the digits shown."""
    results = json.loads(Path(REPOSITORY, "benchmarks/results/fairness_goodness.json").read_text(encoding="utf-8"))
    for row in results["rows"]:
        assert f"| {row['predictor']} | {row['rmse']:.3f} | {row['pcc']:.3f} |" in PAGE
