"""The command explain: every point of a score with its event and reason, or what changed between two times.

Owns the display of an explanation; `reputation/explain.py` computes it.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.boundary.text import amount, escape_text
from pipelines.cli.loads import warn_of_withdrawn
from pipelines.cli.options import chosen_policy, current_settings, instant, time_of, utf8
from pipelines.cli.output import print_line, print_note, print_warning
from pipelines.cli.rows import Format, write
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from pipelines.reputation.policy import Policy
    from pipelines.reputation.policy.levels import Level
    from pipelines.reputation.shown import Shown, ShownChange

_SHOWN = 40
"""Rows of a table; one line sums up the older ones."""
_ALL_TIME = "all_time"
_BY_OPERATOR = """
SELECT event_id, metadata['operator'], metadata['why']
FROM events
WHERE user_id IN (SELECT unnest(?)) AND starts_with(topic_id, 'operator-')
ORDER BY event_time, event_id
"""
_RELATED = {
    "retracted": "retracted by {related}",
    "retraction": "retraction of {related}",
    "retraction stands": "retraction {related} stands",
    "correction": "correction of {related}",
    "no effect": "no effect on {related}",
}
"""How the table shows a reason with the event that it is related to."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whose score to explain, which one, and where the answer goes."""

    user: str
    view: str
    scope: str | None
    form: Format
    output: Path | None

    @property
    def wants_rows(self) -> bool:
        return self.form is not Format.TABLE or self.output is not None

    @property
    def in_view(self) -> str:
        of_view = "" if self.view == _ALL_TIME else f" in {self.view}"
        return of_view if self.scope is None else f"{of_view} with {escape_text(self.scope)}"


def explain(  # noqa: PLR0913, PLR0917 - options of the command line
    user: Annotated[str, typer.Argument(help="The user_id.")],
    as_of: Annotated[
        str | None, typer.Option(help="Explain the score as of a time, ISO 8601 or now (default).")
    ] = None,
    known_at: Annotated[
        str | None,
        typer.Option(help="Use only what was committed before this time; also the default of --as-of."),
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="Show what changed since this time instead.")] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="With --from: the end of the period; now by default.")
    ] = None,
    shown_since: Annotated[
        str | None,
        typer.Option("--shown-from", help="Show why what was shown then differs from what was shown at --shown-to."),
    ] = None,
    shown_until: Annotated[
        str | None, typer.Option("--shown-to", help="With --shown-from: the later moment; now by default.")
    ] = None,
    view: Annotated[
        str, typer.Option(help="The score to explain: all_time, or a window such as last_30_days.")
    ] = _ALL_TIME,
    scope: Annotated[
        str | None, typer.Option(help="Explain the score within a scope of the policy, such as city=berlin.")
    ] = None,
    rater: Annotated[
        str | None,
        typer.Option(help="Show instead through whom the policy trusts this rater of the user, and how far."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="A shipped policy or a policy file; the policy in force by default.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file, or replace it, instead of standard output.")
    ] = None,
) -> None:
    """Explain a user's score event by event, or with --shown-from why what was shown changed.

    --from compares two event times as known now: what changed and what expired. --shown-from compares what was shown
    at two moments: late events, other policies and withdrawals are causes, too. --rater shows the strongest paths of
    trust behind the weights of a rater, under a policy with [raters].
    """
    _refuse_contradictions(
        {"--shown-from": shown_since, "--shown-to": shown_until},
        {"--from": since, "--to": until},
        {"--as-of": as_of, "--known-at": known_at},
        {"--policy": policy, "--scope": scope, "--rater": rater},
    )
    if rater is not None:
        _refuse_parts({"--from": since, "--scope": scope, "--view": None if view == _ALL_TIME else view})
    asked = _Asked(utf8(user), view, None if scope is None else utf8(scope), form, output)
    if shown_since is not None:
        _explain_shown(asked, time_of(shown_since), instant(shown_until))
        return
    known = instant(known_at)
    rules = chosen_policy(policy, known)
    end = instant(until) or instant(as_of) or known or datetime.now(UTC)
    warn_of_withdrawn(known)
    with _lake(asked.user) as connection:
        asked = _by_current_id(connection, asked, known)
        if rater is not None:
            _explain_rater(connection, rules, asked, utf8(rater), end, known)
        elif since is None:
            ledger = _ledger(connection, rules, asked, end, known)
            _require_value(connection, asked, ledger)
            _explain(ledger, asked, end)
            if not asked.wants_rows:
                if asked.view == _ALL_TIME and asked.scope is None:  # levels are of the overall score
                    _print_level(rules.at(end).rules.levels, ledger)
                if rules.at(end).rules.raters is not None:
                    print_note("  --rater NAME says through whom a rater is trusted")
                _print_operators(connection, asked.user, set(ledger["event_id"].drop_nulls()), known)
        else:
            _explain_change(connection, rules, asked, (time_of(since), end))


