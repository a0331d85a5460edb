"""Running the cases of a policy: the steps of every derivation, in memory, over the events of each case.

The events pass the checks of the contract first. No lake is needed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from pipelines.boundary.database import connect
from pipelines.boundary.mistakes import Lines
from pipelines.boundary.toml import did_you_mean, line_of
from pipelines.contract.decode import validate
from pipelines.contract.parsing import Parsed
from pipelines.contract.schema import EVENT, RECORD
from pipelines.errors import PolicyError, UsageError
from pipelines.reputation.cases import Case, CaseEvent, Expected, load_cases, policy_of
from pipelines.reputation.explain import explain
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.numbers import MICRO_DIGITS, decimals
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.scopes import find_value
from pipelines.reputation.scores import scores
from pipelines.reputation.uncounted import explain_uncounted
from pipelines.settings import ContractSettings

_NONE = "none"
"""How a file writes that there is no value, such as a mean of no ratings."""
_LEVELS = {"level", "next_level"}
"""The columns with names of levels."""
_UNEXPECTED = """(
    SELECT reason, action_type, 1 AS events
    FROM contribution
    WHERE is_first AND NOT list_contains(getvariable('expected_events'), event_id)
)"""
"""Where `explain_uncounted` counts the events of a case."""
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
"""The clock of the contract's check: a case may be about the future."""

_Within = dict[tuple[str, str], dict[str, Any]]
"""Rows of scopes by user and value, such as ("ann", "city=berlin")."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a case expects of a user and did not get, both as a file of cases writes them."""

    user_id: str
    name: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The outcome of a case."""

    name: str
    line: int
    """The line of the case in its file."""
    as_of: datetime
    differences: tuple[Difference, ...]
    contributions: dict[str, pl.DataFrame]
    """The rows of `explain` for each user with a difference."""
    uncounted: tuple[str, ...]
    """Sentences about events that no rule fits, except those whose reason the case expects."""

    @property
    def passed(self) -> bool:
        """Whether everything was as expected."""
        return not self.differences


def run_cases(path: Path) -> list[CaseResult]:
    """Run the cases of a file under the policy beside it, in the order of the file.

    Raises PolicyError for a mistake in either file, naming file, line and remedy: also for an event that ingest would
    reject, and for names of columns, levels, users, events or values of scopes that nothing in the case has.
    """
    if not policy_of(path).is_file():
        raise PolicyError(f"{path} has no policy beside it: there is no {policy_of(path)}")
    policy = load_policy(policy_of(path))
    cases, lines = load_cases(path)
    with connect() as connection:
        return [_Run(connection, policy, case, path, lines, number).result() for number, case in enumerate(cases)]


@dataclass(frozen=True, slots=True)
class _Run:
    connection: duckdb.DuckDBPyConnection
    policy: Policy
    case: Case
    path: Path
    lines: Lines
    number: int

    def result(self) -> CaseResult:
        self.connection.register("events", self._events())
        frame = scores(self.connection, self.policy, self.case.as_of)
        uncounted = self._uncounted()
        within = self._within()
        self._require_known_names(frame.columns[1:])
        rows = {row["user_id"]: row for row in frame.rows(named=True)}
        expected = self.case.expect.items()
        found = [each for user, what in expected for each in self._differences(user, what, rows.get(user, {}), within)]
        ledgers = {each.user_id: self._ledger(each.user_id) for each in found}
        line = line_of(("cases", str(self.number)), self.lines) or 1
        return CaseResult(self.case.name, line, self.case.as_of, tuple(found), ledgers, tuple(uncounted))

    def _uncounted(self) -> list[str]:
        """Return what `explain_uncounted` says of the case's events: a misspelt action earns nothing, and may pass."""
        expected = [event_id for each in self.case.expect.values() for event_id in each.reasons]
        self.connection.execute("SET VARIABLE expected_events = CAST(? AS VARCHAR[])", [expected])
        return explain_uncounted(self.connection, self.policy.at(self.case.as_of), _UNEXPECTED)

    def _events(self) -> pa.Table:
        events = self.case.all_events()
        records = _records(events)
        parsed = Parsed(pa.Table.from_pylist(list(map(_columns, events)), EVENT).combine_chunks(), {})
        decoded = validate(records, parsed, ContractSettings(strict_keys=False), _LATEST)
        for offset, detail in zip(*(decoded.rejected[name].to_pylist() for name in ("offset", "detail")), strict=True):
            raise PolicyError(self._at(("events",), f"{events[offset].event_id}: {detail}"))
        return decoded.events

    def _require_known_names(self, columns: list[str]) -> None:
        """Raise PolicyError for a name that neither the case nor the policy has: its value would always be none."""
        for path, name, known, problem in self._names(columns):
            if name not in known:
                raise PolicyError(self._at(("expect", *path), f"{problem}{did_you_mean(name, known)}"))

    def _names(self, columns: list[str]) -> Iterator[tuple[tuple[str, ...], str, list[str], str]]:
        """Yield the place of each name in the expectations, the name, what it may be, and what is wrong otherwise."""
        rules, events = [each.rules for each in self.policy.at(self.case.as_of).editions], self.case.all_events()
        texts = [text for event in events for text in event.metadata.values()]
        users, ids = [*(event.user_id for event in events), *texts], [event.event_id for event in events]
        values = [*texts, *(scope.default for each in rules for scope in each.scopes.values() if scope.default)]
        of_time = [name for each in rules for name in each.time]
        levels = [_NONE, *(name for each in rules for name in each.levels)]
        for user, expected in self.case.expect.items():
            yield (user,), user, users, "is a user whom no event of the case names"
            for name, value in (expected.model_extra or {}).items():
                known = [*columns, *Expected.model_fields]
                yield (user, name), name, known, "is not a column of `reputation` under this policy"
                if name in _LEVELS:
                    yield (user, name), str(value), levels, f"{value} is not a level of this policy"
            for key, by_event in {"reasons": expected.reasons, "earned": expected.earned}.items():
                for name in by_event:
                    yield (user, key, name), name, ids, "is not an event of the case"
            for name in expected.time:
                yield (user, "time", name), name, of_time, "is not a rule of [time] in this policy"
            for scope in expected.scopes:
                value = scope.partition("=")[2]
                yield (user, "scopes", scope), value, values, f"{value} is in no event of the case"

    def _within(self) -> _Within:
        """Return the rows of every scope that the case asks for, each scope computed once."""
        asked = [(user, scope) for user, expected in self.case.expect.items() for scope in expected.scopes]
        frames = {name: self._scope(name) for name in dict.fromkeys(self._name_of(*each) for each in asked)}
        for user, scope in asked:
            self._require_columns_of_scope(user, scope, frames[scope.partition("=")[0]].columns)
        return {
            (row["user_id"], f"{name}={row['value']}"): row
            for name, frame in frames.items()
            for row in frame.rows(named=True)
        }

    def _scope(self, name: str) -> pl.DataFrame:
        return scores(self.connection, self.policy, self.case.as_of, scope=name)

    def _name_of(self, user: str, scope: str) -> str:
        try:
            return find_value(self.policy.at(self.case.as_of), scope)[0]
        except UsageError as error:
            raise PolicyError(self._at(("expect", user, "scopes", scope), str(error))) from None

    def _require_columns_of_scope(self, user: str, scope: str, columns: list[str]) -> None:
        table = f"`reputation_by_{scope.partition('=')[0]}`"
        for name in self.case.expect[user].scopes[scope]:
            if name not in columns:
                problem = f"is not a column of {table} under this policy{did_you_mean(name, columns)}"
                raise PolicyError(self._at(("expect", user, "scopes", scope, name), problem))

    def _at(self, path: tuple[str, ...], problem: str) -> str:
        path = ("cases", str(self.number), *path)
        return f"{self.path}:{line_of(path, self.lines) or 1}: {'.'.join(path)}: {problem}"

    def _differences(self, user: str, expected: Expected, row: dict[str, Any], within: _Within) -> Iterator[Difference]:
        for name, value in (expected.model_extra or {}).items():
            yield from _compare(user, name, value, row.get(name))
        for scope, columns in expected.scopes.items():
            in_scope = within.get((user, scope), {})
            for name, value in columns.items():
                yield from _compare(user, f'scopes."{scope}".{name}', value, in_scope.get(name))
        if expected.reasons or expected.earned or expected.time:
            ledger = self._ledger(user)
            reasons, earned = _by_event(ledger)
            for event_id, reason in expected.reasons.items():
                yield from _compare(user, f"reasons.{event_id}", reason, reasons.get(event_id))
            for event_id, points in expected.earned.items():
                yield from _compare(user, f"earned.{event_id}", points, earned.get(event_id))
            for name, points in expected.time.items():
                yield from _compare(user, f"time.{name}", points, _of_time(ledger, name))

    def _ledger(self, user: str) -> pl.DataFrame:
        return explain(self.connection, self.policy, user, self.case.as_of)


