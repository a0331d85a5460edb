"""The command explain: every point of a score with its event and reason, or what changed between two times.

Owns the display of an explanation; `reputation/explain.py` computes it.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.boundary.text import escape_text
from pipelines.cli.loads import warn_of_withdrawn
from pipelines.cli.options import chosen_policy, current_settings, instant, utf8
from pipelines.cli.output import print_line
from pipelines.cli.rows import Format, write
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from pipelines.reputation.policy import Policy

_SHOWN = 40
"""Rows of a table; one line sums up the older ones."""
_BY_OPERATOR = """
SELECT event_id, metadata['operator'], metadata['why']
FROM events
WHERE user_id = ? AND topic = 'operator'
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


def explain(
    user: Annotated[str, typer.Argument(help="The user_id.")],
    as_of: Annotated[
        str | None, typer.Option(help="Explain the score as of this time, ISO 8601; now by default.")
    ] = None,
    known_at: Annotated[
        str | None,
        typer.Option(help="Use only what was committed before this time; also the default of --as-of."),
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="Show what changed since this time instead.")] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="With --from: the end of the period; now by default.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="A shipped policy or a policy file; the policy in force by default.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
) -> None:
    """Explain a user's all-time score event by event, or with --from what changed and what expired since then."""
    if since is None and until is not None:
        raise UsageError("--to needs --from: give the start of the period")
    if since is not None and (as_of is not None or known_at is not None):
        raise UsageError("--from and --to cannot be combined with --as-of and --known-at: use one pair")
    known = instant(known_at)
    rules = chosen_policy(policy, known)
    end = instant(until) or instant(as_of) or known or datetime.now(UTC)
    user = utf8(user)
    warn_of_withdrawn(known)
    with _lake() as connection:
        if since is None:
            ledger = _ledger(connection, rules, user, end, known)
            _explain(ledger, user, end, form, output)
            if form is Format.TABLE and output is None:
                _print_operators(connection, user, set(ledger["event_id"]))
        else:
            _explain_change(connection, rules, user, (instant(since) or end, end), form, output)


@contextmanager
def _lake() -> "Generator[duckdb.DuckDBPyConnection]":
    """Yield a connection with views of the newest snapshot of the lake."""
    from pipelines.lake.commit_log import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation.lake_views import open_lake_views  # noqa: PLC0415

    with open_lake_views(take_snapshot(open_lake(current_settings().lake_root))) as connection:
        yield connection


def _ledger(
    connection: "duckdb.DuckDBPyConnection", rules: "Policy", user: str, end: datetime, known: datetime | None = None
) -> "pl.DataFrame":
    """Return a user's contributions. Raises KarmalakeError if the user has no event."""
    from pipelines.reputation.explain import explain as ledger_of  # noqa: PLC0415

    ledger = ledger_of(connection, rules, user, end, known)
    if ledger["event_id"].count() == 0:
        when = f"before {_moment(end)}" + (f", committed before {_moment(known)}" if known else "")
        raise KarmalakeError(
            f"the lake holds no event of user {user!r} {when}: check the spelling, or run `karmalake drain` first"
        )
    return ledger


def _explain(ledger: "pl.DataFrame", user: str, end: datetime, form: Format, output: Path | None) -> None:
    if form is not Format.TABLE or output is not None:
        write(ledger, form, output)
        return
    rows = ledger.rows(named=True)
    shown = rows[-_SHOWN:]
    if older := rows[: len(rows) - len(shown)]:
        print_line(
            f"... {len(older):,} older rows add up to {_number(older[-1]['score'])}; --format csv has all of them"
        )
    columns = ["time", "event", "action", "points", "rating", "earned", "score", "reason", "policy"]
    _print(columns, [_contribution(row) for row in shown], numbers=range(3, 7))
    events = ledger["event_id"].count()
    score = f"a score of {_number(rows[-1]['score'])} as of {_moment(end)}"
    print_line(f"\n{escape_text(user)}: {events:,} contributions add up to {score}")


def _print_operators(connection: "duckdb.DuckDBPyConnection", user: str, shown: set[str | None]) -> None:
    """Print who made the events by an operator, and why."""
    for event_id, operator, why in connection.execute(_BY_OPERATOR, [user]).fetchall():
        if event_id in shown:
            print_line(f"  {escape_text(event_id)} by {escape_text(operator)}: {escape_text(why)}")


def _explain_change(
    connection: "duckdb.DuckDBPyConnection",
    rules: "Policy",
    user: str,
    span: tuple[datetime, datetime],
    form: Format,
    output: Path | None,
) -> None:
    from pipelines.reputation.explain import explain_change  # noqa: PLC0415

    if span[0] >= span[1]:
        raise UsageError(f"--from {_moment(span[0])} is not before --to {_moment(span[1])}: swap them")
    after = _ledger(connection, rules, user, span[1])["score"].to_list()[-1]
    changes = explain_change(connection, rules, user, *span)
    if form is not Format.TABLE or output is not None:
        write(changes, form, output)
        return
    rows = changes.rows(named=True)
    if len(rows) > _SHOWN:
        print_line(f"... {len(rows) - _SHOWN:,} older changes are not shown; --format csv has all of them")
    columns = ["time", "event", "action", "before", "after", "change", "reason before", "reason"]
    _print(columns, [_change(row) for row in rows[-_SHOWN:]], numbers=range(3, 6))
    total = sum((row["change"] for row in rows), Decimal(0))
    print_line(
        f"\n{escape_text(user)}: {_number(after - total)} as of {_moment(span[0])}, "
        f"{_number(after)} as of {_moment(span[1])}: {_signed(total)} by {len(rows):,} changes"
    )
    for kind, (count, amount) in _kinds(rows).items():
        print_line(f"  {kind}: {count:,}, {_signed(amount)}")


def _kinds(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[int, Decimal]]:
    """Return the number and the sum of the changes of each kind."""
    kinds: dict[str, tuple[int, Decimal]] = {}
    for row in rows:
        before, after = row["reason_before"], row["reason"]
        if row["event_id"] is None:
            kind = before or after
        elif before is None:
            kind = "new"
        else:
            kind = "same reason, other amount" if before == after else f"{after or 'gone'}, was {before}"
        count, amount = kinds.get(kind, (0, Decimal(0)))
        kinds[kind] = (count + 1, amount + row["change"])
    return kinds


def _contribution(row: dict[str, Any]) -> list[str]:
    return [
        *_event(row),
        _number(row["points"]),
        _number(row["rating"]),
        _signed(row["earned"]),
        _number(row["score"]),
        _reason(row) + (f" ({row['rule']})" if row["rule"] else ""),
        row["policy_version"] or "-",
    ]


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
