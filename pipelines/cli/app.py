"""All commands, in the order of an event's way."""

import typer

from pipelines.cli import bus, demo, flow, local, look

app = typer.Typer(
    name="karmalake",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Reputation events from Kafka, each counted exactly once; scores derived, explained and served.

    The way of an event: [bold]emit[/bold] or [bold]simulate[/bold] puts it on the bus, [bold]drain[/bold] moves it
    into the lake, [bold]rebuild[/bold] derives the warehouse, [bold]publish[/bold] serves it from Redis;
    [bold]stream[/bold] does the last three for ever. Settings: KARMALAKE_* variables or karmalake.toml.

    New here? [bold]karmalake demo[/bold] shows everything in about a minute.""",
)
app.add_typer(local.app, name="local", rich_help_panel="Start")
app.command(rich_help_panel="Start")(demo.demo)
app.command(rich_help_panel="Start")(look.doctor)
app.add_typer(bus.topics, name="topics", rich_help_panel="Bus")
app.command(rich_help_panel="Bus")(bus.simulate)
app.command(rich_help_panel="Bus")(bus.emit)
app.command(rich_help_panel="Bus")(bus.lag)
app.command(rich_help_panel="Lake and scores")(flow.drain)
app.command(rich_help_panel="Lake and scores")(flow.stream)
app.command(rich_help_panel="Lake and scores")(flow.rebuild)
app.command(rich_help_panel="Lake and scores")(flow.publish)
app.command(rich_help_panel="Lake and scores")(flow.compact)
app.command(rich_help_panel="Lake and scores")(flow.vacuum)
app.command(rich_help_panel="Lake and scores")(flow.verify)
app.command(rich_help_panel="Look")(look.show)
app.command(rich_help_panel="Look")(look.scores)
app.command(rich_help_panel="Look")(look.sql)
