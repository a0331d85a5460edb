"""Processor time per event of a backfill from each format of file, beside a drain of the same events from the bus.

It is not wall time, so that neither the broker nor other load on the machine counts.
"""

from collections.abc import Callable
from pathlib import Path

from benchmarks.backfill import backfill_file, drain_bus, filled_bus, write_files
from benchmarks.peers.protocol import cpu_seconds
from benchmarks.report import save_results

_ROWS, _ROUNDS = 500_000, 2


def run(folder: Path) -> None:
    """Load one history of a single day in every way, by turns; the least time of each way counts."""
    files = write_files(folder, _ROWS)
    used: dict[str, float] = {}
    with filled_bus(folder / "bus", files["parquet"]) as (settings, _):
        for number in range(_ROUNDS):
            drained = settings.model_copy(update={"data_dir": folder / f"drained-{number}"})
            _measure(used, "bus: drain", lambda to=drained: drain_bus(to, _ROWS))
            for ending, path in files.items():
                to = folder / f"{ending}-{number}"
                _measure(used, f"backfill, {ending}", lambda to=to, path=path: backfill_file(to, path, _ROWS))
    drain_us = used["bus: drain"]
    rows = [(way, us, drain_us / us) for way, us in used.items()]
    save_results("file_formats", ("way", "us", "times the drain"), rows, "us", events=_ROWS)


def _measure(used: dict[str, float], way: str, work: Callable[[], float]) -> None:
    """Set the microseconds of the processor per event, if they are the least so far."""
    begun = cpu_seconds()
    work()
    used[way] = min(used.get(way, float("inf")), (cpu_seconds() - begun) / _ROWS * 1e6)
