"""Reporting measurements: machine, versions and commit; printing and saving results."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_BAR_WIDTH = 50
_PACKAGES = ("deltalake", "duckdb", "kafka-python", "polars", "pyarrow", "redis")


class MeasurementError(RuntimeError):
    """The measured work failed or was incomplete: there is no result to report."""


def require_success(what: str, process: subprocess.Popen[Any], output: str = "") -> None:
    """Raise MeasurementError with the end of `output` unless a finished process succeeded."""
    if process.returncode:
        raise MeasurementError(f"{what} ended with {process.returncode}: {' '.join(output.split())[-300:]}")


def require_count(what: str, found: int, expected: int) -> None:
    """Raise MeasurementError unless the work was complete."""
    if found != expected:
        raise MeasurementError(f"{what}: {found:,} instead of {expected:,}")


def environment() -> dict[str, Any]:
    """Return the date, machine, versions and commit of a measurement."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in _PACKAGES},
        "commit": commit,
    }


def _processor() -> str:
    """Return the model of the processor as Linux names it; elsewhere as Python does."""
    described = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", described.read_text(), re.MULTILINE) if described.exists() else None
    return found[1] if found else platform.processor()


def save_results(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], bars: str, **extra: Any) -> None:
    """Print rows as a table and the column `bars` as a chart; write them to `results/{name}.json` with `extra`."""
    shown = [[_text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *shown, strict=True)]
    for line in (columns, *shown):
        print("  ".join(value.rjust(width) for value, width in zip(line, widths, strict=True)))
    _draw(bars, [str(row[0]) for row in rows], [row[columns.index(bars)] for row in rows])
    RESULTS.mkdir(exist_ok=True)
    result = {**environment(), **extra, "rows": [dict(zip(columns, row, strict=True)) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _draw(measure: str, names: Sequence[str], values: Sequence[float]) -> None:
    print(f"\n{measure}")
    for name, value in zip(names, values, strict=True):
        bar = "#" * max(1, round(_BAR_WIDTH * value / max(values)))
        print(f"{name.rjust(max(map(len, names)))} {bar} {_text(value)}")


def _text(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
