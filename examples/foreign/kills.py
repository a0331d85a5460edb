"""Kills of the ingest at random moments, while the teams go on working."""

import random
import threading
import time

from examples.foreign.consistency import remaining_records
from examples.foreign.town import Town
from tests.services.waiting import wait_for

_RECORDS = 40
"""Records of each team between two kills."""
_LONGER, _SHORTER = 1.4, 0.7
"""What a life is multiplied by after one that ended too early, or late."""


def catch_up(town: Town) -> float:
    """Wait until the lake has every record that was sent; return the seconds."""
    started = time.monotonic()
    wait_for("the lake to have every record", lambda: remaining_records(town) == 0)
    return time.monotonic() - started


def kill_repeatedly(town: Town, kills: int, rng: random.Random) -> int:
    """Kill and restart the ingest at random moments; return how many kills came before it had every record.

    A kill finds it while it starts, reads, commits or waits. How long it lives adapts to the machine: about half of the
    kills come before it had every record.
    """
    pause, interrupted = threading.Event(), 0
    town.work(_RECORDS)
    town.ingest.launch()
    life_seconds = catch_up(town)
    for _ in range(kills):
        town.work(_RECORDS)
        pause.wait(rng.uniform(0, 2 * life_seconds))
        town.ingest.kill()
        is_interrupted = remaining_records(town) > 0
        life_seconds *= _LONGER if is_interrupted else _SHORTER
        interrupted += is_interrupted
        town.ingest.launch()
    catch_up(town)
    return interrupted
