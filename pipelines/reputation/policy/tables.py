"""A policy as tables and variables, so that the SQL of the steps is the same for every policy.

Owns the conversion from the model to DuckDB. A policy's texts become values, never part of a statement, except for the
names of measures, whose pattern admits only identifiers.
"""

from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.reputation.policy.actions import Emission, Rating, Weight
from pipelines.reputation.policy.model import ALWAYS, Edition, EffectivePolicy
from pipelines.reputation.policy.numbers import DAY_US, MICRO, MICRO_DIGITS, micro
from pipelines.reputation.policy.raters import Raters
from pipelines.reputation.policy.rules import Rules
from pipelines.reputation.sql import arrow_rows, statement

ROLE = pa.schema([("action_type", pa.string()), ("role", pa.string())])
EMISSION = pa.schema(
    [
        ("emission_key", pa.int32()),
        ("version", pa.string()),
        ("from_us", pa.int64()),
        ("to_us", pa.int64()),
        ("action_type", pa.string()),
        ("emission_no", pa.int32()),
        ("fixed", pa.int64()),
        ("mapped", pa.bool_()),
        ("points_key", pa.string()),
        ("points_missing", pa.int64()),
        ("points_minimum", pa.int64()),
        ("points_maximum", pa.int64()),
        ("points_step", pa.int64()),
        ("scale", pa.int64()),
        ("half_life_us", pa.int64()),
        ("epoch_us", pa.int64()),
        ("penalties_expire_us", pa.int64()),
        ("rating_key", pa.string()),
        ("rating_fixed", pa.int64()),
        ("rating_missing", pa.int64()),
        ("rating_minimum", pa.int64()),
        ("rating_maximum", pa.int64()),
        ("rating_step", pa.int64()),
        ("weight_key", pa.string()),
        ("weight_missing", pa.int64()),
        ("weight_unreadable", pa.int64()),
        ("weight_minimum", pa.int64()),
        ("weight_maximum", pa.int64()),
        ("weight_step", pa.int64()),
    ]
)
_LOWEST, _HIGHEST = ALWAYS
STAR = pa.schema([("emission_key", pa.int32()), ("value", pa.int64()), ("points", pa.int64())])

WORD = pa.schema([("emission_key", pa.int32()), ("number", pa.string()), ("text", pa.string()), ("value", pa.int64())])
TIME_RULE = pa.schema(
    [
        ("name", pa.string()),
        ("version", pa.string()),
        ("from_us", pa.int64()),
        ("to_us", pa.int64()),
        ("since", pa.list_(pa.string())),
        ("months", pa.int64()),
        ("days", pa.int64()),
        ("times", pa.int64()),
        ("points", pa.int64()),
        ("half_life_us", pa.int64()),
        ("epoch_us", pa.int64()),
        ("source_row", pa.int64()),
    ]
)
_BEFORE_EVENTS = -2 * 10**18
"""Less than the number that orders any event among those of the same time."""


def load_tables(connection: duckdb.DuckDBPyConnection, policy: EffectivePolicy) -> None:
    """Fill the temporary tables of `policy_tables`, and the variables of the policy."""
    for name, rows in policy_tables(policy).items():
        with arrow_rows(connection, rows):
            connection.execute(statement("policy_table", name=name))
    for name, value in variables(policy).items():
        connection.execute(f"SET VARIABLE {name} = ?", [value])


def policy_tables(policy: EffectivePolicy) -> dict[str, pa.Table]:
    """Return the rows of `role` and `emission`, and of what maps say: `star` by numbers, `word` by texts.

    Also `time_rule`, if users earn points from time.
    """
    rows = _emissions(policy)
    stars = [star for row, emission, _ in rows for star in _stars(row, emission)]
    words = [word for row, emission, rating in rows for word in _words(row, emission, rating)]
    timed = {"time_rule": pa.Table.from_pylist(_time_rules(policy), TIME_RULE)} if policy.has_time_points else {}
    return timed | {
        "role": pa.Table.from_pylist(_roles(policy), ROLE),
        "emission": pa.Table.from_pylist([row for row, _, _ in rows], EMISSION),
        "star": pa.Table.from_pylist(stars, STAR),
        "word": pa.Table.from_pylist(words, WORD),
    }


