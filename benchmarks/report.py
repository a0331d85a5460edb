"""What every measurement says of itself: machine, versions, commit; and how it is shown and kept."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("deltalake", "duckdb", "kafka-python", "polars", "pyarrow", "redis")


def circumstances() -> dict[str, Any]:
    """Return where and with what a measurement was made."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in _PACKAGES},
        "commit": commit,
    }


def keep(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], **told: Any) -> None:
    """Print rows as a table and write them with their circumstances to `results/{name}.json`."""
    shown = [[_text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *shown, strict=True)]
    for line in (columns, *shown):
        print("  ".join(value.rjust(width) for value, width in zip(line, widths, strict=True)))
    RESULTS.mkdir(exist_ok=True)
    result = {**circumstances(), **told, "rows": [dict(zip(columns, row, strict=True)) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def plot(name: str, measure: str, values: Mapping[str, float]) -> None:
    """Draw one bar for each name, in their order, into `results/{name}.html`."""
    data = alt.InlineData([{"what": what, measure: value} for what, value in values.items()])
    bars = alt.Chart(data, title=name).mark_bar().encode(alt.X(f"{measure}:Q"), alt.Y("what:N", sort=None, title=None))
    RESULTS.mkdir(exist_ok=True)
    (bars + bars.mark_text(align="left", dx=3).encode(text=alt.Text(f"{measure}:Q", format=","))).save(
        RESULTS / f"{name}.html"
    )


def _text(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
