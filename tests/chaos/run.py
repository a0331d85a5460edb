"""The loop of a chaos run: all faults in a random order given by the seed, repeatedly, with kills in between."""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.cli.output import print_line
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.operate.verify import verify_lake
from tests.chaos.faults import FAULTS, kill, poison
from tests.chaos.report import count_missing_dead_letters, count_unrecorded_losses, report, settle
from tests.chaos.world import World, open_world
from tests.draining import drain_all

_KILLS, _POISONINGS = 6, 3
"""Up to so many per fault of another kind; in a short run one of each."""
_LONG_RUN_SECONDS = 300.0
_OUTAGE_SECONDS, _SHORT_OUTAGE_SECONDS = 60.0, 3.0


def run_faults(world: World, seconds: float) -> None:
    """Apply faults until the time is up and each was applied; fail as soon as the lake does not reconcile."""
    deadline, reported = time.monotonic() + seconds, time.monotonic()
    for name in _order(world.rng, is_long=seconds >= _LONG_RUN_SECONDS):
        try:
            FAULTS[name](world)
        except BaseException as error:
            error.add_note(f"in round {world.story.rounds}, {name}")
            raise
        world.story.done[name] += 1
        world.story.rounds += 1
        if name not in {kill.__name__, poison.__name__}:
            _reconcile(world)
            print_line(f"{name} took {time.monotonic() - reported:.1f} s with the kills before it")
            reported = time.monotonic()
        if time.monotonic() > deadline and all(world.story.done[each] for each in FAULTS):
            break
    hostile = world.hostile
    world.story.distinct += hostile.distinct
    world.story.poison, world.story.letters = hostile.sent, hostile.letters


def _order(rng: random.Random, *, is_long: bool) -> Iterator[str]:
    """Yield names of faults endlessly: all equally often, except kills and poison."""
    kills, poisonings = (_KILLS, _POISONINGS) if is_long else (1, 1)
    common = [kill.__name__] * kills + [poison.__name__] * poisonings
    rare = [name for name in FAULTS if name not in common]
    while True:
        for name in rng.sample(rare, len(rare)):
            yield from rng.sample(common, rng.randint(1, len(common)))
            yield name


def _reconcile(world: World) -> None:
    drain_all(world.settings)  # otherwise the backlog would grow without bound
    failed = [check for check in verify_lake(take_snapshot(open_lake(world.settings.lake_root))) if not check.passed]
    assert not failed, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run faults for some minutes with a seed; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args(arguments)
    print_line(f"seed {options.seed}")
    seconds = 60 * options.minutes
    outage = _OUTAGE_SECONDS if seconds >= _LONG_RUN_SECONDS else _SHORT_OUTAGE_SECONDS
    rng = random.Random(options.seed)  # noqa: S311 - no secret
    with (
        tempfile.TemporaryDirectory(prefix="karmalake-chaos-", ignore_cleanup_errors=True) as folder,
        open_world(Path(folder), rng, outage) as world,
    ):
        run_faults(world, seconds)
        return report(world.story, settle(world), count_missing_dead_letters(world), count_unrecorded_losses(world))
