"""The trends: analyses of how reputations move. Each is one SQL file in this folder, run on a published warehouse.

Owns finding, describing and running them; results are not stored. A new trend is a new file. The first line of its
comment says what it returns; parameters are declared as `-- $name = default: meaning`, numbers with their bounds as `--
$name = 10 (1..100): meaning`, or as `-- $name = first | second: meaning` where only these values are allowed; `--
Chart: mark x=column y=column` says how its rows are drawn (`Chart`), and what null means in the column of the colors,
such as `null=no_level`; the rest of the comment is the method. Every trend has `$since` and `$until`, dates or null.
`shared/` has two temporary views of the ratings, `rating_given` and `rating_counted`, and macros, created for the
trends that use one. What is a rating, and what counts, is decided by the derivation, whose steps are defined for them;
`scope_day` (`scopes.py`) is created for the trend about scopes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import duckdb
import polars as pl

from pipelines.boundary.toml import did_you_mean
from pipelines.contract.time_like import TimeLike, require_order, to_utc
from pipelines.errors import UsageError
from pipelines.reputation.merged_users import Aliases, aliases_in
from pipelines.reputation.policy import Policy
from pipelines.reputation.raters import define_scales, define_trust
from pipelines.reputation.scopes import define_scope_days
from pipelines.reputation.sql import one_row
from pipelines.reputation.steps import define_reading, define_steps

_FOLDER = Path(__file__).parent
_GIVEN, _COUNTED, _SCOPES = "rating_given", "rating_counted", "scope_day"
_SEEDS, _RATER_KEY = "seeds", "rater_id"
"""The parameter that names raters, and the metadata key that `rating_counted` has them from."""
_ACTION = "action_type"
"""The parameter that selects events of one action_type."""
_METHODS = ("tails", "discoveries", "bursts")
"""Macros, in the order of their dependencies."""
_PARAMETER = re.compile(r"^-- \$(\w+) = (.+?)(?: \((\d+)\.\.(\d+)\))?: (.+)$", re.MULTILINE)
_CHART = re.compile(r"^-- Chart: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a trend: its default, or its allowed values with the default first; numbers have bounds."""

    choices: tuple[str | float | None, ...]
    meaning: str
    lowest: float = 0
    highest: float = 0
    """Bounds of a number, both allowed."""

    @property
    def default(self) -> str | float | None:
        """The value when none is given."""
        return self.choices[0]

    def read(self, name: str, value: Any) -> str | float | None:
        """Return a value, or its text, in the type of the default. Raises UsageError for an invalid value."""
        if isinstance(self.default, int | float):
            return self._number(name, value, type(self.default))
        if len(self.choices) > 1 and value not in self.choices:
            raise UsageError(f"{name}={value!r} is not allowed: use {' or '.join(map(str, self.choices))}")
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name}={value!r} is not a text")
        return value

    def _number(self, name: str, value: Any, kind: type[int | float]) -> float:
        """Return a number within the bounds; none is rounded."""
        try:
            number = kind(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        accepted = int if kind is int else int | float
        if isinstance(number, bool) or not isinstance(number, accepted) or not self.lowest <= number <= self.highest:
            what = "whole number" if kind is int else "number"
            allowed = f"from {self.lowest:g} to {self.highest:,.0f}: the default is {self.default}"
            raise UsageError(f"{name}={value!r} is not a {what} {allowed}")
        return number


@dataclass(frozen=True, slots=True)
class Chart:
    """How rows are drawn: the mark (line, step, bar, point), and the column for each channel; empty for none."""

    mark: str
    x: str
    y: str
    color: str = ""
    null: str = ""
    """What a null in the column of the colors means; empty if it has none."""
    size: str = ""
    low: str = ""
    """The lower edge of a band around y, with `high`."""
    high: str = ""


@dataclass(frozen=True, slots=True)
class Trend:
    """An analysis with its parameters and its chart."""

    name: str
    meaning: str
    parameters: Mapping[str, Parameter]
    chart: Chart
    query: str

    @property
    def signature(self) -> str:
        """The parameters with their defaults, as text."""
        items = self.parameters.items()
        return ", ".join(
            name if parameter.default is None else f"{name}={parameter.default}" for name, parameter in items
        )

    def values(self, given: Mapping[str, Any]) -> dict[str, str | float | None]:
        """Return the value of every parameter. Raises UsageError for one that this trend does not have."""
        if unknown := given.keys() - self.parameters.keys():
            known = ", ".join(("since", "until", *self.parameters))
            raise UsageError(f"the trend {self.name} has no parameter {', '.join(sorted(unknown))}: it has {known}")
        return {name: known.read(name, given.get(name, known.default)) for name, known in self.parameters.items()}


@cache
def trends() -> dict[str, Trend]:
    """Return every trend by its name."""
    return {path.stem: _described(path) for path in sorted(_FOLDER.glob("*.sql"))}


def find_trend(name: str) -> Trend:
    """Return a trend. Raises UsageError, listing the known names, for an unknown one."""
    if name not in trends():
        raise UsageError(f"there is no trend {name!r}: there are {', '.join(trends())}")
    return trends()[name]


def run_trend(
    connection: duckdb.DuckDBPyConnection,
    trend: Trend,
    since: TimeLike | None,
    until: TimeLike | None,
    given: Mapping[str, Any],
) -> pl.DataFrame:
    """Return the rows of a trend whose UTC day (or first day) lies in [since, until).

    connection: to a warehouse; the call leaves temporary views and macros in it.
    since, until: restrict the rows returned, not the history that they are computed from.
    given: parameters of the trend by name.
    Raises UsageError for unknown or invalid parameters, for text that is not a time, and unless since is before until.
    """
    values: dict[str, Any] = {"since": _day(since), "until": _day(until), **trend.values(given)}
    require_order(values["since"], values["until"])
    if values.get(_ACTION) is not None:
        _require_known_action(connection, values[_ACTION])
    if _SCOPES in trend.query:
        define_scope_days(connection, values["scope"])
    if _GIVEN in trend.query:
        _define_given(connection)
    if _COUNTED in trend.query:
        known = _define_counted(connection)
        values |= {name: _raters(text, known) for name, text in values.items() if name == _SEEDS and text is not None}
    return connection.sql(trend.query, params=values).pl()


def _raters(names: str, known: Aliases) -> list[str]:
    """Return names separated by commas as `rating_counted` has the raters. Raises UsageError for an empty name."""
    seeds = [name.strip() for name in names.split(",")]
    if "" in seeds:
        raise UsageError(f"{_SEEDS}={names!r} has an empty user_id: write user_ids separated by commas")
    return [known.at_key(_RATER_KEY, name) for name in seeds]


def _require_known_action(connection: duckdb.DuckDBPyConnection, action_type: str) -> None:
    """Raise UsageError, naming the closest action_type, for one that neither an event nor the policy has."""
    policy, as_of = _policy_of(connection)
    of_events = connection.execute("SELECT DISTINCT action_type FROM trends_daily").fetchall()
    known = sorted({*(name for (name,) in of_events), *policy.at(as_of).rules.action_types})
    if action_type not in known:
        hint = did_you_mean(action_type, known) or ": check the spelling"
        raise UsageError(f"no event has the {_ACTION} {action_type!r}{hint}")


def _define_given(connection: duckdb.DuckDBPyConnection) -> None:
    """Define the ratings as given by the policy and as of the moment of a warehouse, and the methods of anomalies."""
    policy, as_of = _policy_of(connection)
    in_force, source = define_reading(connection, policy, as_of, "events", aliases_in(connection))
    define_scales(connection, in_force)
    connection.execute(Template(_shared(_GIVEN)).substitute(source=source))
    for name in _METHODS:
        connection.execute(_shared(name))


def _define_counted(connection: duckdb.DuckDBPyConnection) -> Aliases:
    """Define the ratings that count by the policy and as of the moment of a warehouse; return the merged users."""
    policy, as_of = _policy_of(connection)
    known = aliases_in(connection)
    define_scales(connection, define_steps(connection, policy, as_of, known=known))
    define_trust(connection)
    connection.execute(_shared(_COUNTED))
    return known


def _policy_of(connection: duckdb.DuckDBPyConnection) -> tuple[Policy, datetime]:
    policy, as_of = one_row(connection.execute("SELECT policy, as_of FROM snapshot_info"))
    return Policy.model_validate_json(policy), as_of


def _shared(name: str) -> str:
    """Return the statement of a view or macro of `shared/`."""
    return (_FOLDER / "shared" / f"{name}.sql").read_text(encoding="utf-8")


def _described(path: Path) -> Trend:
    query = path.read_text(encoding="utf-8")
    parameters = {
        name: Parameter(tuple(map(json.loads, choices.split(" | "))), meaning, int(lowest or 0), int(highest or 0))
        for name, choices, lowest, highest, meaning in _PARAMETER.findall(query)
    }
    return Trend(path.stem, query.splitlines()[0].removeprefix("-- "), parameters, _chart(query), query)


def _chart(query: str) -> Chart:
    (found,) = _CHART.findall(query)
    mark, *channels = found.split()
    named = dict(channel.split("=", 1) for channel in channels)
    return Chart(mark, **named | {"null": named.get("null", "").replace("_", " ")})


def _day(moment: TimeLike | None) -> date | None:
    return None if moment is None else to_utc(moment).date()
