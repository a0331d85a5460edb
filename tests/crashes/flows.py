"""The flows of the crash matrix, and the simulated world that they work on.

The work of a flow runs in a child process and is killed there. The recovery runs in the test and does what an operator
would: start the work again. Nothing is random or depends on the time, so the results are compared for equality.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.emit.producer import Record
from pipelines.lake.tables import is_lake
from pipelines.serving.client import connect
from pipelines.serving.keys import key_pattern
from pipelines.settings import Settings
from pipelines.simulate.simulator import FaultRates, simulate
from tests.crashes.kills import Moment, kill
from tests.draining import LAKE, answers, assert_verified

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_FAULTS = FaultRates(duplicates=0.1, conflicts=0.03, mis_keyed=0.01, malformed=0.05)
_PARTS = 3
_COMMITS = "SELECT * EXCLUDE (batch_id, version, started, committed) FROM commits ORDER BY commits.version"
Work = Callable[[Settings], object]


def lake(settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything that a reader of the lake sees, including the commits."""
    return answers(settings, LAKE | {"commits": _COMMITS})


def verified(settings: Settings) -> None:
    """Assert that the lake, if it exists yet, reconciles."""
    if is_lake(settings.lake_root):
        assert_verified(settings)


def files_and_keys(settings: Settings) -> str:
    """Return a digest of all files and Redis keys; a draft is deleted unread, so only its name counts."""
    digest = hashlib.blake2b()
    for path in sorted(settings.data_dir.rglob("*")):
        digest.update(f"{path}\0".encode())
        with suppress(IsADirectoryError, FileNotFoundError):  # another thread may remove it
            digest.update(b"" if ".draft" in path.suffixes else path.read_bytes())
    with connect(settings.redis) as client:
        for key in sorted(client.scan_iter(key_pattern(settings.redis.prefix))):
            digest.update(key + client.dump(key))
    return digest.hexdigest()


def unknown(_: Settings) -> str:
    """Return a digest that no other moment has, for flows that store what only a broker knows."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Flow:
    """A piece of work that may be killed at any of its steps."""

    work: Work
    """What is killed."""
    steps: Mapping[str, int]
    """Functions, and the number of calls of each to kill, before and after."""
    prepare: Work = field(default=lambda _: None)
    """Creates the initial state."""
    recover: Work | None = None
    """None repeats the work."""
    sound: Callable[[Settings], object] = verified
    """Raises if a reader sees a partial result before the recovery."""
    seen: Callable[[Settings], Any] = lake
    """What must equal an uninterrupted run afterwards."""
    stored: Callable[[Settings], str] = files_and_keys
    """A digest of what a kill leaves: of moments with the same one, the first is killed."""

    def resume(self, settings: Settings) -> None:
        """Do what an operator does after a kill."""
        (self.recover or self.work)(settings)


def killed(moment: Moment, work: Work, before: Work | None = None) -> Work:
    """Return a function that prepares the state after a kill, for a second kill during its recovery."""

    def prepare(settings: Settings) -> None:
        if before is not None:
            before(settings)
        kill(moment, settings.data_dir.with_suffix(".log"), work, settings)

    return prepare


def parts() -> Iterator[list[Record]]:
    """Yield a world of 240 events with all faults, in three parts: three batches of ingest."""
    records = list(simulate(11, 240, days=3, end=NOON, rates=_FAULTS).records)
    size = -(-len(records) // _PARTS)
    for start in range(0, len(records), size):
        yield records[start : start + size]
