"""The sections of the page, composed of tables and charts. Missing data is a message, not an error."""

from collections.abc import Callable
from typing import Any

import altair as alt
import marimo as mo
import polars as pl

from pipelines.dashboard import charts, queries
from pipelines.dashboard import health as state
from pipelines.dashboard.table import paragraph, table
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings

_EXPLAINED = ("event_time", "action_type", "rating", "points", "reason", "rule", "earned", "score")
_MAX_EVENTS = 500
"""Maximum rows of a user's history on the page."""


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


def user(warehouse: Warehouse, user_id: str, chooser: object) -> mo.Html:
    """Return one user's rank, score over time, events, and an explanation of every point."""
    top = [mo.md("## User history"), chooser]
    known = warehouse.reputation(user_id)
    if known.is_empty():
        return mo.vstack([*top, warning(f"There is no user {user_id!r}.")])
    history = queries.event_history(warehouse, user_id)
    listed = history.reverse().select(*_EXPLAINED)
    why = [mo.md("### Explanation of the score"), paragraph(_caption(listed.height)), table(listed.head(_MAX_EVENTS))]
    line = charts.score(queries.scores_over_time(history), queries.shown_scores(warehouse, user_id))
    drawn = [line, charts.timeline(queries.timeline(history))]
    return mo.vstack([*top, _summary(warehouse, known.row(0, named=True)), *drawn, *why])


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
            _number(known[f"{view}_score"]),
            _title(view),
            f"{known[f'{view}_events']:,} counted events",
            bordered=True,
        )
        for view in queries.shown_views(warehouse)
    ]
    average, ratings = known["all_time_rating_average"], known["all_time_rating_count"]
    rated = mo.stat(_number(average), "Rating", f"{ratings:,} ratings", bordered=True)
    return mo.hstack([*stats, rated, mo.stat(known["status"], "Status", f"rank {rank:,} of {users:,}", bordered=True)])


def _caption(events: int) -> str:
    if events <= _MAX_EVENTS:
        return "Every event with the points it earned, newest first."
    return (
        f"The newest {_MAX_EVENTS:,} of {events:,} events with the points they earned; `karmalake explain` lists all."
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:,.2f}".rstrip("0").rstrip(".")


def _title(view: str) -> str:
    return view.replace("_", " ").capitalize()


def _chart(draw: Callable[[pl.DataFrame], alt.LayerChart], rows: pl.DataFrame, absent: str) -> object:
    return draw(rows) if rows.height else mo.md(absent)