def variables(policy: EffectivePolicy) -> dict[str, Any]:
    """Return the variables that the steps read with getvariable(), by name.

    Those of a rule over actions are named `{kind}_{edition}_{number}_{key}`.
    """
    rules = policy.rules
    values: dict[str, Any] = {
        "status_rule": rules.status.rule,
        "retraction_target": rules.retraction.target,
        "correction_target": rules.correction.target,
        "order_by": rules.order_by,
        **_of_scopes(rules),
        **_raters(rules.raters),
    }
    for number, edition in enumerate(policy.editions):
        values |= _of_edition(edition, number)
    return values


def _of_scopes(rules: Rules) -> dict[str, Any]:
    scopes = rules.scopes.items()
    keys = {f"scope_{name}_key": scope.key for name, scope in scopes}
    return keys | {f"scope_{name}_default": scope.default for name, scope in scopes}


def _of_edition(edition: Edition, number: int) -> dict[str, Any]:
    rules, values = edition.rules, dict[str, Any]()
    for i, (name, gate) in enumerate(rules.completion.items()):
        own = {"name": name, "actions": rules.covered_actions(gate), "by": list(gate.by), "key": gate.key}
        values |= _prefixed(f"completion_{number}_{i}", own)
    for i, (name, gate) in enumerate(rules.once.items()):
        own = {"name": name, "actions": rules.covered_actions(gate), "period": gate.period}
        values |= _prefixed(f"once_{number}_{i}", own | _keys(gate.per))
    for i, (name, cap) in enumerate(rules.caps.items()):
        own = {"name": name, "actions": rules.covered_actions(cap), "period": cap.period}
        values |= _prefixed(f"cap_{number}_{i}", own | _keys(cap.per) | {"maximum": micro(cap.maximum)})
    for i, (action_type, key, condition) in enumerate(rules.conditions):
        bounds = {"minimum": _micro(condition.minimum, _LOWEST), "maximum": _micro(condition.maximum, _HIGHEST)}
        own = {"actions": [action_type], "key": key, "text": condition.equals}
        values |= _prefixed(f"where_{number}_{i}", own | bounds)
    return values | _prefixed(f"edition_{number}", {"from_us": edition.from_us, "to_us": edition.to_us})


def _raters(raters: Raters | None) -> dict[str, Any]:
    """Return the variables of raters' weights, shares in millionths; `raters.py` sets the seeds."""
    if raters is None:
        return {}
    shares = {"trust_damping": micro(raters.damping), "trust_minimum": micro(raters.minimum)}
    return {"rater_key": raters.key, "trust_rounds": raters.rounds, **shares}


def _keys(per: tuple[str, ...]) -> dict[str, str]:
    """Return the keys of a rule's groups, which `steps.py` names by their number."""
    return {f"key_{number}": key for number, key in enumerate(per)}


def _micro(bound: Decimal | None, unbounded: int) -> int:
    return unbounded if bound is None else micro(bound)


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}": value for key, value in values.items()}


def _roles(policy: EffectivePolicy) -> list[dict[str, str]]:
    return [{"action_type": action, "role": role} for action, role in policy.rules.roles.items()]


def _emissions(policy: EffectivePolicy) -> list[tuple[dict[str, object], Emission, Rating | None]]:
    rows: list[tuple[dict[str, object], Emission, Rating | None]] = []
    epochs = _epochs(policy)
    for edition in policy.editions:
        for action_type, action in edition.rules.all_actions.items():
            for emission_no, emission in enumerate(action.emissions):
                head = {"emission_key": len(rows), "action_type": action_type, "emission_no": emission_no}
                decay = {"half_life_us": emission.half_life_us, "epoch_us": epochs.get(emission.half_life_us)}
                row = head | _validity(edition) | _points(emission) | decay | _rating(action.rating)
                rows.append((row, emission, action.rating))
    return rows


