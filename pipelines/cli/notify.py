"""The command notify: delivers notifications."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import MetricsPort, current_settings, with_metrics_port
from pipelines.cli.output import print_line, print_metrics_address, print_warning
from pipelines.cli.signals import stop_on_signals
from pipelines.errors import ConfigurationError, KarmalakeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.errors import TransientError
    from pipelines.notify.branch import DeliveryCounts
    from pipelines.notify.rules import RuleFile
    from pipelines.settings import Settings


def notify(
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The rule file; the setting notify.rules by default.")
    ] = None,
    check: Annotated[  # noqa: FBT002 - a flag of the command line
        bool,
        typer.Option(
            "--check", help="Only check the rule file, its secrets, and what it names of the policy in force."
        ),
    ] = False,
    metrics_port: MetricsPort = None,
) -> None:
    """Send events, and changes of scores, to webhooks and Redis streams continuously, by the rules of a file.

    Several notifiers share the topic partitions. SIGTERM or Ctrl-C stops it; a kill loses nothing.
    """
    stopping = stop_on_signals()
    from pipelines.erased_users import following_erasures  # noqa: PLC0415
    from pipelines.lake.tables import is_lake  # noqa: PLC0415
    from pipelines.monitoring.monitor import call_all, monitor_notify  # noqa: PLC0415
    from pipelines.notify.branch import Reports  # noqa: PLC0415
    from pipelines.notify.rule_file import load_rules  # noqa: PLC0415
    from pipelines.notify.run import notify as run  # noqa: PLC0415
    from pipelines.notify.run import plans  # noqa: PLC0415
    from pipelines.rule_names import foreign_names, misspelt_actions  # noqa: PLC0415
    from pipelines.serving.client import connect  # noqa: PLC0415

    settings = with_metrics_port(current_settings(), metrics_port)
    stopping.seconds += settings.notify.stop_seconds
    path = rules or settings.notify.rules
    if path is None:
        raise ConfigurationError("no rule file given: use --rules FILE, or set KARMALAKE_NOTIFY_RULES")
    loaded = load_rules(path)
    planned = plans(loaded, settings, lambda: connect(settings.redis))
    names = ", ".join(plan.name for plan in planned)
    topics = ", ".join(dict.fromkeys(plan.kafka.topic for plan in planned))
    _warn(path, partial(misspelt_actions, loaded, settings))
    _warn(path, loaded.same_addresses)
    if check:
        _check_names(path, loaded, settings)
        print_line(f"{path} is valid; destinations: {names}")
        return
    _warn(path, partial(foreign_names, loaded, settings))
    has_lake = is_lake(settings.lake_root)
    topics_by_name = {plan.name: plan.kafka for plan in planned}
    with following_erasures(settings) as redact, monitor_notify(settings, topics_by_name) as monitor:

        def print_start() -> None:
            print_line(f"notifying {names} of events in {topics}; Ctrl-C stops it")
            if not has_lake:
                print_warning(
                    f"there is no lake at {settings.lake_root}: only the erased users in {settings.tombstones_file} "
                    "are known, and left out"
                )
            print_metrics_address(monitor.address)

        reports = Reports(
            done=call_all(_print_done, monitor.metrics.notified),
            outage=call_all(_warn_of_outage, monitor.record_turn),
            failure=call_all(_warn_of_failure, monitor.record_failure),
            turn=monitor.record_turn,
            started=print_start,
        )
        run(settings, planned, stopping, reports, redact)
    print_line("stopped; undelivered notifications are delivered at the next start")


def _check_names(path: Path, rules: "RuleFile", settings: "Settings") -> None:
    """Refuse what the policy in force does not have. Not at the start: a change of policy must not end a notifier."""
    from pipelines.rule_names import foreign_names  # noqa: PLC0415

    found = foreign_names(rules, settings)
    if found is None:
        print_warning(f"names were not compared with the policy: there is no lake at {settings.lake_root}")
    elif found:
        raise ConfigurationError("\n".join(f"{path}: {each}" for each in found))


def _warn(path: Path, names_of_rules: "Callable[[], list[str] | None]") -> None:
    """Warn of names that are not in the policy, as far as the policy is known: it is not needed to deliver."""
    with suppress(KarmalakeError):
        for each in names_of_rules() or []:
            print_warning(f"{path}: {each}")


def _print_done(destination: str, done: "DeliveryCounts") -> None:
    did = {
        "delivered": done.delivered,
        "of erased users left out": done.erased,
        "malformed records skipped": done.malformed,
    }
    if parts := [f"{count:,} {what}" for what, count in did.items() if count]:
        print_line(f"{destination}: {', '.join(parts)}")
    if done.failed_attempts:
        print_warning(
            f"{destination}: failed attempts: {done.failed_attempts:,}, the last one by {done.failure}; notifications "
            "are tried again, up to the `attempts` of their destination"
        )
    if done.dead_letters:
        print_warning(f"{destination}: {done.dead_letters:,} became dead letters; the last reason: {done.reason}")
    for loss in done.losses:
        print_warning(f"{destination}: {loss.message}")


def _warn_of_outage(destination: str, error: "TransientError") -> None:
    print_warning(f"{destination}: {error}; nothing is lost, retrying")


def _warn_of_failure(destination: str, error: BaseException) -> None:
    from pipelines.notify.delivery import describe_error  # noqa: PLC0415

    print_warning(
        f"{destination}: a bug, please report it: {describe_error(error)}; delivery restarts at its checkpoint, "
        "nothing is lost. Restart the process: until then /healthz answers 503"
    )
