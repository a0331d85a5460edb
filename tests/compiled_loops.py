"""Compile numba's loops once, before the processes of a run would each compile them, for half a minute.

`python -m tests.compiled_loops TARGET` runs a kept input of one target of the fuzzer.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pipelines.contract as compiled_code
from tests.fuzz.targets import load

_TARGETS = ("json", "protobuf", "batches", "ndjson")
"""Those that run the largest loops, the slowest first; each has a process, so that they use all cores."""


def compile_loops() -> None:
    """Compile them where numba has no cache beside the code: in a new checkout."""
    if any(Path(compiled_code.__path__[0], "__pycache__").glob("*.nbi")):
        return
    started = [subprocess.Popen([sys.executable, "-W", "ignore", "-m", __name__, name]) for name in _TARGETS]
    for process in started:
        process.wait()  # one that fails leaves its loops to the tests


def main() -> None:
    """Check the first kept input of a target; whether it is refused plays no part."""
    target = load(sys.argv[1])
    with suppress(*target.refusals):
        target.check(min((Path(__file__).parent / "fuzz" / "seeds" / sys.argv[1]).iterdir()).read_bytes())


if __name__ == "__main__":
    main()