def _epochs(policy: EffectivePolicy) -> dict[int | None, int]:
    """Return the epoch of each half-life, by its length."""
    return {half_life.length_us: half_life.epoch_us for half_life in policy.half_lives if half_life}


def _time_rules(policy: EffectivePolicy) -> list[dict[str, object]]:
    """Return the rules of points from time; one without `times` has more of them than there are days."""
    rows, epochs = list[dict[str, object]](), _epochs(policy)
    for edition in policy.editions:
        for name, rule in edition.rules.time.items():
            half_life_us = rule.emission.half_life_us
            rows.append(
                {
                    **_validity(edition),
                    "name": name,
                    "since": list(rule.since) or None,
                    "months": rule.months,
                    "days": rule.days,
                    "times": rule.times or _HIGHEST,
                    "points": micro(rule.points),
                    "half_life_us": half_life_us,
                    "epoch_us": epochs.get(half_life_us),
                    "source_row": _BEFORE_EVENTS + len(rows),
                }
            )
    return rows


def _validity(edition: Edition) -> dict[str, object]:
    return {"version": edition.rules.version, "from_us": edition.from_us, "to_us": edition.to_us}


def _points(emission: Emission) -> dict[str, object]:
    points = emission.points
    return {
        "fixed": _optional(points.fixed),
        "mapped": points.map is not None,
        "points_key": points.key,
        "points_missing": _optional(points.missing),
        "points_minimum": micro(points.minimum),
        "points_maximum": micro(points.maximum),
        "points_step": 10 ** (MICRO_DIGITS - points.digits),
        "scale": micro(points.scale),
        "penalties_expire_us": emission.penalties_expire_after_days and emission.penalties_expire_after_days * DAY_US,
    }


def _optional(number: Decimal | None) -> int | None:
    return None if number is None else micro(number)


def _rating(rating: Rating | None) -> dict[str, object]:
    if rating is None:
        return {"rating_step": MICRO}
    return {
        "rating_key": rating.key,
        "rating_fixed": _optional(rating.fixed),
        "rating_missing": _optional(rating.missing),
        "rating_minimum": _optional(rating.minimum),
        "rating_maximum": _optional(rating.maximum),
        "rating_step": 10 ** (MICRO_DIGITS - rating.digits),
        **_weight(rating.weight or Weight(fixed=Decimal(1))),
    }


def _weight(weight: Weight) -> dict[str, object]:
    """Return the columns of a rating's weight: a fixed one is that of events without a key."""
    return {
        "weight_key": weight.key,
        "weight_missing": _optional(weight.missing if weight.fixed is None else weight.fixed),
        "weight_unreadable": _optional(weight.unreadable),
        "weight_minimum": _optional(weight.minimum),
        "weight_maximum": _optional(weight.maximum),
        "weight_step": 10 ** (MICRO_DIGITS - weight.digits),
    }


def _stars(row: dict[str, object], emission: Emission) -> list[dict[str, object]]:
    return [
        {"emission_key": row["emission_key"], "value": micro(value), "points": micro(points)}
        for value, points in (emission.points.map or {}).items()
        if isinstance(value, Decimal)
    ]


def _words(row: dict[str, object], emission: Emission, rating: Rating | None) -> list[dict[str, object]]:
    """Return the texts of the maps of an emission, each with the number that it stands for."""
    maps = {"points": emission.points.map, "rating": rating.map if rating else None}
    return [
        {"emission_key": row["emission_key"], "number": number, "text": text, "value": micro(value)}
        for number, words in maps.items()
        for text, value in (words or {}).items()
        if isinstance(text, str)
    ]
