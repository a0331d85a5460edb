"""The demo from beginning to end: ingest under kills, a suspension that comes late, the check against the books."""

import random
from datetime import datetime
from pathlib import Path

from examples.foreign.consistency import Account, accounts, disagreements, explained, misordered
from examples.foreign.kills import catch_up, kill_repeatedly
from examples.foreign.teams import moderation
from examples.foreign.teams.team import RIDER
from examples.foreign.town import Town
from pipelines.cli.output import print_line, print_table

_SEED = 7


def bring_in(folder: Path, kills: int) -> list[str]:
    """Run the demo in an empty folder; return a sentence for each disagreement."""
    print_line("four teams send to four topics, and karmalake ingest brings them in")
    with Town(folder, _SEED) as town:
        interrupted = kill_repeatedly(town, kills, random.Random(_SEED))  # noqa: S311 - reproducible
        print_line(f"ingest was killed {kills} times, {interrupted} of them before it had every record")
        at = suspend_late(town)
        rows = explained(town, RIDER)
        town.ingest.stop()
        print_table(Account._fields, accounts(town))
        print_line(f"\n$ karmalake explain {RIDER}\n{town.command('explain', RIDER).stdout}")
        return [*disagreements(town), *misordered(rows, at)]


def suspend_late(town: Town) -> datetime:
    """Suspend the rider from a time amid the events that the lake already has; return that time."""
    before = explained(town, RIDER)
    at = datetime.fromisoformat(before[len(before) // 2]["event_time"])
    late = moderation.decision("late-decision", RIDER, "suspended", at, is_binary=True)
    town.teams[moderation.TOPIC].send([late])
    catch_up(town)
    print_line(
        f"{RIDER} had {float(before[-1]['score']):g} points; then a suspension from {at:%Y-%m-%d %H:%M} on arrives"
    )
    return at
