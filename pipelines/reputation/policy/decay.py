"""Decay: points that halve are summed as of an epoch, and scaled to the moment that scores are shown for.

A contribution is weighted and rounded once, to `SUM_DIGITS` digits as of an epoch that the half-life and as_of alone
determine, and summed as a whole number. Such a sum stays valid while time passes; a score is the sum times the part
that is left, which all points of a half-life share. So a refresh recomputes only affected users, and a step of the
policy changes every score without a look at its events.
Owns epochs, steps and what is left; `views.py` has the SQL.
"""

import math
from dataclasses import dataclass

SUM_DIGITS = 15
"""Digits after the point of a contribution at its epoch, where points decay."""
SCORE_DIGITS = 12
"""Digits after the point of a score that is shown: fewer, so that what is left of 8 points after a half-life is 4."""
_EPOCH_HALF_LIVES = 16
"""An epoch lasts so long. Points grow until its end, at most 2^16-fold: a million is 7e25 at the epoch, and 128 bits
hold 2e12 of these. After it, everything is rebuilt at the next epoch."""
_LAST_US = 253_402_300_799_999_999
"""The end of the year 9999, beyond which Python has no times."""


@dataclass(frozen=True, slots=True)
class HalfLife:
    """A half-life, and the epoch that its points are summed as of; in microseconds."""

    length_us: int
    epoch_us: int

    def left(self, moment_us: int) -> float:
        """Return what is left, at a moment, of one point at the epoch. Whole half-lives are exact."""
        whole, rest_us = divmod(moment_us - self.epoch_us, self.length_us)
        return math.ldexp(2.0 ** (-rest_us / self.length_us), -whole)


def half_life(length_us: int, moment_us: int) -> HalfLife:
    """Return a half-life with the epoch that contains a moment."""
    epoch_length_us = _EPOCH_HALF_LIVES * length_us
    return HalfLife(length_us, moment_us // epoch_length_us * epoch_length_us)


def end_of_step(as_of_us: int, step_us: int) -> int:
    """Return the end of the step (start, end] that contains as_of: the moment that scores are shown for.

    The end, because no event before as_of happened after it: no contribution is worth more than its points.
    """
    return min(-(-as_of_us // step_us) * step_us, _LAST_US)