def _refuse_contradictions(
    shown: dict[str, str | None],
    change: dict[str, str | None],
    moment: dict[str, str | None],
    now: dict[str, str | None],
) -> None:
    """Raise UsageError unless the options ask one question."""
    for first, second in (shown, change):
        if {**shown, **change}[second] is not None and {**shown, **change}[first] is None:
            raise UsageError(f"{second} needs {first}: give the start of the period")
    asked = [" and ".join(options) for options in (shown, change, moment) if any(options.values())]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} cannot be combined with {asked[1]}: use one pair")
    if any(shown.values()) and (others := [option for option, value in now.items() if value is not None]):
        raise UsageError(f"--shown-from uses the policies that were in force: leave out {' and '.join(others)}")


def _refuse_parts(options: dict[str, str | None]) -> None:
    """Raise UsageError for options that select a part of a score: a weight is that of the rater's day everywhere."""
    if given := [option for option, value in options.items() if value is not None]:
        raise UsageError(
            f"--rater is about weights, the same in every part of a score: leave out {' and '.join(given)}"
        )


@contextmanager
def _lake(user: str) -> "Generator[duckdb.DuckDBPyConnection]":
    """Yield a connection with views of the newest snapshot of the lake; name an erased user as the cause of nothing."""
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.refresh import snapshot_of  # noqa: PLC0415
    from pipelines.reputation.known_users import naming_erased  # noqa: PLC0415
    from pipelines.reputation.lake_views import open_lake_views  # noqa: PLC0415

    settings = current_settings()
    snapshot = snapshot_of(open_lake(settings.lake_root), settings)
    with naming_erased(user, lambda: settings), open_lake_views(snapshot) as connection:
        yield connection


def _by_current_id(connection: "duckdb.DuckDBPyConnection", asked: _Asked, known: datetime | None) -> _Asked:
    """Return what is asked under the current user_id of the person; print which user_ids there are, if several."""
    from pipelines.reputation.merged_users import aliases_in  # noqa: PLC0415

    current, *former = aliases_in(connection, known).names(asked.user)
    if former and not asked.wants_rows:
        names = ", ".join(map(escape_text, former))
        print_note(f"{escape_text(current)} is the current user_id of {names}: the answer has the events of all.")
    return replace(asked, user=current)


def _ledger(
    connection: "duckdb.DuckDBPyConnection",
    rules: "Policy",
    asked: _Asked,
    end: datetime,
    known: datetime | None = None,
) -> "pl.DataFrame":
    """Return a user's contributions to a view. Raises KarmalakeError if the user has no event at all."""
    from pipelines.reputation.explain import explain as ledger_of  # noqa: PLC0415
    from pipelines.reputation.known_users import closest_user  # noqa: PLC0415

    ledger = ledger_of(connection, rules, asked.user, end, known)
    if ledger["event_id"].count() == 0:
        when = f"before {_moment(end)}" + (f", committed before {_moment(known)}" if known else "")
        raise KarmalakeError(
            f"the lake holds no event of user {asked.user!r} {when}: check the spelling, or run `karmalake drain` first"
            f"{closest_user(connection, asked.user)}"
        )
    if asked.view == _ALL_TIME and asked.scope is None:
        return ledger
    return ledger_of(connection, rules, asked.user, end, known, asked.view, asked.scope)


