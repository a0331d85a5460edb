"""All commands, in the order of an event's way."""

from importlib.metadata import version
from typing import Annotated

import typer

from pipelines.cli import (
    audit,
    bus,
    contract,
    copying,
    dashboard,
    dead_letters,
    demo,
    erase,
    error_codes,
    explain,
    files,
    flow,
    lag,
    local,
    look,
    notify,
    policy,
    relay,
    replay,
    trend,
)
from pipelines.cli.output import say

app = typer.Typer(
    name="karmalake",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Reputation events from Kafka, each counted exactly once; scores derived, explained and served.

    The way of an event: `emit` or `simulate` puts it on the bus, `drain` moves it
    into the lake, `refresh` derives the warehouse, `publish` serves it from Redis;
    `stream` does the last three for ever; `backfill` loads history without the bus.
    Settings: KARMALAKE_* variables or karmalake.toml.

    New here? `karmalake demo` shows everything in about a minute.""",
    epilog="Exit codes: 0 done, 1 a check failed or nothing was found, 2 a mistake in the command; every other error "
    "has one of its own: `karmalake errors` lists them.",
)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer's
    if asked:
        say(f"karmalake {version('karmalake')}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction] - typer runs it
    _version: Annotated[  # noqa: FBT002 - a flag, acted on when it is read
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


app.add_typer(local.app, name="local", rich_help_panel="Start")
app.command(rich_help_panel="Start")(demo.demo)
app.command(rich_help_panel="Start")(look.doctor)
app.command(rich_help_panel="Start")(error_codes.errors)
app.add_typer(contract.app, name="contract", rich_help_panel="Bus")
app.add_typer(bus.topics, name="topics", rich_help_panel="Bus")
app.command(rich_help_panel="Bus")(bus.simulate)
app.command(rich_help_panel="Bus")(files.emit)
app.command(rich_help_panel="Bus")(relay.relay)
app.command(rich_help_panel="Bus")(notify.notify)
app.command(rich_help_panel="Bus")(lag.lag)
app.command(rich_help_panel="Lake and scores")(flow.drain)
app.command(rich_help_panel="Lake and scores")(flow.skip)
app.command(rich_help_panel="Lake and scores")(flow.stream)
app.command(rich_help_panel="Lake and scores")(files.backfill)
app.command(rich_help_panel="Lake and scores")(replay.replay)
app.command(rich_help_panel="Lake and scores")(flow.refresh)
app.command(rich_help_panel="Lake and scores")(flow.rebuild)
app.command(rich_help_panel="Lake and scores")(flow.publish)
app.command(rich_help_panel="Lake and scores")(flow.compact)
app.command(rich_help_panel="Lake and scores")(flow.vacuum)
app.command(rich_help_panel="Lake and scores")(flow.verify)
app.command(rich_help_panel="Lake and scores")(audit.audit)
app.command(rich_help_panel="Lake and scores")(erase.erase)
app.command(rich_help_panel="Lake and scores")(copying.copy)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel="Lake and scores")
app.command(rich_help_panel="Look")(look.show)
app.command(rich_help_panel="Look")(look.leaderboard)
app.command(rich_help_panel="Look")(look.scores)
app.command(rich_help_panel="Look")(explain.explain)
app.command(rich_help_panel="Look")(trend.trend)
app.command(rich_help_panel="Look")(dashboard.dashboard)
app.add_typer(policy.policy, name="policy", rich_help_panel="Look")
app.command(rich_help_panel="Look")(look.sql)
