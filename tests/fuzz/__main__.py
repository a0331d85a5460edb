"""`python -m tests.fuzz [TARGET ...] [--seconds N] [--folder PATH] [--replay FILE]`: see docs/fuzzing.md."""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.cli.output import print_line, print_table
from tests.fuzz.target import Target
from tests.fuzz.targets import NAMES, load

_REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDER = _REPOSITORY / "build" / "fuzz"
_CONCURRENT_CAMPAIGNS = 2
_BOUNDS_CHECKED_LOOPS = _FOLDER / "numba"
"""The cache of compiled loops with bounds checks, separate from the usual one."""
_ENDING_SECONDS = 900.0
"""Time allowed in addition to `seconds`: children that compile, seeds, minimization."""


def run(names: list[str], seconds: float, folder: Path, seed: int | None = None) -> list[dict[str, Any]]:
    """Run campaigns on targets, two at a time; return their reports. A missing report counts as a finding.

    With the same `seed` and an empty folder inputs start the same; None chooses a different seed each time.
    """
    seed = time.time_ns() if seed is None else seed
    shares = [names[start::_CONCURRENT_CAMPAIGNS] for start in range(_CONCURRENT_CAMPAIGNS)]
    with ThreadPoolExecutor(_CONCURRENT_CAMPAIGNS) as pool:
        found = pool.map(lambda share: _campaigns(share, seconds, folder, seed), filter(None, shares))
        reports = {report["target"]: report for share in found for report in share}
    return [reports[name] for name in names]


def _campaigns(names: list[str], seconds: float, folder: Path, seed: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.fuzz.campaign", str(seconds), str(folder.absolute()), str(seed), *names]
    limit = len(names) * (seconds + _ENDING_SECONDS)
    done = subprocess.run(
        command, cwd=_REPOSITORY, env=checked_environment(), capture_output=True, text=True, timeout=limit, check=False
    )
    reports = {report["target"]: report for report in map(json.loads, done.stdout.splitlines())}
    message = f"the campaign ended with {done.returncode}: {done.stderr[-1_000:]}"
    return [reports.get(name) or _missing_report(name, message) for name in names]


def _missing_report(name: str, message: str) -> dict[str, Any]:
    return {"target": name, "inputs": 0, "kept": 0, "children": 0, "findings": [message], "files": []}


def checked_environment() -> dict[str, str]:
    """Return an environment in which compiled loops check their bounds, without the caller's settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KARMALAKE_")}
    return inherited | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(_BOUNDS_CHECKED_LOOPS)}


def replay(target: Target, path: Path) -> None:
    """Check one input in this process, without limits: for a debugger."""
    try:
        print_line(target.check(path.read_bytes()))
    except target.refusals as error:
        print_line(f"refused by {type(error).__name__}: {error}")


def main() -> int:
    """Parse the arguments and run; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="a target; 0 runs only the kept inputs")
    parser.add_argument(
        "--seed", type=int, help="with the same seed and an empty folder inputs start the same; otherwise they differ"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=_FOLDER / "findings",
        help="where inputs are saved: those that fail, and those to resume from",
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check one input in this process")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(NAMES)
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if arguments.replay:
        replay(load(arguments.targets[0]), arguments.replay)
        return 0
    return print_reports(run(arguments.targets or list(NAMES), arguments.seconds, arguments.folder, arguments.seed))


def print_reports(reports: list[dict[str, Any]]) -> int:
    """Print the result of each target, and return the exit code."""
    print_table(
        ("target", "inputs", "kept", "children", "findings"),
        [(r["target"], r["inputs"], r["kept"], r["children"], len(r["findings"])) for r in reports],
    )
    for report in reports:
        for number, finding in enumerate(report["findings"]):
            place = report["files"][number] if number < len(report["files"]) else "no input"
            print_line(f"{report['target']}: {finding}\n    {place}")
    failed = sum(bool(report["findings"]) for report in reports)
    print_line(f"{len(reports) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
