"""The dashboard as a marimo app: the controls and the section they select. `sections.py` renders the content.

Each visitor has a session with its own view of the warehouse, which does not change until the page is reloaded. A
section is computed when it is selected. The URL parameters `section` and `user` set what the page opens with.
"""

import marimo

app = marimo.App(width="medium", app_title="karmalake")

with app.setup:
    import duckdb
    import marimo as mo
    import polars as pl

    from pipelines.boundary.private_files import message_of
    from pipelines.dashboard import health, queries, sections
    from pipelines.dashboard.sessions import open_session
    from pipelines.errors import KarmalakeError
    from pipelines.local.services import with_local_endpoints
    from pipelines.reputation.warehouse import Warehouse
    from pipelines.settings import Settings, load_settings


@app.cell
def _():
    settings = health.with_short_timeouts(with_local_endpoints(load_settings()))
    try:
        warehouse = open_session(settings)
    except (KarmalakeError, OSError, duckdb.Error) as error:
        mo.stop(predicate=True, output=sections.warning(f"There is nothing to show: {message_of(error)}"))
        raise  # unreachable: stop() ends the cell
    mo.output.replace(sections.heading(warehouse))
    return settings, warehouse


@app.cell
def _(warehouse: Warehouse):
    asked = mo.query_params().to_dict()
    names = ("Trends", "Leaderboard", "User", "Health")
    opened = str(asked.get("section", "")).capitalize()
    section = mo.ui.tabs(dict.fromkeys(names, ""), value=opened if opened in names else names[0])
    period = mo.ui.radio(["day", "week"], value="day", inline=True, label="Activity by")
    user = mo.ui.text(value=str(asked.get("user", queries.top_user(warehouse))), label="user_id", debounce=True)
    mo.output.replace(section)
    return period, section, user


@app.cell
def _(section: mo.ui.tabs, settings: Settings, user: mo.ui.text, warehouse: Warehouse):
    history, filters, problem = pl.DataFrame(), None, ""
    if section.value == "User":
        try:
            with health.limited(warehouse, settings):
                history = queries.event_history(warehouse, user.value)
        except (KarmalakeError, duckdb.Error) as error:
            problem = str(error)
        filters = sections.filters(history) if history.height else None
    return filters, history, problem


@app.cell
def _(
    history: pl.DataFrame,
    period: mo.ui.radio,
    problem: str,
    section: mo.ui.tabs,
    settings: Settings,
    user: mo.ui.text,
    warehouse: Warehouse,
):
    try:
        with health.limited(warehouse, settings):
            match section.value:
                case "Leaderboard":
                    shown = sections.leaderboard(warehouse)
                case "User" if problem:
                    shown = sections.no_user(problem, user)
                case "User":
                    shown = sections.user(warehouse, user.value, history, user)
                case "Health":
                    shown = sections.health(warehouse, settings)
                case _:
                    shown = sections.trends(warehouse, period.value, period)
    except (KarmalakeError, duckdb.Error) as error:
        shown = sections.warning(f"This section cannot be shown: {error}")
    mo.output.replace(shown)


@app.cell
def _(
    filters: mo.ui.dictionary | None,
    history: pl.DataFrame,
    settings: Settings,
    user: mo.ui.text,
    warehouse: Warehouse,
):
    if filters is not None:
        try:
            with health.limited(warehouse, settings):
                explained = sections.explanation(warehouse, user.value, history, filters)
        except (KarmalakeError, duckdb.Error) as error:
            explained = sections.warning(f"The explanation cannot be shown: {error}")
        mo.output.replace(explained)


if __name__ == "__main__":
    app.run()
