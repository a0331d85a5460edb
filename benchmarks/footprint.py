"""The footprint: packages, the time and memory of light commands, and the memory of an idle `stream`."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from importlib.metadata import Distribution, distribution
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import httpx
import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.report import MeasurementError, require_success, save_results
from pipelines.bus.topics import ensure_topic
from pipelines.local.process import wait_until
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.serving.client import connect
from pipelines.serving.keys import document_key
from pipelines.settings import Settings

_RUNS = 10
_LARGEST = 8
_INSTALLATIONS = {"core": "karmalake", "demo": "karmalake[all]"}
_IDLE_SECONDS = 60
_READY_SECONDS = 120
_COMMANDS = ("--version", "--help", "lag --help", "policy list", "show user-1", "doctor")


def run(folder: Path) -> None:
    """Measure the packages, then run each command several times with its files in the page cache, then `stream`."""
    packages = {name: _installation(requirement) for name, requirement in _INSTALLATIONS.items()}
    settings = Settings(data_dir=folder)
    start(settings)
    try:
        local = with_local_endpoints(settings)
        _serve_a_document(local)
        rows = [(f"karmalake {command}", *_medians(command.split(), folder)) for command in _COMMANDS]
        ensure_topic(local.kafka)
        idle_mb = _idle_stream_mb(folder)
    finally:
        stop(settings)
    save_results(
        "footprint",
        ("command", "ms", "processor ms", "peak MB"),
        rows,
        "ms",
        runs=_RUNS,
        packages=packages,
        idle_stream_mb=idle_mb,
    )


def _installation(requirement: str) -> dict[str, Any]:
    """Return number and MB of the packages that a requirement installs, and the largest of them."""
    parsed = Requirement(requirement)
    sizes = {name: _bytes(package) for name, package in dependencies(parsed.name, parsed.extras).items()}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_LARGEST]
    total = round(sum(sizes.values()) / 1e6)
    print(f"{requirement}: {len(sizes)} packages, {total:,} MB; largest: {', '.join(largest)}")
    return {"number": len(sizes), "mb": total, "largest_mb": {name: round(sizes[name] / 1e6) for name in largest}}


def _idle_stream_mb(folder: Path) -> int:
    """Return the resident memory of `karmalake stream` on an empty topic, a minute after it is ready."""
    program = [Path(sys.executable).with_name("karmalake"), "stream", "--metrics-port", "0"]
    environment = os.environ | {"KARMALAKE_DATA_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(program, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = _metrics_address(process)
            if not wait_until(lambda: httpx.get(address.replace("/metrics", "/readyz")).is_success, _READY_SECONDS):
                raise MeasurementError(f"karmalake stream was not ready within {_READY_SECONDS} s")
            time.sleep(_IDLE_SECONDS)
            return round(psutil.Process(process.pid).memory_info().rss / 1e6)
        finally:
            process.terminate()


def _metrics_address(process: "subprocess.Popen[str]") -> str:
    for line in process.stdout or ():
        if found := re.search(r"http://[^ ]+/metrics", line):
            return found[0]
    raise MeasurementError("karmalake stream ended before it served metrics")


def _serve_a_document(settings: Settings) -> None:
    """Store a document for `show`."""
    with closing(connect(settings.redis)) as client:
        client.set(document_key(settings.redis.prefix, "user-1"), json.dumps({"user_id": "user-1"}))


def dependencies(name: str, extras: Iterable[str]) -> dict[str, Distribution]:
    """Return a distribution and its dependencies on this platform, by name."""
    found: dict[str, Distribution] = {}
    pending = [(name, frozenset({"", *extras}))]
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
    """Return the size of the files of a package, without those that Python compiles."""
    files = [Path(str(file.locate())) for file in package.files or () if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in files if path.is_file())


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
