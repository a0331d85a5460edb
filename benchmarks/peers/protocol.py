"""The request and response of a peer; standard library only, because every peer imports it.

Imports and the start of a session are not timed; connecting, reading, dedup, writing and committing are. Peers do not
report rows: the benchmark counts them in the files.
"""

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
_TIMEOUT_SECONDS = 240


class PeerError(Exception):
    """A peer did not start, failed or took too long; the message ends with its last output."""


@dataclass(frozen=True, slots=True)
class Job:
    """Read `records` records of a topic, from the beginning to the end, and leave Parquet files in `folder`."""

    bootstrap_servers: str
    topic: str
    records: int
    folder: str
    format: str = "protobuf"
    sources: str = ""
    """A folder with one source file, which makes the events; otherwise they are in our own contract."""


def serve(work: Callable[[Job], dict[str, Any] | None], warm_up: Callable[[Job], None] | None = None) -> None:
    """Run the job from standard input; print its wall and processor time and its results as JSON."""
    job = Job(**json.loads(input()))
    if warm_up is not None:
        warm_up(job)
    begun, used = time.perf_counter(), cpu_seconds()
    results = work(job) or {}
    times = {"seconds": time.perf_counter() - begun, "cpu_seconds": cpu_seconds() - used}
    print(json.dumps(times | results), flush=True)


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def running_children_seconds() -> float:
    """Return the processor time so far of children of this process that run."""
    stats = (path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
    ticks = sum(int(stat[11]) + int(stat[12]) for stat in stats if int(stat[1]) == os.getpid())
    return ticks / os.sysconf("SC_CLK_TCK")


def ask(python: str, name: str, job: Job, log: Path) -> dict[str, Any]:
    """Run a peer on a job and return its answer; its standard error goes to `log`."""
    with log.open("w+", encoding="utf-8") as errors:
        try:
            done = subprocess.run(
                [python, "-m", f"benchmarks.peers.{name}"], input=json.dumps(asdict(job)) + "\n", text=True,
                stdout=subprocess.PIPE, stderr=errors, cwd=REPOSITORY, timeout=_TIMEOUT_SECONDS, check=True,
            )  # fmt: skip
            return json.loads(done.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, OSError, IndexError, ValueError) as error:
            errors.seek(0)
            raise PeerError(f"{name}: {error}: {' '.join(errors.read().split())[-300:]}") from error
