"""The command trend: how reputations move. Which trends there are is `reputation/trends`' affair."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import current_settings, instant
from pipelines.cli.rows import Format, write
from pipelines.errors import UsageError


def trend(
    name: Annotated[str | None, typer.Argument(help="Which trend; without it, the list of them.")] = None,
    since: Annotated[str | None, typer.Option(help="From this UTC day on, like 2026-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this UTC day.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the trend, like period=week. May be repeated.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Show a trend of the warehouse: activity, ratings, cohorts, movers, retention, review bombs, rings, ..."""
    from pipelines.reputation.trends import find_trend  # noqa: PLC0415
    from pipelines.reputation.warehouse import Warehouse  # noqa: PLC0415

    given = dict(_pair(text) for text in parameters or [])
    if name is not None:
        find_trend(name).values(given)
    with Warehouse(current_settings().warehouse_path) as warehouse:
        rows = warehouse.trends() if name is None else warehouse.trend(name, instant(since), instant(until), **given)
    write(rows, form, output)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r} has no value: write it like period=week")
    return name, value
