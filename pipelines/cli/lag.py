"""The command lag: consumer lag by topic partition, with advice."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import current_settings
from pipelines.cli.output import print_document, print_line, print_table, print_warning
from pipelines.cli.signals import stop_on_signals
from pipelines.errors import TransientError

if TYPE_CHECKING:
    from pipelines.operate.lag.observe import Observation

_COLUMNS = ("partition", "end offset", "next offset", "lag records", "lag seconds", "in/s", "out/s", "catch-up s")


def lag(
    watch: Annotated[bool, typer.Option("--watch", help="Measure every lag.interval_seconds, until Ctrl-C.")] = False,  # noqa: FBT002 - a flag of the command line
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document per measurement.")] = False,  # noqa: FBT002 - a flag of the command line
) -> None:
    """Show the consumer lag of the lake by topic partition, with advice.

    Rates are relative to an earlier measurement of `stream` or this command, within the last ten minutes.
    """
    from pipelines.operate.lag.observe import observe_lag  # noqa: PLC0415

    settings = current_settings()
    show = _show_json if as_json else _show
    if not watch:
        show(observe_lag(settings))
        return
    stopping = stop_on_signals()
    while not stopping.is_set():
        try:
            show(observe_lag(settings))
        except TransientError as error:
            print_warning(f"{error}; retrying")
        stopping.wait(settings.lag.interval_seconds)


def _show(observation: "Observation") -> None:
    measured, paces = observation.measurement, observation.paces
    rows: list[tuple[object, ...]] = []
    for p in measured.partitions:
        pace = paces.get(p.topic_partition)
        rates = (pace.in_per_second, pace.out_per_second, pace.catch_up_seconds) if pace else (None, None, None)
        rows.append((p.topic_partition, p.end_offset, p.next_offset, p.lag_records, p.lag_seconds, *rates))
    print_table(_COLUMNS, rows)
    caught_up = observation.catch_up_seconds
    estimate = f", caught up in {caught_up:,.0f} s at this rate" if caught_up else ""
    print_line(f"{measured.summary} behind{estimate}")
    for advice in observation.advice:
        print_warning(advice)


def _show_json(observation: "Observation") -> None:
    document = {
        **dataclasses.asdict(observation.measurement),
        "lag_records": observation.measurement.lag_records,
        "lag_seconds": observation.measurement.lag_seconds,
        "paces": [dataclasses.asdict(pace) for pace in observation.paces.values()],
        "catch_up_seconds": observation.catch_up_seconds,
        "advice": observation.advice,
    }
    print_document(document, indent=None)
