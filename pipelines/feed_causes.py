"""What is behind each change of the feed: the events by their ids, and a cause where no event is.

A change is from what the feed said last of the user, so its causes are of the time since then: which events became
known, left a window or expired (`recent_events.py`), and whether the policy, a step of decay, a merge or a removal of
events came between. The names are those of `explain_shown`, which also says what each of them did to the score.
"""

import polars as pl

from pipelines.contract.change_causes import (
    ACCOUNT_MERGED,
    DECAY,
    EVENTS_OF_OTHERS,
    EVENTS_REMOVED,
    POINTS_FROM_TIME,
    POLICY,
    RECOMPUTED,
    START,
)
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.erased_events import removal_since
from pipelines.lake.score_changes import FeedPosition
from pipelines.lake.tables import Lake, Snapshot
from pipelines.reputation.merged_users import Aliases, aliases, merges_of
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.numbers import DAY_US, MINUTE_US
from pipelines.reputation.recent_events import RECENT, event_causes
from pipelines.reputation.related_events import has_completions
from pipelines.reputation.steps import epoch_us
from pipelines.reputation.warehouse_file import Info

MAX_CAUSES = 20
"""Causes that a change names, the newest events; the others are counted."""


def with_causes(changes: pl.DataFrame, recent: pl.DataFrame | None, info: Info) -> pl.DataFrame:
    """Add `causes`, structs of cause and event_id (null without an event), and `more_causes`, how many are not named.

    changes: `user_id`, and `lake_version`, `as_of_us` and `policy` of what was said last; null for a user who is new.
    recent: what happened (RECENT) to these users, or also to others, since; None at the start of the feed.
    info: what the publication reflects.
    """
    if recent is None:
        return _with_one(changes, START)
    of_these = recent.join(changes.select("user_id"), on="user_id", how="semi")
    found = pl.concat([of_these, *_of_moment(changes, info)])
    named = found.unique(["user_id", "cause", "event_id"]).sort("t", "event_id", "cause", nulls_last=True)
    causes = pl.struct("cause", "event_id")
    by_user = named.group_by("user_id").agg(
        causes.tail(MAX_CAUSES), more_causes=pl.len() - pl.len().clip(0, MAX_CAUSES)
    )
    joined = changes.join(by_user.rename({"cause": "causes"}), on="user_id", how="left", maintain_order="left")
    unexplained = _with_one(changes, _fallback(info.policy.at(info.as_of)))
    return joined.with_columns(
        causes=pl.col("causes").fill_null(unexplained["causes"]), more_causes=pl.col("more_causes").fill_null(0)
    )


def _with_one(changes: pl.DataFrame, cause: str) -> pl.DataFrame:
    one = pl.struct(pl.lit(cause).alias("cause"), pl.lit(None, pl.String).alias("event_id"))
    return changes.with_columns(causes=pl.concat_list(one), more_causes=pl.lit(0))


def possible_causes(policy: EffectivePolicy) -> set[str]:
    """Return which causes changes can have under a policy, after the first publication."""
    always = {POLICY, ACCOUNT_MERGED, EVENTS_REMOVED, _fallback(policy)}
    of_time = {POINTS_FROM_TIME: policy.has_time_points, DECAY: policy.decays}
    return always | event_causes(policy) | {cause for cause, found in of_time.items() if found}


def _fallback(policy: EffectivePolicy) -> str:
    """Return the cause of a change with none of its own: another user's event, or other SQL, such as of a release."""
    reads_others = has_completions(policy) or policy.rules.raters is not None or policy.rules.has_global_prior
    return EVENTS_OF_OTHERS if reads_others else RECOMPUTED


def _of_moment(changes: pl.DataFrame, info: Info) -> list[pl.DataFrame]:
    """Return what the policy and the clock do, as RECENT: another policy, points from time, and a step of decay."""
    in_force = info.policy.at(info.as_of)
    step_us = in_force.rules.decay_step_minutes * MINUTE_US
    decayed_to_us = -(-pl.col("as_of_us") // step_us) * step_us
    found = [_named(changes.filter(pl.col("policy") != f"{info.policy.name}@{info.policy_version}"), POLICY)]
    if in_force.has_time_points:
        days_begun = -(-epoch_us(info.as_of) // DAY_US)
        found.append(_named(changes.filter(-(-pl.col("as_of_us") // DAY_US) < days_begun), POINTS_FROM_TIME))
    if in_force.decays:
        found.append(_named(changes.filter(decayed_to_us < in_force.decayed_to_us), DECAY))
    return found


def causes_in_lake(lake: Lake, position: FeedPosition, info: Info) -> list[pl.DataFrame]:
    """Return merges, and events removed by erasures and withdrawals, since a position of the feed, as RECENT."""
    if (info.erasures, merge_count(info)) == (position.removals, position.merges):
        return []
    snapshot = take_snapshot(lake)
    merges = merges_of(snapshot)
    known = aliases(merges)
    moved = {
        name
        for merge in merges[position.merges : merge_count(info)]
        for name in (merge.user_id, known.resolve(merge.user_id))
    }
    return [_users(moved, ACCOUNT_MERGED), _users(_removed(snapshot, position, known), EVENTS_REMOVED)]


def merge_count(info: Info) -> int:
    """Return how many merges of users a warehouse reflects."""
    return int(info.merges.partition(" ")[0] or 0)


def _removed(snapshot: Snapshot, position: FeedPosition, known: Aliases) -> set[str]:
    """Return the users with removed events; none if they are no longer on record."""
    try:
        removed = removal_since(snapshot, position.lake_version, position.removals).removed
    except (LookupError, FileNotFoundError):
        return set()
    return {known.resolve(user) for user in removed["user_id"].unique().to_pylist()}


def _users(names: set[str], cause: str) -> pl.DataFrame:
    return _named(pl.DataFrame({"user_id": sorted(names)}, {"user_id": pl.String}), cause)


def _named(users: pl.DataFrame, cause: str) -> pl.DataFrame:
    """Return a cause of users without an event, as RECENT."""
    none = pl.lit(None)
    return users.select("user_id", t=none, cause=pl.lit(cause), event_id=none).cast(RECENT)