def _require_value(connection: "duckdb.DuckDBPyConnection", asked: _Asked, rows: "pl.DataFrame") -> None:
    """Raise KarmalakeError if an explanation has no rows since no event of the user has the value of the scope."""
    from pipelines.reputation.scopes import of_known_value  # noqa: PLC0415

    of_known_value(connection, asked.scope, rows)


def _explain(ledger: "pl.DataFrame", asked: _Asked, end: datetime) -> None:
    if asked.wants_rows:
        write(ledger, asked.form, asked.output)
        return
    rows = ledger.rows(named=True)
    shown = rows[-_SHOWN:]
    if older := rows[: len(rows) - len(shown)]:
        print_line(
            f"... {len(older):,} older rows add up to {_number(older[-1]['score'])}; --format csv has all of them"
        )
    print_contributions(shown)
    events = ledger["event_time"].count()
    score = f"a score of {_number(_total(ledger))}{asked.in_view} as of {_moment(end)}"
    print_line(f"\n{escape_text(asked.user)}: {_add_up(events)} {score}")


def _add_up(events: int) -> str:
    return f"{amount(events, 'contribution')} {'adds' if events == 1 else 'add'} up to"


def print_contributions(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of `reputation/explain.py` as a table, with levels if there are any."""
    columns = ["time", "event", "action", "points", "rating", "earned", "score", "reason", "policy"]
    cells = [_contribution(row) for row in rows]
    if any(row["level"] for row in rows):
        columns.append("level")
        cells = [[*each, row["level"] or "-"] for each, row in zip(cells, rows, strict=True)]
    if any(row.get("prior") for row in rows):
        columns.append("prior")
        cells = [[*each, _number(row["prior"])] for each, row in zip(cells, rows, strict=True)]
    _print(columns, cells, numbers=range(3, 7))


def last_level(ledger: "pl.DataFrame") -> str | None:
    """Return the level after the last contribution of an explanation; None below the first one."""
    return ledger.drop_nulls("event_time")["level"].to_list()[-1]


def _print_level(levels: "Mapping[str, Level]", ledger: "pl.DataFrame") -> None:
    """Print the level after the last event, and what the next one needs; nothing without levels, or if it is hidden."""
    if not levels or "hidden" in ledger["reason"]:
        return
    names = [None, *levels]
    held = last_level(ledger)
    sentence = f"  level: {held or 'none'}"
    if (number := names.index(held) + 1) < len(names):
        name = list(levels)[number - 1]
        sentence += f"; {name} needs {_number(levels[name].at - Decimal(_total(ledger)))} more"
    print_line(sentence)


def _print_operators(
    connection: "duckdb.DuckDBPyConnection", user: str, shown: set[str], known: datetime | None
) -> None:
    """Print who made the events by an operator, and who merged the user's accounts, with the reasons."""
    from pipelines.reputation.merged_users import aliases, merges_in  # noqa: PLC0415

    merges = merges_in(connection, known)
    names = aliases(merges).names(user)
    for merge in merges:
        if merge.user_id in names:
            verb = "renamed to" if merge.kind == "rename" else "merged into"
            done = f"{_moment(merge.merged_at)}  {merge.user_id} {verb} {merge.merged_into} by {merge.operator}"
            print_line(f"  {escape_text(f'{done}: {merge.why}')}")
    for event_id, operator, why in connection.execute(_BY_OPERATOR, [names]).fetchall():
        if event_id in shown:
            print_line(f"  {escape_text(event_id)} by {escape_text(operator)}: {escape_text(why)}")


def _explain_rater(
    connection: "duckdb.DuckDBPyConnection",
    rules: "Policy",
    asked: _Asked,
    rater: str,
    end: datetime,
    known: datetime | None,
) -> None:
    from pipelines.reputation.trust_paths import trust_paths  # noqa: PLC0415

    paths = trust_paths(connection, rules, asked.user, rater, end, known)
    if asked.wants_rows:
        write(paths, asked.form, asked.output)
        return
    rows = [
        [f"{day}", f"{weight:f}", f"{part:f}", escape_text(path or "other paths, own trust of a seed, or the minimum")]
        for day, weight, part, path in paths.rows()
    ]
    _print(["day", "weight", "part", "path of trust"], rows, numbers=range(1, 3))
    print_line(f"\nratings of {asked.user} by {rater}: the parts of a day add up to the weight")


def _explain_change(
    connection: "duckdb.DuckDBPyConnection", rules: "Policy", asked: _Asked, span: tuple[datetime, datetime]
) -> None:
    from pipelines.reputation.explain import explain_change  # noqa: PLC0415

    if span[0] >= span[1]:
        raise UsageError(f"--from {_moment(span[0])} is not before --to {_moment(span[1])}: swap them")
    after = _total(_ledger(connection, rules, asked, span[1]))
    changes = explain_change(connection, rules, asked.user, *span, asked.view, asked.scope)
    _require_value(connection, asked, changes)
    if asked.wants_rows:
        write(changes, asked.form, asked.output)
        return
    rows = changes.rows(named=True)
    if len(rows) > _SHOWN:
        print_line(f"... {len(rows) - _SHOWN:,} older changes are not shown; --format csv has all of them")
    columns = ["time", "event", "action", "before", "after", "change", "reason before", "reason"]
    _print(columns, [_change(row) for row in rows[-_SHOWN:]], numbers=range(3, 6))
    total = sum((row["change"] for row in rows), Decimal(0))
    print_line(
        f"\n{escape_text(asked.user)}{asked.in_view}: {_number(after - total)} as of {_moment(span[0])}, "
        f"{_number(after)} as of {_moment(span[1])}: {_signed(total)} by {amount(len(rows), 'change')}"
    )
    for kind, (count, points) in _kinds(rows).items():
        print_line(f"  {kind}: {count:,}, {_signed(points)}")


def _explain_shown(asked: _Asked, since: datetime, until: datetime | None) -> None:
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415
    from pipelines.reputation.shown import explain_shown  # noqa: PLC0415

    settings, now = current_settings(), datetime.now(UTC)
    unrecorded = partial(load_policy, settings.reputation.policy)
    if until is not None and until > now:
        raise UsageError(f"--shown-to {_moment(until)} is in the future: nothing has been shown then")
    with _lake(asked.user) as connection:
        _by_current_id(connection, asked, until)
        change = explain_shown(connection, asked.user, since, until or now, unrecorded, settings, asked.view)
    if change.unread:
        print_warning(
            f"{amount(change.unread, 'event')} that the lake had then, withdrawn since, whose files are deleted: what "
            "was shown differs from this answer by those of this user; `karmalake loads list` shows their loads"
        )
    if asked.wants_rows:
        write(change.causes, asked.form, asked.output)
        return
    _print_shown(change, settings.reputation.derive_interval_seconds)


def _print_shown(change: "ShownChange", interval_seconds: float) -> None:
    rows = change.causes.rows(named=True)
    if len(rows) > _SHOWN:
        print_line(f"... {len(rows) - _SHOWN:,} older changes are not shown; --format csv has all of them")
    columns = ["time", "event", "action", "committed", "before", "after", "change", "cause", "by"]
    _print(columns, [_cause(row) for row in rows[-_SHOWN:]], numbers=range(4, 7))
    total = sum((row["change"] for row in rows), Decimal(0))
    print_line(f"\n{escape_text(change.user_id)}, {change.view}: {_signed(total)} by {amount(len(rows), 'change')}")
    for row in change.summary().iter_rows(named=True):
        print_line(f"  {row['cause']}: {row['changes']:,}, {_signed(row['change'])}")
    print_line("")
    _print(["shown", "before", "after"], _sides(change.before, change.after), numbers=range(1, 3))
    print_note(
        "The changes add up to the score, not to averages. Shown is what a refresh at that moment publishes: "
        f"`karmalake stream` refreshes at least every {interval_seconds:g} s."
    )


def _sides(before: "Shown", after: "Shown") -> list[list[str]]:
    """Return what was shown at both moments, a row for each number."""
    numbers = before.numbers | after.numbers
    return [
        ["at", _moment(before.moment), _moment(after.moment)],
        ["lake version", str(before.lake_version), str(after.lake_version)],
        ["policy", before.policy, after.policy],
        ["status", before.status or "-", after.status or "-"],
        *([["level", before.level or "-", after.level or "-"]] if before.level or after.level else []),
        *([name, _number(before.numbers.get(name)), _number(after.numbers.get(name))] for name in numbers),
    ]


def _kinds(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[int, Decimal]]:
    """Return the number and the sum of the changes of each kind."""
    kinds: dict[str, tuple[int, Decimal]] = {}
    for row in rows:
        before, after = row["reason_before"], row["reason"]
        if row["event_time"] is None:
            kind = before or after
        elif before is None:
            kind = "new"
        else:
            kind = "same reason, other amount" if before == after else f"{after or 'gone'}, was {before}"
        count, points = kinds.get(kind, (0, Decimal(0)))
        kinds[kind] = (count + 1, points + row["change"])
    return kinds


def _contribution(row: dict[str, Any]) -> list[str]:
    return [
        *_event(row),
        _number(row["points"]),
        _rating(row),
        _signed(row["earned"]),
        _number(row["score"]),
        _reason(row) + (f" ({row['rule']})" if row["rule"] else ""),
        row["policy_version"] or "-",
    ]


def _rating(row: dict[str, Any]) -> str:
    """Return the rating of a contribution, with its weight where ratings have some."""
    rating, weight = _number(row["rating"]), row.get("weight")
    return rating if weight is None else f"{rating} x {_number(weight)}"


def _change(row: dict[str, Any]) -> list[str]:
    amounts = [_number(row["earned_before"]), _number(row["earned"]), _signed(row["change"])]
    return [*_event(row), *amounts, row["reason_before"] or "-", _reason(row) if row["reason"] else "-"]


def _reason(row: dict[str, Any]) -> str:
    """Return the reason of a contribution, with the event that it is related to."""
    if row["related_event_id"] is None:
        return row["reason"]
    return _RELATED.get(row["reason"], "{reason}").format(
        reason=row["reason"], related=escape_text(row["related_event_id"])
    )


def _cause(row: dict[str, Any]) -> list[str]:
    committed = _moment(row["committed"]) if row["committed"] else "-"
    amounts = [_number(row["earned_before"]), _number(row["earned"]), _signed(row["change"])]
    return [*_event(row), committed, *amounts, row["cause"], escape_text(row["caused_by"] or "-")]


def _event(row: dict[str, Any]) -> list[str]:
    number = f" #{row['emission_no'] + 1}" if row["emission_no"] else ""
    time = _moment(row["event_time"]) if row["event_time"] else "-"
    return [time, escape_text(row["event_id"] or "-") + number, escape_text(row["action_type"] or "-")]


def _print(columns: list[str], rows: list[list[str]], numbers: range) -> None:
    """Print one line per row, never wrapped: event ids are long, and lines are searched with grep."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        cells = zip(row, widths, strict=True)
        line = (cell.rjust(width) if i in numbers else cell.ljust(width) for i, (cell, width) in enumerate(cells))
        print_line("  ".join(line).rstrip())


def _total(ledger: "pl.DataFrame") -> Decimal:
    """Return the score that contributions add up to."""
    return ledger["score"].to_list()[-1] if ledger.height else Decimal(0)


def _number(value: Decimal | float | None) -> str:
    """Return a number with up to six decimals, the precision of points."""
    if value is None:
        return "-"
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _signed(value: Decimal | float) -> str:
    text = _number(value)
    return text if text.startswith("-") or text == "0" else f"+{text}"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
