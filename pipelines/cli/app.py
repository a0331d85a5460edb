"""All commands, in data flow order."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.boundary.text import escape_lines
from pipelines.cli import (
    audit,
    bus,
    contract,
    copying,
    dead_letters,
    demo,
    erase,
    error_codes,
    explain,
    files,
    lag,
    loads,
    local,
    notify,
    pages,
    pipeline,
    policy,
    queries,
    relay,
    replay,
    sources,
    support,
    trend,
    user,
)
from pipelines.cli.output import print_line


@contextmanager
def _escaped_messages() -> Generator[None]:
    """Escape what typer's messages quote of the command line: it escapes control characters, but no direction marks."""
    try:
        yield
    except Exception as error:
        message: object = getattr(error, "message", None)
        if isinstance(message, str):
            error.message = escape_lines(message)  # pyright: ignore[reportAttributeAccessIssue]
        raise


class _Commands(TyperGroup):
    """The commands; one that is in a group is suggested with it: `merge` is `user merge`, not `serve` or `erase`."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _escaped_messages():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _escaped_messages():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name = args[0]
        groups = [group for group, inner in self.commands.items() if name in getattr(inner, "commands", ())]
        if groups and name not in self.commands:
            meant = ", ".join(f"'{group} {name}'" for group in groups)
            ctx.fail(f"No such command '{name}'. Did you mean {meant}?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="karmalake",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Count each reputation event from Kafka exactly once; derive, explain and serve scores.

    Data flow: `emit` or `simulate` sends events to the bus, `drain` ingests them into
    the lake, `refresh` derives the warehouse, `publish` writes documents to Redis.
    `stream` runs the last three continuously; `backfill` loads history without the bus.
    Settings: KARMALAKE_* variables or karmalake.toml.

    New here? `karmalake demo` shows everything in about a minute.""",
    epilog="Exit codes: 0 success, 1 a failed check or nothing found, 2 a usage error; every other class of errors has "
    "its own: `karmalake errors` lists them.",
)


def _print_version(requested: bool) -> None:  # noqa: FBT001 - typer's
    if requested:
        print_line(f"karmalake {version('karmalake')}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction] - called by typer
    _version: Annotated[  # noqa: FBT002 - a flag, handled by its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(local.app, name="local", rich_help_panel="Getting started")
app.command(rich_help_panel="Getting started")(demo.demo)
app.command(rich_help_panel="Getting started")(queries.doctor)
app.command(rich_help_panel="Getting started")(error_codes.errors)
app.add_typer(contract.app, name="contract", rich_help_panel="Bus")
app.add_typer(sources.app, name="sources", rich_help_panel="Bus")
app.add_typer(bus.topics, name="topics", rich_help_panel="Bus")
app.command(rich_help_panel="Bus")(bus.simulate)
app.command(rich_help_panel="Bus")(files.emit)
app.command(rich_help_panel="Bus")(relay.relay)
app.command(rich_help_panel="Bus")(notify.notify)
app.command(rich_help_panel="Bus")(lag.lag)
app.command(rich_help_panel="Lake and warehouse")(pipeline.drain)
app.command(rich_help_panel="Lake and warehouse")(pipeline.skip)
app.command(rich_help_panel="Lake and warehouse")(pipeline.stream)
app.command(rich_help_panel="Lake and warehouse")(pipeline.ingest)
app.command(rich_help_panel="Lake and warehouse")(pipeline.serve)
app.command(rich_help_panel="Lake and warehouse")(files.backfill)
app.add_typer(loads.app, name="loads", rich_help_panel="Lake and warehouse")
app.command(rich_help_panel="Lake and warehouse")(replay.replay)
app.command(rich_help_panel="Lake and warehouse")(pipeline.refresh)
app.command(rich_help_panel="Lake and warehouse")(pipeline.rebuild)
app.command(rich_help_panel="Lake and warehouse")(pipeline.publish)
app.command(rich_help_panel="Lake and warehouse")(pipeline.compact)
app.command(rich_help_panel="Lake and warehouse")(pipeline.vacuum)
app.command(rich_help_panel="Lake and warehouse")(pipeline.verify)
app.command(rich_help_panel="Lake and warehouse")(audit.audit)
app.command(rich_help_panel="Support")(support.retract)
app.command(rich_help_panel="Support", context_settings={"ignore_unknown_options": True})(support.adjust)
app.add_typer(user.app, name="user", rich_help_panel="Support")
app.command(rich_help_panel="Lake and warehouse")(erase.erase)
app.command(rich_help_panel="Lake and warehouse")(copying.copy)
app.command(rich_help_panel="Lake and warehouse")(copying.export)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel="Lake and warehouse")
app.command(rich_help_panel="Scores and queries")(queries.show)
app.command(rich_help_panel="Scores and queries")(queries.leaderboard)
app.command(rich_help_panel="Scores and queries")(queries.scores)
app.command(rich_help_panel="Scores and queries")(explain.explain)
app.command(rich_help_panel="Scores and queries")(trend.trend)
app.command(rich_help_panel="Scores and queries")(pages.dashboard)
app.command(rich_help_panel="Lake and warehouse")(pages.dagster)
app.add_typer(policy.policy, name="policy", rich_help_panel="Scores and queries")
app.command(rich_help_panel="Scores and queries")(queries.sql)
