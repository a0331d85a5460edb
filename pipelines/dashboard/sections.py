"""The sections of the page, composed of tables and charts. Missing data is a message, not an error."""

from collections.abc import Callable
from typing import Any

import marimo as mo
import polars as pl

from pipelines.boundary.text import amount
from pipelines.dashboard import charts, explained, queries
from pipelines.dashboard import health as state
from pipelines.dashboard.table import number, paragraph, table, text
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings

_MAX_ROWS = 500
"""Maximum rows of a user's history on the page."""
_MAX_CHANGES = 50
"""Maximum published changes of a user on the page."""
_ANY_REASON = "any"
_NAMED_KEYS = 5
"""Maximum metadata keys without a column that are named."""
_MAX_KEY = 40
"""Characters of such a key, which a producer chooses."""


def heading(warehouse: Warehouse) -> mo.Html:
    """Return the title, and the version of the data on the page."""
    info = warehouse.info
    reflected = (
        f"As of {info.as_of:%Y-%m-%d %H:%M:%S} UTC, lake version {info.lake_version}, policy {info.policy.name} "
        f"{info.policy_version}. Reload the page for newer data."
    )
    return mo.vstack([mo.md("# Reputation"), paragraph(reflected)])


def warning(sentence: str) -> mo.Html:
    """Return a warning about content that cannot be shown."""
    return mo.callout(paragraph(sentence), kind="warn")


def trends(warehouse: Warehouse, period: queries.Period, chooser: object) -> mo.Html:
    """Return activity by day or week (`chooser` is the control), ratings, and the distribution of points."""
    drawn = (
        _chart(charts.activity, queries.activity(warehouse, period), f"No {period} is complete yet."),
        _chart(charts.rating, queries.rating(warehouse), "There are no ratings yet."),
        _chart(charts.distribution, queries.distribution(warehouse), "No user has points yet."),
    )
    return mo.vstack([mo.md("## Trends"), chooser, *drawn])


def leaderboard(warehouse: Warehouse) -> mo.Html:
    """Return the top users, of all time and recently."""
    tables = [
        mo.vstack([mo.md(f"### {_title(view)}"), table(queries.leaders(warehouse, view))])
        for view in queries.shown_views(warehouse)
    ]
    return mo.vstack([mo.md("## Leaderboard"), *tables])


def user(warehouse: Warehouse, user_id: str, history: pl.DataFrame, chooser: object) -> mo.Html:
    """Return one user's standing, score over time and events; `history` as from `queries.event_history`."""
    top = _user_top(chooser)
    current, *former = warehouse.user_ids(user_id)
    known = warehouse.reputation(current)
    if known.is_empty():
        return mo.vstack([*top, warning(f"User {user_id!r} has no score yet.")])
    line = charts.score(queries.scores_over_time(history), queries.shown_scores(warehouse, user_id))
    if former:
        top.append(warning(f"{current!r} is the current user_id of {', '.join(map(repr, former))}."))
    drawn = [_drawn(line), _drawn(charts.timeline(queries.timeline(history))), *_changes(warehouse, current)]
    return mo.vstack([*top, _summary(warehouse, known.row(0, named=True)), *drawn])


def no_user(problem: str, chooser: object) -> mo.Html:
    """Return why there is no history, below the control that names the user: it is there to be corrected."""
    return mo.vstack([*_user_top(chooser), warning(problem)])


def _user_top(chooser: object) -> list[Any]:
    return [mo.md("## User history"), chooser]


def _changes(warehouse: Warehouse, user_id: str) -> list[mo.Html]:
    """Return the newest published changes of a user, if the feed has any."""
    rows = queries.changes(warehouse, user_id, _MAX_CHANGES)
    return [mo.md("### Published changes"), table(rows)] if rows.height else []


def filters(history: pl.DataFrame) -> mo.ui.dictionary:
    """Return the controls `days` and `reason` of a history with at least one row; at first they keep every row."""
    days = history["event_time"].dt.date().to_list()
    counts = history.group_by("reason").len().sort("reason")
    reasons = {_ANY_REASON: None} | {f"{reason} ({rows:,})": reason for reason, rows in counts.rows()}
    return mo.ui.dictionary(
        {
            "days": mo.ui.date_range(min(days), max(days), label="Days (UTC)"),
            "reason": mo.ui.dropdown(reasons, value=_ANY_REASON, allow_select_none=False, label="Reason"),
        }
    )


