"""`python -m benchmarks NAME...`: run the named benchmarks; without a name, list them."""

import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef run(folder: Path)" in path.read_text()
)


def main(names: list[str]) -> None:
    """Run the named benchmarks, each in a temporary folder."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        sys.exit(f"usage: python -m benchmarks NAME...; names: {', '.join(NAMES)}")
    for name in names:
        print(f"\n{name}: {import_module(f'benchmarks.{name}').__doc__}")
        with TemporaryDirectory(prefix="karmalake-bench-") as folder:
            import_module(f"benchmarks.{name}").run(Path(folder))


main(sys.argv[1:])
