"""The dashboard as a marimo app: the controls, and which section they choose. What it shows is `sections.py`.

Each visitor has a session with a warehouse of its own, which stays what it is until the page is loaded again. A
section is computed when it is looked at. In the address, `section` and `user` name what the page opens with.
"""

import marimo

app = marimo.App(width="medium", app_title="karmalake")

with app.setup:
    import duckdb
    import marimo as mo

    from pipelines.dashboard import health, queries, sections
    from pipelines.errors import KarmalakeError
    from pipelines.local.services import with_local_endpoints
    from pipelines.reputation.warehouse import Warehouse
    from pipelines.settings import Settings, load_settings


@app.cell
def _():
    settings = health.impatient(with_local_endpoints(load_settings()))
    try:
        warehouse = Warehouse(settings.warehouse_path)
    except KarmalakeError as error:
        mo.stop(predicate=True, output=sections.trouble(f"There is nothing to show: {error}"))
        raise  # never reached: stop() has ended the cell
    mo.output.replace(sections.heading(warehouse))
    return settings, warehouse


@app.cell
def _(warehouse: Warehouse):
    asked = mo.query_params().to_dict()
    names = ("Trends", "Leaderboard", "User", "Health")
    opened = str(asked.get("section", "")).capitalize()
    section = mo.ui.tabs(dict.fromkeys(names, ""), value=opened if opened in names else names[0])
    period = mo.ui.radio(["day", "week"], value="day", inline=True, label="Activity by")
    user = mo.ui.text(value=str(asked.get("user", queries.first(warehouse))), label="user_id", debounce=True)
    mo.output.replace(section)
    return period, section, user


@app.cell
def _(period: mo.ui.radio, section: mo.ui.tabs, settings: Settings, user: mo.ui.text, warehouse: Warehouse):
    try:
        with warehouse.limited(health.QUERY_SECONDS):
            match section.value:
                case "Leaderboard":
                    shown = sections.leaderboard(warehouse)
                case "User":
                    shown = sections.user(warehouse, user.value, user)
                case "Health":
                    shown = sections.health(warehouse, settings)
                case _:
                    shown = sections.trends(warehouse, period.value, period)
    except (KarmalakeError, duckdb.Error) as error:
        shown = sections.trouble(f"This section cannot be shown: {error}")
    mo.output.replace(shown)


if __name__ == "__main__":
    app.run()
