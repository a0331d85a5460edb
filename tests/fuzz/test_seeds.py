"""Earlier findings of fuzzing, and inputs from issues, have the right outcome (`not-blocked`)."""

from pathlib import Path

import pytest

from tests.fuzz.__main__ import run
from tests.fuzz.targets import NAMES
from tests.share import share


@pytest.mark.slow
@pytest.mark.timeout(1_800)  # a new machine compiles the loops with their bounds checked
def test_kept_inputs(tmp_path: Path) -> None:
    """All seeds of a sixth of the targets: neighbours are intact, bad values are errors, within memory and time limits.

    `make fuzz`, a part of `.ci/run`, begins with those of all targets.
    """
    reports = run([*share(NAMES, 6)], 0, tmp_path, seed=1)
    assert {report["target"]: report["findings"] for report in reports if report["findings"]} == {}
    assert all(report["inputs"] for report in reports)
