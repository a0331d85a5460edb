"""The command of the notifications branch: notify."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import MetricsPort, current_settings, with_metrics_port
from pipelines.cli.output import say, say_metrics, warn
from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from pipelines.errors import TransientError
    from pipelines.notify.branch import Tally


def notify(
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who is told what; else the setting notify.rules.")
    ] = None,
    check: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--check", help="Only say whether the rule file and its secrets are right.")
    ] = False,
    metrics_port: MetricsPort = None,
) -> None:
    """Tell webhooks and Redis streams of events, by the rules of a file, for ever.

    Several notifiers share the topic partitions. SIGTERM or Ctrl-C ends it; killing it loses nothing.
    """
    from pipelines.monitoring.monitor import each, monitoring_notify  # noqa: PLC0415
    from pipelines.notify.branch import Reports  # noqa: PLC0415
    from pipelines.notify.rule_file import load_rules  # noqa: PLC0415
    from pipelines.notify.run import notify as run  # noqa: PLC0415
    from pipelines.notify.run import plans  # noqa: PLC0415
    from pipelines.serving.client import connect  # noqa: PLC0415

    settings = with_metrics_port(current_settings(), metrics_port)
    path = rules or settings.notify.rules
    if path is None:
        raise ConfigurationError("no rule file is named: give --rules FILE, or set KARMALAKE_NOTIFY_RULES")
    planned = plans(load_rules(path), settings.notify.max_in_flight, lambda: connect(settings.redis))
    names = ", ".join(plan.name for plan in planned)
    if check:
        say(f"{path} is right: it tells {names}")
        return
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    with monitoring_notify(settings, [plan.name for plan in planned]) as monitor:
        say(f"telling {names} of {settings.kafka.topic}; Ctrl-C ends it")
        say_metrics(monitor.address)
        reports = Reports(
            done=each(_say_done, monitor.metrics.notified),
            outage=each(_warn_of_outage, monitor.turned),
            failure=each(_warn_of_failure, monitor.failed),
            turn=monitor.turned,
        )
        run(settings, planned, stopping, reports)
    say("ended; what was not delivered is delivered next time")


def _say_done(destination: str, done: "Tally") -> None:
    parts = [f"{done.delivered:,} delivered"]
    if done.malformed:
        parts.append(f"{done.malformed:,} records that are no events skipped")
    say(f"{destination}: {', '.join(parts)}")
    if done.dead_letters:
        warn(f"{destination}: {done.dead_letters:,} became dead letters, the last because of: {done.reason}")
    for loss in done.losses:
        warn(f"{destination}: {loss.sentence}")


def _warn_of_outage(destination: str, error: "TransientError") -> None:
    warn(f"{destination}: {error}; nothing is lost, trying again")


def _warn_of_failure(destination: str, error: BaseException) -> None:
    from pipelines.notify.answers import described  # noqa: PLC0415

    warn(
        f"{destination}: a bug, please report it: {described(error)}; it begins again at its checkpoint, nothing is "
        "lost. Restart the process: until then /healthz answers 503"
    )
