"""The commands of the embedded broker and cache: start, stop, status."""

import typer

from pipelines.cli.options import bare_settings, current_settings
from pipelines.cli.output import print_fields, print_line, print_warning

app = typer.Typer(no_args_is_help=True, help="Run an embedded broker and cache on this machine, for trials.")


@app.command()
def start() -> None:
    """Start broker and cache on free ports of 127.0.0.1, unless they run already. Other commands connect to them.

    They hold everything in memory: `local stop` deletes events that are not drained yet.
    """
    from pipelines.local import services  # noqa: PLC0415

    for notice in services.start(bare_settings()).notices:
        print_warning(notice)
    status()


@app.command()
def stop() -> None:
    """Stop broker and cache. The lake remains."""
    from pipelines.local import services  # noqa: PLC0415

    stopped = services.stop(bare_settings())
    print_line(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status() -> None:
    """Show the addresses of the running services."""
    from pipelines.local import services  # noqa: PLC0415

    settings = current_settings()
    found = services.status(settings)
    print_fields(
        [
            ("broker", found.broker.address if found.broker else "not running"),
            ("cache", found.cache.address if found.cache else "not running"),
            ("cache password", str(services.password_file(settings)) if found.cache else "-"),
        ]
    )
