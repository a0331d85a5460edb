"""The command relay: sends the outbox."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.extras import extra
from pipelines.boundary.text import amount
from pipelines.cli.options import MetricsPort, current_settings, with_metrics_port
from pipelines.cli.output import print_line, print_metrics_address, print_warning
from pipelines.cli.signals import stop_on_signals
from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from pipelines.emit.relay import RelayedBatch
    from pipelines.errors import TransientError
    from pipelines.settings import Settings

_MAX_ROWS = 10_000


def relay(
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The service's database; prefer KARMALAKE_RELAY_DATABASE_URL, since it contains a password.",
        ),
    ] = None,
    once: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--once", help="Send the waiting events, and exit.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=_MAX_ROWS, help="Maximum rows per transaction.")] = 1_000,
    metrics_port: MetricsPort = None,
) -> None:
    """Send the outbox of a service's database to the topic continuously, each user's events in order.

    Several relays share the work. SIGTERM or Ctrl-C stops it after the current batch, within 5 s; a kill
    loses nothing.
    """
    stopping = None if once else stop_on_signals()
    with extra("outbox", "the relay"):
        import pipelines.emit.relay as relaying  # noqa: PLC0415
    from pipelines.monitoring.monitor import call_all, monitor_relay  # noqa: PLC0415

    settings = with_metrics_port(current_settings(), metrics_port)
    address = _address(database, settings)
    _print_backlog(address)
    if stopping is None:
        with relaying.open_relay(address, settings.kafka) as opened:
            relaying.relay_pending(opened, _print_relayed, batch)
        _print_backlog(address)
        return
    with monitor_relay(settings, address) as monitor:
        print_line(f"relaying to {settings.kafka.topic}; Ctrl-C stops it")
        print_metrics_address(monitor.address)
        turned = partial(monitor.record_turn, "relay")
        report, report_outage = call_all(_print_relayed, monitor.metrics.relayed), call_all(_warn_of_outage, turned)
        relaying.relay(address, settings.kafka, stopping, report, report_outage, batch, turned)
    print_line("stopped; unsent events remain in the outbox")


def _address(database: str | None, settings: "Settings") -> str:
    if database:
        return database
    if settings.relay.database_url is None:
        raise ConfigurationError("no database given: use --database URL, or set KARMALAKE_RELAY_DATABASE_URL")
    return settings.relay.database_url.get_secret_value()


def _print_backlog(address: str) -> None:
    """Print the backlog, and fail early if the address or the table is wrong."""
    from pipelines.emit.outbox.backlog import measure_backlog  # noqa: PLC0415

    waiting = measure_backlog(address)
    age = f", the oldest for {waiting.oldest_age_seconds:.1f} s" if waiting.rows else ""
    print_line(f"{amount(waiting.rows, 'event')} waiting in the outbox{age}")


def _print_relayed(done: "RelayedBatch") -> None:
    print_line(f"sent {amount(done.rows, 'event')}, {done.bytes:,} bytes in {done.seconds:.2f} s")


def _warn_of_outage(error: "TransientError") -> None:
    print_warning(f"{error}; nothing is lost, retrying")
