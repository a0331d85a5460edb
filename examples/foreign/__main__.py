"""`make demo-sources`: bring in four topics that others designed, under kills, and compare the lake with the books."""

import argparse
import sys
import tempfile
from pathlib import Path

from examples.foreign.demo import bring_in
from pipelines.cli.output import print_line


def main() -> None:
    """Run the demo; exit with 1 if anything disagrees."""
    parser = argparse.ArgumentParser(prog="python -m examples.foreign", description="Run the demo of sources.")
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="kill the ingest N times (default: 5)")
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory(prefix="karmalake-sources-") as folder:
        problems = bring_in(Path(folder), kills)
    print_line("\n".join(problems) or "the lake has what the books have, each event once; verify and audit pass")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
