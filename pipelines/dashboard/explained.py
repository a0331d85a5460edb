"""The table that explains a user's score: its columns, and the rows that its filters keep.

Which metadata have a column is a rule for any domain: a person who asks about an event looks for the other parties and
the deal first, so the keys come first that the policy tells them apart by.
"""

from collections.abc import Sequence
from datetime import date

import polars as pl

from pipelines.reputation.policy import Policy
from pipelines.reputation.warehouse import Warehouse

MAX_KEYS = 4
"""Maximum columns of metadata."""
_ANSWER = ("event_time", "action_type", "rating", "points", "earned", "score", "reason", "rule")
_RARE = ("rating", "rule", "related_event_id")
"""Columns without any value for many users."""
_KEYS = """
    SELECT key, count(*) AS events
    FROM (SELECT unnest(map_keys(metadata)) AS key FROM events WHERE user_id IN (SELECT unnest($user_ids)))
    GROUP BY key
"""
_VALUES = """
    SELECT event_id{columns}
    FROM events
    WHERE user_id IN (SELECT unnest($user_ids)) AND list_contains($event_ids, event_id)
"""


def metadata_keys(warehouse: Warehouse, user_id: str) -> list[str]:
    """Return the metadata keys of a user's events without a column of their own, those first that a person looks for.

    First the keys of the policy's `once`, `caps` and `completion` rules, in the order of the file: raters, then what
    completes. Then keys that end in `_id`, then all others, each by the number of events that have them. Keys that the
    policy reads ratings, points and targets from are left out: `rating`, `points` and `related_event_id` have those.
    """
    events = dict(warehouse.sql(_KEYS, {"user_ids": warehouse.user_ids(user_id)}).rows())
    policy = warehouse.info.policy
    first = {key: place for place, key in enumerate(_naming_keys(policy))}
    known = events.keys() - _read_keys(policy)
    return sorted(known, key=lambda key: (first.get(key, len(first)), not key.endswith("_id"), -events[key], key))


def _naming_keys(policy: Policy) -> list[str]:
    """Return the keys by which a policy tells raters apart, then those by which events complete each other."""
    rules = [rule for each in policy.versions for rule in (*each.once.values(), *each.caps.values())]
    raters = [key for rule in rules for key in rule.per]
    completing = [gate.key for each in policy.versions for gate in each.completion.values()]
    return list(dict.fromkeys((*raters, *completing)))


def _read_keys(policy: Policy) -> set[str | None]:
    """Return the keys that a policy reads ratings, points and targets from."""
    targets = {target for each in policy.versions for target in (each.retraction.target, each.correction.target)}
    actions = [action for each in policy.versions for action in each.all_actions.values()]
    ratings = {action.rating.key for action in actions if action.rating}
    return targets | ratings | {emission.points.key for action in actions for emission in action.emissions}


def matching(history: pl.DataFrame, days: tuple[date, date], reason: str | None) -> pl.DataFrame:
    """Return the rows of a history whose event lies on UTC days from the first to the last, both included.

    history: as from `queries.event_history`.
    reason: None means any.
    """
    rows = history.filter(pl.col("event_time").dt.date().is_between(*days))
    return rows if reason is None else rows.filter(pl.col("reason") == reason)


def with_metadata(warehouse: Warehouse, user_id: str, rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the table's columns for some rows of a user's history: what happened and why first, then ids.

    A key with the name of another column is called `metadata.KEY`. An event without a key has null there.
    """
    names = _column_names(keys, rows.columns)
    values = _values(warehouse, user_id, rows, keys).rename(dict(zip(_aliases(keys), names, strict=True)))
    joined = rows.join(values, on="event_id", how="left", maintain_order="left")
    return joined.select(*_ANSWER, "event_id", *names, "related_event_id")


def unused(history: pl.DataFrame) -> list[str]:
    """Return the rare columns without any value in a whole history, so that no filter changes the columns."""
    return [name for name in _RARE if history[name].is_null().all()]


def _column_names(keys: Sequence[str], taken: Sequence[str]) -> list[str]:
    names = list(taken)
    for key in keys:
        name = key
        while name in names:  # a producer may send the keys `score` and `metadata.score`
            name = f"metadata.{name}"
        names.append(name)
    return names[len(taken) :]


def _values(warehouse: Warehouse, user_id: str, rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return event_id and a column for each key, named by `_aliases`: keys are values of the statement, not names."""
    aliases = _aliases(keys)
    columns = "".join(f", metadata[${alias}] AS {alias}" for alias in aliases)
    params = {"user_ids": warehouse.user_ids(user_id), "event_ids": rows["event_id"].unique().to_list()}
    return warehouse.sql(_VALUES.format(columns=columns), params | dict(zip(aliases, keys, strict=True)))


def _aliases(keys: Sequence[str]) -> list[str]:
    return [f"karmalake_key_{number}" for number in range(len(keys))]