def _records(events: list[CaseEvent]) -> pa.Table:
    """Return a record (RECORD columns) for each event, in their order, on the bus when it happened."""
    rows = [
        {
            "topic_id": "cases",
            "topic": "cases",
            "topic_partition": 0,
            "offset": offset,
            "bus_time": event.timestamp,
            "value": b"",
        }
        for offset, event in enumerate(events)
    ]
    return pa.Table.from_pylist(rows, RECORD).combine_chunks()


def _columns(event: CaseEvent) -> dict[str, Any]:
    """Return the EVENT columns of an event."""
    fields = event.model_dump(include={"event_id", "user_id", "action_type"})
    return {**fields, "event_time": event.timestamp, "metadata": list(event.metadata.items())}


def _by_event(ledger: pl.DataFrame) -> tuple[dict[str, str], dict[str, Decimal]]:
    """Return the reasons and the points earned by event_id; those of several emissions are joined and added."""
    emissions = ledger.filter(pl.col("event_id").is_not_null()).group_by("event_id", maintain_order=True)
    rows = emissions.agg(pl.col("reason").unique(maintain_order=True), pl.col("earned").sum()).rows()
    return {key: ", ".join(reasons) for key, reasons, _ in rows}, {key: Decimal(earned) for key, _, earned in rows}


def _of_time(ledger: pl.DataFrame, name: str) -> Decimal:
    """Return the points that a rule of `[time]` earned in all."""
    is_of_rule = pl.col("event_id").is_null() & (pl.col("action_type") == name)
    return Decimal(ledger.filter(is_of_rule)["earned"].sum())


def _compare(user: str, name: str, expected: int | Decimal | str, got: Any) -> Iterator[Difference]:
    if not _equal(expected, got):
        yield Difference(user, name, _written(expected), _written(got))


def _equal(expected: int | Decimal | str, got: Any) -> bool:
    """Return whether a value is as expected: a float to six digits after the point, or to more if more are written."""
    if got is None:
        return expected == _NONE
    if isinstance(got, float) and not isinstance(expected, str):
        digits = max(MICRO_DIGITS, decimals(Decimal(expected)))
        return round(Decimal(repr(got)), digits) == expected
    return expected == got


def _written(value: Any) -> str:
    """Return a value as a file of cases writes it."""
    match value:
        case None:
            return f'"{_NONE}"'
        case Decimal():
            return f"{value.normalize():f}"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)
