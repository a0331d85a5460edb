"""Which level a user has after each of their events, as SQL.

Owns how levels follow a history. A level is reached when the score is at least `at`, and lost when it is below
`lost_below`; a score between the two changes nothing. So the last event after which the score was outside decides. The
scores are those of the contributions as they count now, in the order of events, as `explain` shows them: what was
retracted or has expired never raised or lowered a level, and neither when events arrived nor when views were refreshed
matters. Levels nest: a user with one has all below it, so `level_no` is how many a user has; 0 is below the first.
"""

from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.levels import Level
from pipelines.reputation.policy.numbers import Number
from pipelines.reputation.sql import statement
from pipelines.reputation.views import bounded, in_units, sums, units


def contributions_with_levels(policy: EffectivePolicy) -> str:
    """Return the contributions with `level_no` and `event_rank`, both null for a policy without levels."""
    if not policy.rules.levels:
        return statement("without_levels")
    level_no = " + ".join(_has(level, policy) for level in policy.rules.levels.values())
    return statement("with_levels", score=_score_so_far(policy), level_no=level_no)


def _score_so_far(policy: EffectivePolicy) -> str:
    """Return the score after an event: the running one, with start, floor and ceiling."""
    so_far = sums(policy, over=" OVER so_far") if policy.decays else ["CAST(sum(earned) OVER so_far AS HUGEINT)"]
    return bounded(f"{in_units(so_far, policy)} + {units(policy.rules.score.start, policy)}", policy)


def _has(level: Level, policy: EffectivePolicy) -> str:
    """Return SQL that is 1 where a user has a level after an event, else 0."""
    reached, lost = units(level.at, policy), units(level.lost_below, policy)
    if not level.depends_on_history:
        return statement("has_level", score="score_so_far", reached=reached).strip()
    at_start = str(int(_start(policy) >= level.at))
    return statement("has_level_by_history", reached=reached, lost=lost, at_start=at_start)


def _start(policy: EffectivePolicy) -> Number:
    """Return the score before the first event."""
    score = policy.rules.score
    at_least = score.start if score.floor is None else max(score.start, score.floor)
    return at_least if score.ceiling is None else min(at_least, score.ceiling)
