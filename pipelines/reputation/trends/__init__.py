"""The trends: questions about how reputations move, each one SQL file in this folder, asked of a published warehouse.

Owns finding, describing and running them; nothing is kept. A new trend is a new file. Its comment says what it answers
(first line) and declares its parameters as `-- $name = default: meaning`, or `-- $name = first | second: meaning` where
only these values can be; the rest of the comment is its method. `$since` and `$until`, dates or null, every trend has.
What several trends need is in `shared/`: a temporary view of the ratings, and macros, made for those that name it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from pipelines.contract.moments import Moment, instant
from pipelines.errors import UsageError

_FOLDER = Path(__file__).parent
_RATINGS = "rating_given"
_METHODS = ("tails", "discoveries", "bursts")
"""Macros, each before those that use it."""
_PARAMETER = re.compile(r"^-- \$(\w+) = (.+?): (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A knob of a trend: its default, or the values that it can have, the default first."""

    choices: tuple[str | float | None, ...]
    meaning: str

    @property
    def default(self) -> str | float | None:
        """The value when none is given."""
        return self.choices[0]

    def read(self, name: str, value: Any) -> str | float | None:
        """Return a value, or its text, as the type of the default. Raises UsageError for one that cannot be."""
        if len(self.choices) > 1 and value not in self.choices:
            raise UsageError(f"{name}={value!r} cannot be: say {' or '.join(map(str, self.choices))}")
        if value is None or self.default is None or isinstance(self.default, str):
            return value
        try:
            return type(self.default)(value)
        except (TypeError, ValueError):
            raise UsageError(f"{name}={value!r} is not a number: the default is {self.default}") from None


@dataclass(frozen=True, slots=True)
class Trend:
    """A question with its parameters."""

    name: str
    meaning: str
    parameters: Mapping[str, Parameter]
    query: str

    @property
    def signature(self) -> str:
        """The parameters with their defaults, as text."""
        knobs = self.parameters.items()
        return ", ".join(name if knob.default is None else f"{name}={knob.default}" for name, knob in knobs)

    def values(self, given: Mapping[str, Any]) -> dict[str, str | float | None]:
        """Return the value of every parameter. Raises UsageError for one that this trend does not have."""
        if unknown := given.keys() - self.parameters.keys():
            there = ", ".join(("since", "until", *self.parameters))
            raise UsageError(f"the trend {self.name} has no parameter {', '.join(sorted(unknown))}: it has {there}")
        return {name: knob.read(name, given.get(name, knob.default)) for name, knob in self.parameters.items()}


@cache
def trends() -> dict[str, Trend]:
    """Return every trend by its name."""
    return {path.stem: _described(path) for path in sorted(_FOLDER.glob("*.sql"))}


def find_trend(name: str) -> Trend:
    """Return a trend. Raises UsageError, with the names that there are, for an unknown one."""
    if name not in trends():
        raise UsageError(f"there is no trend {name!r}: there are {', '.join(trends())}")
    return trends()[name]


def ask(
    connection: duckdb.DuckDBPyConnection,
    trend: Trend,
    since: Moment | None,
    until: Moment | None,
    given: Mapping[str, Any],
) -> pl.DataFrame:
    """Return the rows of a trend whose UTC day (or first day) lies in [since, until).

    Needs a connection to a warehouse; leaves temporary views and macros in it. All history counts towards a row,
    whatever `since` is. Raises UsageError for parameters that cannot be, and for a moment without a time zone.
    """
    values = {"since": _day(since), "until": _day(until), **trend.values(given)}
    if _RATINGS in trend.query:
        for name in (_RATINGS, *_METHODS):
            connection.execute((_FOLDER / "shared" / f"{name}.sql").read_text(encoding="utf-8"))
    return connection.sql(trend.query, params=values).pl()


def _described(path: Path) -> Trend:
    query = path.read_text(encoding="utf-8")
    parameters = {
        name: Parameter(tuple(json.loads(choice) for choice in choices.split(" | ")), meaning)
        for name, choices, meaning in _PARAMETER.findall(query)
    }
    return Trend(path.stem, query.splitlines()[0].removeprefix("-- "), parameters, query)


def _day(moment: Moment | None) -> date | None:
    return None if moment is None else instant(moment).date()
