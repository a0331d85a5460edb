"""Earlier findings of fuzzing, and inputs from issues, have the right outcome (`not-blocked`)."""

import os
from pathlib import Path

import pytest

from tests.fuzz.__main__ import run
from tests.fuzz.targets import NAMES
from tests.share import share


@pytest.mark.slow
@pytest.mark.timeout(1_800)  # a new machine compiles the loops with their bounds checked
def test_kept_inputs(tmp_path: Path) -> None:
    """All seeds of all targets: valid neighbours are intact, bad values are errors, within memory and time limits.

    FUZZ_SECONDS=60, as in CI, adds a campaign of a minute to a sixth of the targets, another sixth every day, and one
    of 5 seconds, a twelfth of it, to the others. Its inputs start the same each time.
    """
    seconds = float(os.environ.get("FUZZ_SECONDS", "0"))
    long = share(NAMES, 6)
    short = [name for name in NAMES if name not in long]
    reports = run([*long], seconds, tmp_path, seed=1) + run(short, seconds / 12, tmp_path, seed=1)
    assert {report["target"]: report["findings"] for report in reports if report["findings"]} == {}
    assert all(report["inputs"] for report in reports)
