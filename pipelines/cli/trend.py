"""The command trend: how reputations change. `reputation/trends` defines the trends."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import current_settings, instant
from pipelines.cli.rows import Format, write
from pipelines.errors import UsageError


def trend(
    name: Annotated[str | None, typer.Argument(help="The trend; lists all trends by default.")] = None,
    since: Annotated[str | None, typer.Option(help="First UTC day, like 2026-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="End, a UTC day that is not included.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the trend, like period=week. Repeatable.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file, or replace it, instead of standard output.")
    ] = None,
) -> None:
    """Show a trend, such as activity, ratings, cohorts, movers, retention, review bombs or rings."""
    from pipelines.reputation.trends import find_trend  # noqa: PLC0415
    from pipelines.reputation.warehouse import Warehouse  # noqa: PLC0415
    from pipelines.reputation.warehouse_file import Access  # noqa: PLC0415

    given = dict(_pair(text) for text in parameters or [])
    if name is not None:
        find_trend(name).values(given)
    settings = current_settings()
    with Warehouse(settings.warehouse_path, access=Access(limits=settings.queries)) as warehouse:
        rows = warehouse.trends() if name is None else warehouse.trend(name, instant(since), instant(until), **given)
    write(rows, form, output)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r} has no value: write NAME=VALUE, like period=week")
    return name, value
