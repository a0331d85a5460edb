"""Crashes on and on: processes that drain, compact, derive and publish a simulated world keep being killed.

Run as `python -m tests.chaos MINUTES`, or by `make chaos MINUTES=30`. All the while a hostile producer sends poison of
every kind into one topic partition (`poison.py`). A process that ends by itself with an error fails the run. In the end
everything is done once without a disturbance, and the audit, which shares nothing with ingest, says what was lost and
doubled: every good event counts once, all poison is among the dead letters.
"""

import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.audit import Audit, audit
from pipelines.check import Check
from pipelines.cli.output import facts, say
from pipelines.emit.simulator import simulate
from pipelines.lake.history import take_snapshot
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.settings import Settings
from pipelines.verify import verify, verify_lake
from tests.crashes.kills import power_cut
from tests.draining import drain_all, query, send, with_ingest
from tests.poison import TOPIC_PARTITION, Poisoner, with_writers

_EVENTS_A_ROUND = 400
_ROUNDS_BETWEEN_CHECKS = 20
_ROUNDS_BETWEEN_BOMBS = 10
_MOST_SECONDS = 1.2
"""About as long as the tasks take at first, so that most are cut off, and some end."""


@dataclass(slots=True)
class Story:
    """What happened before the books are opened."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter[str])
    """Processes that were killed, by what was at work at the same time."""
    sent: int = 0
    distinct: int = 0
    """Events that were sent, each counted once: what has to be in the lake."""
    poison: int = 0
    """Records and batches of the hostile producer."""
    letters: set[int] = field(default_factory=set[int])
    """Offsets of those that have to be dead letters, in their topic partition."""


def merge_files(settings: Settings) -> None:
    """Merge small files, as `karmalake compact` does."""
    compact(open_lake(settings.lake_root), 4)


def serve(settings: Settings) -> None:
    """Derive and publish, as `karmalake refresh` and `karmalake publish` do."""
    refresh_warehouse(settings)
    publish_warehouse(settings)


_ROUNDS = ([drain_all], [drain_all, merge_files], [drain_all, serve], [drain_all, merge_files, serve])


@contextmanager
def local_world(folder: Path) -> Generator[Settings]:
    """Yield settings of an empty lake, with a broker and a cache that end with the block."""
    bare = with_ingest(Settings(data_dir=folder), max_batch_records=100)
    start(bare)
    try:
        yield with_writers(with_local_endpoints(bare), folder / "schemas")
    finally:
        stop(bare)


def torment(settings: Settings, seconds: float, rng: random.Random) -> Story:
    """Send, and cut off whatever works on it, until the time is up; fails as soon as the lake does not reconcile."""
    story, deadline, log = Story(), time.monotonic() + seconds, settings.data_dir / "children.log"
    create_lake(settings.lake_root)
    hostile = Poisoner(settings, rng)
    while time.monotonic() < deadline:
        world = simulate(story.rounds, _EVENTS_A_ROUND)
        send(settings, world.records)
        hostile.send(bombs=story.rounds % _ROUNDS_BETWEEN_BOMBS == 0)
        tasks = rng.choice(_ROUNDS)
        cut = power_cut(rng.uniform(0, _MOST_SECONDS), log, tasks, settings)
        story.kills[" + ".join(task.__name__ for task in tasks)] += cut
        story.sent, story.distinct = story.sent + world.planted.sent, story.distinct + world.planted.distinct
        story.rounds += 1
        if story.rounds % _ROUNDS_BETWEEN_CHECKS == 0:
            drain_all(settings)  # what lies behind would grow for ever
            failed = [check for check in verify_lake(take_snapshot(open_lake(settings.lake_root))) if not check.passed]
            assert not failed, failed
    story.distinct, story.poison, story.letters = story.distinct + hostile.distinct, hostile.sent, hostile.letters
    return story


def not_rejected(settings: Settings, story: Story) -> int:
    """Return how much of the poison is not where it has to be: among the dead letters, each piece at its offset."""
    sql = f'SELECT "offset" FROM dead_letters WHERE topic_partition = {TOPIC_PARTITION}'  # noqa: S608 - a number
    return len(story.letters - {offset for (offset,) in query(settings, sql)})


def settle(settings: Settings) -> tuple[Audit, list[Check]]:
    """Do everything once without a disturbance, and return what the audit and the other checks say."""
    drain_all(settings)
    merge_files(settings)
    vacuum(open_lake(settings.lake_root), 0)
    serve(settings)
    return audit(settings), [check for check in verify(settings) if check.passed is not True]


def verdict(story: Story, found: Audit, failed: list[Check], missing: int = 0) -> int:
    """Print the report, and return the exit code: 0 if nothing is lost, doubled or otherwise wrong."""
    facts(
        [
            ("rounds", story.rounds),
            *((f"killed in {what}", count) for what, count in sorted(story.kills.items())),
            ("processes killed", story.kills.total()),
            ("records sent", story.sent),
            ("events among them", story.distinct),
            ("events in the lake", found.events),
            ("records and batches of poison", story.poison),
            ("of them dead letters", len(story.letters) - missing),
            ("of them lost", missing),
        ]
    )
    for check in failed:
        say(f"FAILED: {check.name}: {check.evidence}")
    lost, doubled = max(found.lost, story.distinct - found.events), max(found.doubled, found.events - story.distinct)
    say(f"lost {lost}, doubled {doubled}")
    return int(bool(lost or doubled or failed or missing))


def main() -> int:
    """Torment for the minutes of the first argument."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="karmalake-chaos-") as folder, local_world(Path(folder)) as settings:
        story = torment(settings, 60 * float(sys.argv[1]), random.Random())  # noqa: S311 - no secret
        return verdict(story, *settle(settings), not_rejected(settings, story))


if __name__ == "__main__":
    sys.exit(main())
