"""The footprint of karmalake: the size of its packages, the time and memory of its light commands."""

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from importlib.metadata import Distribution, distribution
from pathlib import Path
from tempfile import TemporaryFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.report import require_success, save_results
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.serving.client import connect
from pipelines.serving.keys import document_key
from pipelines.settings import Settings

_RUNS = 10
_LARGEST = 8
_COMMANDS = ("--version", "--help", "lag --help", "policy list", "show user-1", "doctor")


def run(folder: Path) -> None:
    """Measure the packages, then run each command several times with its files in the page cache."""
    sizes = {name: _bytes(package) for name, package in _dependencies("karmalake").items()}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_LARGEST]
    for name in largest:
        print(f"{name:>24} {sizes[name] / 1e6:7,.0f} MB")
    print(f"{len(sizes):>20} pkgs {sum(sizes.values()) / 1e6:7,.0f} MB, without extras and the dev group\n")
    settings = Settings(data_dir=folder)
    start(settings)
    try:
        _serve_a_document(with_local_endpoints(settings))
        rows = [(f"karmalake {command}", *_medians(command.split(), folder)) for command in _COMMANDS]
    finally:
        stop(settings)
    save_results(
        "footprint",
        ("command", "ms", "processor ms", "peak MB"),
        rows,
        "ms",
        runs=_RUNS,
        packages=len(sizes),
        packages_mb=round(sum(sizes.values()) / 1e6),
        largest_mb={name: round(sizes[name] / 1e6) for name in largest},
    )


def _serve_a_document(settings: Settings) -> None:
    """Store a document for `show`."""
    with closing(connect(settings.redis)) as client:
        client.set(document_key(settings.redis.prefix, "user-1"), json.dumps({"user_id": "user-1"}))


def _dependencies(name: str) -> dict[str, Distribution]:
    """Return a distribution and its dependencies on this platform, by name."""
    found: dict[str, Distribution] = {}
    pending = [(name, frozenset({""}))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        name, extras = pending.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        package = distribution(name)
        found[canonicalize_name(package.name)] = package
        for requirement in map(Requirement, package.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                pending.append((requirement.name, frozenset({"", *requirement.extras})))
    return found


def _bytes(package: Distribution) -> int:
    return sum(path.stat().st_size for file in package.files or () if (path := Path(str(file.locate()))).is_file())


def _medians(command: list[str], folder: Path) -> tuple[float, float, int]:
    runs = [_run(command, folder) for _ in range(_RUNS + 1)][1:]  # the first fills the page cache
    wall, processor, peak = map(statistics.median, zip(*runs, strict=True))
    return round(wall * 1000), round(processor * 1000), round(peak)


def _run(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Return wall time and CPU time in seconds, and peak memory in MB, of one run.

    Raises MeasurementError if the command fails: the time of an error is meaningless.
    """
    begun = time.monotonic()
    with (
        TemporaryFile() as output,
        subprocess.Popen(
            [Path(sys.executable).with_name("karmalake"), *command],
            cwd=folder,
            env=os.environ | {"KARMALAKE_DATA_DIR": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        require_success(f"karmalake {' '.join(command)}", process, output.read().decode(errors="replace"))
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000
