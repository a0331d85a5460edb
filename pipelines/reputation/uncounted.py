"""Events that no rule fits: how many were unreadable, or of an action without a rule, and why."""

import duckdb

from pipelines.boundary.text import escape_text
from pipelines.boundary.toml import did_you_mean
from pipelines.reputation.policy import EffectivePolicy
from pipelines.reputation.policy.actions import Action, Points, Rating, Weight
from pipelines.reputation.sql import statement
from pipelines.reputation.warehouse_file import stored_info

OF_STEPS = "(SELECT reason, action_type, 1 AS events FROM fact WHERE is_first)"
_OF_WAREHOUSE = "trends_reasons"
"""Where events are counted: after `materialize_fact`, and in a warehouse."""
_MAX_ACTIONS = 5
_MAX_VALUES = 10


def uncounted_in_warehouse(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the sentences of `explain_uncounted` about an attached warehouse and its policy."""
    info = stored_info(connection)
    return explain_uncounted(connection, info.policy.at(info.as_of), _OF_WAREHOUSE)


def explain_uncounted(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy, source: str) -> list[str]:
    """Return a sentence for each action with events that are unreadable or without a rule, unreadable ones first.

    source: OF_STEPS, or a table like it. Of more than five actions with a reason, the last sentence has the rest.
    """
    rows = connection.sql(statement("uncounted", source=source)).fetchall()
    found: list[str] = []
    for reason in ("unreadable", "no rule"):
        of_reason = [(action, events) for why, action, events in rows if why == reason]
        found += [_sentence(reason, action, events, policy) for action, events in of_reason[:_MAX_ACTIONS]]
        if rest := of_reason[_MAX_ACTIONS:]:
            found.append(f"{sum(events for _, events in rest):,} of {len(rest):,} other actions: {reason}")
    return [f"events that earn nothing: {sentence}" for sentence in found]


def _sentence(reason: str, action: str, events: int, policy: EffectivePolicy) -> str:
    of_action = f"{events:,} of {escape_text(action)}"
    if reason == "no rule":
        actions = [name for edition in policy.editions for name in edition.rules.all_actions]
        return f"{of_action}: no rule in the policy {policy.name}{did_you_mean(action, actions)}"
    needs: dict[str, list[str]] = {}
    for edition in policy.editions:
        if need := _needs(edition.rules.all_actions.get(action, Action())):
            needs.setdefault(need, []).append(edition.rules.version)
    if len(needs) > 1:
        needs = {f"{need} (version {', '.join(versions)})": versions for need, versions in needs.items()}
    return f"{of_action}: unreadable, since the policy needs {', or '.join(needs)}"


def _needs(action: Action) -> str:
    """Return the numbers of an action that may be unreadable, empty if none: another edition may have one."""
    rating = action.rating
    numbers = [rating, rating and rating.weight, *(emission.points for emission in action.emissions)]
    return " and ".join(dict.fromkeys(filter(None, (_need(each) for each in numbers if each is not None))))


def _need(number: Points | Rating | Weight) -> str:
    """Return what a policy needs at a metadata key; empty if it reads none, or does with anything."""
    replaces = isinstance(number, Weight) and number.unreadable is not None
    if number.key is None or (replaces and number.missing is not None):
        return ""
    if replaces:
        return f"{number.key!r}"
    key = f"{number.key!r}" if number.missing is None else f"{number.key!r}, if there is one,"
    return f"{key} to be {_values(number)}"


def _values(number: Points | Rating | Weight) -> str:
    """Return the values that a policy reads at a metadata key."""
    if not isinstance(number, Weight) and number.map is not None:
        values = [str(value) for value in number.map]
        more = f" and {len(values) - _MAX_VALUES} more" if len(values) > _MAX_VALUES else ""
        return f"one of {', '.join(values[:_MAX_VALUES])}{more}"
    digits = f"at most {number.digits} digits after the point" if number.digits else "no digits after the point"
    return f"a number from {number.minimum:f} to {number.maximum:f} with {digits}"
