"""The command at the outbox: relay."""

import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import MetricsPort, current_settings, with_metrics_port
from pipelines.cli.output import say, say_metrics, warn
from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from pipelines.emit.relay import Relayed
    from pipelines.errors import TransientError
    from pipelines.settings import Settings

_MOST_ROWS = 10_000


def relay(
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="The service's database; better in KARMALAKE_RELAY_DATABASE_URL.")
    ] = None,
    once: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--once", help="Send what waits, and end.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=_MOST_ROWS, help="Rows of one transaction at most.")] = 1_000,
    metrics_port: MetricsPort = None,
) -> None:
    """Send the outbox of a service's database to the topic, each user's events in order, for ever.

    Several relays share the work. SIGTERM or Ctrl-C ends it after the batch in hand; killing it loses nothing.
    """
    import pipelines.emit.relay as relaying  # noqa: PLC0415
    from pipelines.monitoring.monitor import each, monitoring_relay  # noqa: PLC0415

    settings = with_metrics_port(current_settings(), metrics_port)
    address = _address(database, settings)
    _say_backlog(address)
    if once:
        with relaying.open_relay(address, settings.kafka) as opened:
            relaying.relay_waiting(opened, _say_relayed, batch)
        _say_backlog(address)
        return
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _set(stopping))
    with monitoring_relay(settings, address) as monitor:
        say(f"relaying to {settings.kafka.topic}; Ctrl-C ends it")
        say_metrics(monitor.address)
        turned = partial(monitor.turned, "relay")
        report, report_outage = each(_say_relayed, monitor.metrics.relayed), each(_warn_of_outage, turned)
        relaying.relay(address, settings.kafka, stopping, report, report_outage, batch, turned)
    say("ended; what was not sent is still in the outbox")


def _set(event: threading.Event) -> "Callable[[int, FrameType | None], None]":
    return lambda _number, _frame: event.set()


def _address(database: str | None, settings: "Settings") -> str:
    if database:
        return database
    if settings.relay.database_url is None:
        raise ConfigurationError("no database is named: give --database URL, or set KARMALAKE_RELAY_DATABASE_URL")
    return settings.relay.database_url.get_secret_value()


def _say_backlog(address: str) -> None:
    """Say what waits; the first to find out that the address or the table is wrong."""
    from pipelines.emit.outbox.backlog import measure_backlog  # noqa: PLC0415

    waiting = measure_backlog(address)
    age = f", the oldest for {waiting.oldest_age_seconds:.1f} s" if waiting.rows else ""
    say(f"{waiting.rows:,} events wait in the outbox{age}")


def _say_relayed(done: "Relayed") -> None:
    say(f"sent {done.rows:,} events, {done.bytes:,} bytes in {done.seconds:.2f} s")


def _warn_of_outage(error: "TransientError") -> None:
    warn(f"{error}; nothing is lost, trying again")
