"""Kills of the ingest at random moments, while the teams go on working."""

import random
import threading
import time

from examples.foreign.consistency import remaining_records
from examples.foreign.town import Town
from tests.services.waiting import wait_for

_RECORDS = 40
"""Records of each team between two kills."""


def catch_up(town: Town) -> float:
    """Wait until the lake has every record that was sent; return the seconds."""
    started = time.monotonic()
    wait_for("the lake to have every record", lambda: remaining_records(town) == 0)
    return time.monotonic() - started


def kill_repeatedly(town: Town, kills: int, rng: random.Random) -> int:
    """Kill and restart the stream at random moments; return how many kills came before it had every record.

    It lives for up to twice the time in which it caught up first. So a kill finds it while it starts, reads, commits,
    refreshes the scores or waits.
    """
    pause, interrupted = threading.Event(), 0
    town.work(_RECORDS)
    town.stream.launch()
    seconds = catch_up(town)
    for _ in range(kills):
        town.work(_RECORDS)
        pause.wait(rng.uniform(0, 2 * seconds))
        town.stream.kill()
        interrupted += remaining_records(town) > 0
        town.stream.launch()
    catch_up(town)
    return interrupted