def explanation(warehouse: Warehouse, user_id: str, history: pl.DataFrame, chosen: mo.ui.dictionary) -> mo.Html:
    """Return the rows of a history that the controls of `filters` keep, newest first, with their metadata."""
    picked: dict[str, Any] = chosen.value
    rows = explained.matching(history, picked["days"], picked["reason"]).reverse()
    keys = explained.metadata_keys(warehouse, user_id)
    listed = explained.with_metadata(warehouse, user_id, rows.head(_MAX_ROWS), keys[: explained.MAX_KEYS])
    controls = mo.hstack([chosen["days"], chosen["reason"]], justify="start", wrap=True)
    body = [table(listed.drop(explained.unused(history))), *_further(keys[explained.MAX_KEYS :])] if rows.height else []
    caption = paragraph(_caption(rows.height, history.height))
    return mo.vstack([mo.md("### Explanation of the score"), controls, caption, *body])


def health(warehouse: Warehouse, settings: Settings) -> mo.Html:
    """Return staleness, lag, dead letters and latest commits; the lag is loaded once the broker responds."""
    dead_letters = queries.dead_letters(warehouse)
    rejected = table(dead_letters) if dead_letters.height else mo.md("No records were rejected.")
    return mo.vstack(
        [
            mo.md("## Health"),
            *(mo.md("### Staleness"), paragraph(state.staleness(settings))),
            *(mo.md("### Lag"), mo.lazy(lambda: _lag(settings), show_loading_indicator=True)),
            *(mo.md("### Dead letters"), rejected),
            *(mo.md("### Latest commits"), table(queries.commits(warehouse))),
        ]
    )


def _lag(settings: Settings) -> mo.Html:
    sentence, partitions = state.lag(settings)
    return mo.vstack([paragraph(sentence), *([table(partitions)] if partitions.height else [])])


def _summary(warehouse: Warehouse, known: dict[str, Any]) -> mo.Html:
    rank, users = queries.user_rank(warehouse, known["user_id"])
    stats = [
        mo.stat(
            number(known[f"{view}_score"]) or "none",
            _title(view),
            amount(known[f"{view}_events"], "counted event"),
            bordered=True,
        )
        for view in queries.shown_views(warehouse)
    ]
    average, ratings = known["all_time_rating_average"], known["all_time_rating_count"]
    rated = mo.stat(number(average) or "none", "Rating", amount(ratings, "rating"), bordered=True)
    if "level" in known:
        stats.append(mo.stat(known["level"] or "none", "Level", _next_level(known), bordered=True))
    status = mo.stat(known["status"], "Status", f"rank {rank:,} of {users:,}", bordered=True)
    return mo.hstack([*stats, rated, status], justify="start", wrap=True)


def _next_level(known: dict[str, Any]) -> str:
    """Return what the next level needs; empty at the highest."""
    return f"{known['next_level']} needs {number(known['points_to_next_level'])} more" if known["next_level"] else ""


def _caption(kept: int, rows: int) -> str:
    if not kept:
        return "No event matches: choose other days, or another reason."
    of = f"{kept:,}" if kept == rows else f"{kept:,} of {rows:,}"
    if kept <= _MAX_ROWS:
        return f"{of} contribution{'' if rows == 1 else 's'}, newest first; times are UTC."
    newest = f"The newest {_MAX_ROWS:,} of {kept:,} contributions; times are UTC."
    return f"{newest} Choose fewer days to see others; `karmalake explain` lists all."


def _further(keys: list[str]) -> list[mo.Html]:
    """Return a sentence about the metadata keys that have no column, if there are any."""
    if not keys:
        return []
    more = f" and {len(keys) - _NAMED_KEYS:,} more" if len(keys) > _NAMED_KEYS else ""
    named = ", ".join(key[:_MAX_KEY] for key in keys[:_NAMED_KEYS])
    return [paragraph(f"Metadata without a column: {named}{more}.")]


def _title(view: str) -> str:
    return view.replace("_", " ").capitalize()


def _chart(draw: Callable[[pl.DataFrame], charts.TitledChart], rows: pl.DataFrame, absent: str) -> mo.Html:
    return _drawn(draw(rows)) if rows.height else mo.md(absent)


def _drawn(titled: charts.TitledChart) -> mo.Html:
    return mo.vstack([mo.Html(f"<strong>{text(titled.title)}</strong>"), titled.chart])
