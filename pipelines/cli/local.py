"""`karmalake local`: the embedded broker and cache."""

import typer

from pipelines.cli.options import bare_settings, current_settings
from pipelines.cli.output import facts, say, warn

app = typer.Typer(no_args_is_help=True, help="Run a broker and a cache on this machine, for trying things out.")


@app.command()
def start() -> None:
    """Start both on free ports of 127.0.0.1, or find them running; the other commands find them too.

    They keep everything in memory: what was on the bus and not yet drained is gone after `local stop`.
    """
    from pipelines.local import services  # noqa: PLC0415

    for notice in services.start(bare_settings()).notices:
        warn(notice)
    status()


@app.command()
def stop() -> None:
    """Stop both. The lake stays."""
    from pipelines.local import services  # noqa: PLC0415

    stopped = services.stop(bare_settings())
    say(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status() -> None:
    """Show what runs, and where."""
    from pipelines.local import services  # noqa: PLC0415

    settings = current_settings()
    found = services.status(settings)
    facts(
        [
            ("broker", found.broker.address if found.broker else "not running"),
            ("cache", found.cache.address if found.cache else "not running"),
            ("its password", str(services.password_file(settings)) if found.cache else "-"),
        ]
    )
