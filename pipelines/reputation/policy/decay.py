"""Decay: points that halve are summed as of an epoch, and scaled to the moment that scores are displayed for.

A contribution is weighted and rounded once, to `SUM_DIGITS` digits as of an epoch that the half-life and as_of alone
determine, and summed as an integer. Such a sum stays valid while time passes; a score is the sum times the share that
remains, which is the same for all points of a half-life. So a refresh recomputes only affected users, and a step of the
policy changes every score without reading its events.
Owns epochs, steps and the remaining share; `views.py` has the SQL.
"""

import math
from dataclasses import dataclass

SUM_DIGITS = 15
"""Decimal places of a contribution as of its epoch, where points decay."""
SCORE_DIGITS = 12
"""Decimal places of a displayed score: fewer, so that 8 points are exactly 4 after a half-life."""
_EPOCH_HALF_LIVES = 16
"""The length of an epoch in half-lives. Points of later events count more as of the epoch, up to 2^16-fold: a million
points are 7e25 units, and 128 bits hold 2e12 times that. At its end, everything is rebuilt as of the next epoch."""
_LAST_US = 253_402_300_799_999_999
"""The end of the year 9999, the last time that Python represents."""


@dataclass(frozen=True, slots=True)
class HalfLife:
    """A half-life, and the epoch that its points are summed as of; in microseconds."""

    length_us: int
    epoch_us: int

    def remaining(self, moment_us: int) -> float:
        """Return what remains, at a moment, of one point as of the epoch. Whole half-lives are exact."""
        whole, rest_us = divmod(moment_us - self.epoch_us, self.length_us)
        return math.ldexp(2.0 ** (-rest_us / self.length_us), -whole)


def half_life(length_us: int, moment_us: int) -> HalfLife:
    """Return a half-life with the epoch that contains a moment."""
    epoch_length_us = _EPOCH_HALF_LIVES * length_us
    return HalfLife(length_us, moment_us // epoch_length_us * epoch_length_us)


def end_of_step(as_of_us: int, step_us: int) -> int:
    """Return the end of the step (start, end] that contains as_of: the moment that scores are displayed for.

    The end, so that no event before as_of is later: no contribution is worth more than its points.
    """
    return min(-(-as_of_us // step_us) * step_us, _LAST_US)
