"""The bar chart docs/images/ingest.svg of the last ingest measurement; `make docs` draws it from benchmarks/results."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS

IMAGE = Path("docs/images/ingest.svg")
_SHOWN = {
    "karmalake drain": "karmalake drain",
    "script: confluent-kafka, set, pyarrow": "a careful script",
    "Spark Structured Streaming to Delta": "Spark Structured Streaming",
    "Bytewax": "Bytewax",
    "Quix Streams": "Quix Streams",
}
_LEFT, _WIDTH, _ROW, _TOP = 220, 430, 30, 64
_STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #1f2328; }
    .title { font-weight: 600; }
    .small { font-size: 12px; fill: #57606a; }
    .ours { fill: #00796b; }
    .theirs { fill: #8c959f; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .small { fill: #9da7b1; }
      .ours { fill: #4db6ac; }
      .theirs { fill: #6e7681; }
    }
  """


def draw(result: dict[str, Any]) -> str:
    """Return the chart of a result of `python -m benchmarks ingest`."""
    speeds = {row["means"]: row["events/s"] for row in result["rows"]}
    bars = sorted(((speeds[means], name) for means, name in _SHOWN.items() if means in speeds), reverse=True)
    title = f"{result['bytes_per_record']}-byte events a second, from a topic to deduplicated Parquet"
    subtitle = f"one run of {result['date']}, broker and reader on the same {result['cores']} cores"
    height = _TOP + _ROW * len(bars) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 750 {height}" role="img">',
        f"  <title>{title}</title>",
        f"  <style>{_STYLE}</style>",
        f'  <text class="title" x="10" y="24">{title}</text>',
        f'  <text class="small" x="10" y="44">{subtitle}</text>',
    ]
    for place, (speed, name) in enumerate(bars):
        lines += _bar(_TOP + place * _ROW, name, speed, round(_WIDTH * speed / bars[0][0]))
    return "\n".join([*lines, "</svg>", ""])


def _bar(y: int, name: str, speed: int, width: int) -> list[str]:
    kind = "ours" if name.startswith("karmalake") else "theirs"
    return [
        f'  <text x="{_LEFT - 10}" y="{y + 16}" text-anchor="end">{name}</text>',
        f'  <rect class="{kind}" x="{_LEFT}" y="{y}" width="{max(1, width)}" height="22" rx="3"/>',
        f'  <text x="{_LEFT + width + 8}" y="{y + 16}">{speed:,}</text>',
    ]


def chart() -> str:
    """Return the chart of the last measurement."""
    return draw(json.loads((RESULTS / "ingest-small.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else IMAGE).write_text(chart(), encoding="utf-8")
