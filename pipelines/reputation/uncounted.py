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
    rules = [edition.rules.all_actions for edition in policy.editions]
    of_action = f"{events:,} of {escape_text(action)}"
    if reason == "no rule":
        actions = [name for each in rules for name in each]
        return f"{of_action}: no rule in the policy {policy.name}{did_you_mean(action, actions)}"
    needs = filter(None, (_needs(each[action]) for each in reversed(rules) if action in each))
    return f"{of_action}: unreadable, since the policy needs {next(needs)}"


def _needs(action: Action) -> str:
    """Return the numbers that an action reads, empty if none: another edition may read one."""
    rating = action.rating
    numbers = [rating, rating and rating.weight, *(emission.points for emission in action.emissions)]
    return " and ".join(dict.fromkeys(_need(each) for each in numbers if each is not None and each.key is not None))


def _need(number: Points | Rating | Weight) -> str:
    """Return the values that a policy reads at a metadata key."""
    if not isinstance(number, Weight) and number.map is not None:
        values = [str(value) for value in number.map]
        more = f" and {len(values) - _MAX_VALUES} more" if len(values) > _MAX_VALUES else ""
        return f"{number.key!r} to be one of {', '.join(values[:_MAX_VALUES])}{more}"
    digits = f"at most {number.digits} digits after the point" if number.digits else "no digits after the point"
    return f"{number.key!r} to be a number from {number.minimum:f} to {number.maximum:f} with {digits}"
