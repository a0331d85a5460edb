"""End-to-end latency, as `freshness` measures it, with ten times the users and events: a history of 50 million.

Preparing takes most of the time: two lakes are filled, derived and served.
"""

from pathlib import Path

from benchmarks.freshness import COLUMNS, Case, measure
from benchmarks.report import save_results


def run(folder: Path) -> None:
    """Measure the default policy at one rate on two lakes."""
    cases = (Case(users=1_000_000, events=5_000_000), Case(users=10_000_000, events=50_000_000))
    rows = [row for case in cases for row in measure(folder / str(case.users), case, (1_000,))]
    save_results("freshness_users", COLUMNS, rows, "p50")
