"""Gates on a comparison of two policies: what a pipeline allows to change, such as `moved_over_10_percent < 1%`.

A gate is `MEASURE OPERATOR NUMBER`. A measure is how many users are concerned, or with `%` after the number, their
share of all that are compared; the measures of points are the largest of any user, so they have no share.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

from pipelines.boundary.toml import did_you_mean
from pipelines.errors import UsageError

_CHANGE, _BEFORE = pl.col("change"), pl.col("score_before")
_USERS = {
    "moved": _CHANGE != 0,
    "gained": _CHANGE > 0,
    "lost": _CHANGE < 0,
    "rank_moved": pl.col("rank_before") != pl.col("rank_after"),
}
_POINTS = {"largest_gain": _CHANGE, "largest_loss": -_CHANGE}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_GATE = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>|=)\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*")
_MOVED_OVER = re.compile(r"moved_over_([0-9]{1,4})_percent")
_MEASURES = (*_USERS, "moved_over_10_percent", *_POINTS)


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition on a comparison; `measure` may be `moved_over_N_percent` for any whole N of up to four digits."""

    text: str
    measure: str
    operator: str
    limit: Decimal
    is_share: bool
    """Whether the limit is in percent of the users that are compared."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate with the value of its measure."""

    gate: Gate
    value: Decimal
    """Users, percent of all users, or points."""
    holds: bool


def parse_gate(text: str) -> Gate:
    """Return the gate that a text says, `MEASURE OPERATOR NUMBER[%]`. Raises UsageError."""
    found = _GATE.fullmatch(text)
    if found is None:
        raise UsageError(
            f"the gate {text!r} is not MEASURE OPERATOR NUMBER or NUMBER%, such as 'moved_over_10_percent < 1%'; "
            f"the operators are {', '.join(_OPERATORS)}, the measures {', '.join(_MEASURES)}"
        )
    measure, comparison, limit, percent = found.groups()
    if measure not in _MEASURES and not _MOVED_OVER.fullmatch(measure):
        hint = did_you_mean(measure, _MEASURES) or f": the measures are {', '.join(_MEASURES)}"
        raise UsageError(f"the gate {text!r} names no measure{hint}")
    if percent and measure in _POINTS:
        raise UsageError(f"the gate {text!r} compares points, which have no %: write a number of points")
    return Gate(text.strip(), measure, comparison, Decimal(limit), bool(percent))


def check_gate(gate: Gate, compared: pl.DataFrame) -> GateResult:
    """Return the value of a gate's measure and whether it holds; `compared` is what `compare_policies` returns.

    A change from a score of zero is over any percentage. Without users every measure is 0.
    """
    value = _largest(gate, compared) if gate.measure in _POINTS else _users(gate, compared)
    return GateResult(gate, value, _OPERATORS[gate.operator](value, gate.limit))


def _largest(gate: Gate, compared: pl.DataFrame) -> Decimal:
    """Return the largest gain or loss in points, at least 0."""
    return max(Decimal(0), Decimal(str(compared.select(_POINTS[gate.measure].max()).item() or 0)))


def _users(gate: Gate, compared: pl.DataFrame) -> Decimal:
    """Return how many users a measure concerns, in percent of all if the limit is."""
    count = Decimal(compared.filter(_concerned(gate.measure)).height)
    return 100 * count / max(1, compared.height) if gate.is_share else count


def _concerned(measure: str) -> pl.Expr:
    found = _MOVED_OVER.fullmatch(measure)
    return _size(_CHANGE) * 100 > _size(_BEFORE) * int(found[1]) if found else _USERS[measure]


def _size(points: pl.Expr) -> pl.Expr:
    """Return absolute points as exact decimals of six digits, as scores are shown: a float of 10 % may be above it."""
    return points.abs().cast(pl.Decimal(38, 6))
