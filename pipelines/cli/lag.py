"""The command lag: consumer lag of every topic by topic partition, with advice."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import current_settings
from pipelines.cli.output import print_document, print_line, print_table, print_warning
from pipelines.cli.signals import stop_on_signals
from pipelines.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipelines.operate.lag.observe import Observation

_COLUMNS = ("partition", "end offset", "next offset", "lag records", "lag seconds", "in/s", "out/s", "catch-up s")


def lag(
    watch: Annotated[bool, typer.Option("--watch", help="Measure every lag.interval_seconds, until Ctrl-C.")] = False,  # noqa: FBT002 - a flag of the command line
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document per topic and measurement.")] = False,  # noqa: FBT002 - a flag of the command line
) -> None:
    """Show the consumer lag of the lake by topic partition of every topic, with advice.

    Rates are relative to an earlier measurement of `stream` or this command, within the last ten minutes.
    """
    from pipelines.operate.lag.observe import observe_lags  # noqa: PLC0415

    settings = current_settings()
    show = _show_json if as_json else _show
    if not watch:
        show(observe_lags(settings))
        return
    stopping = stop_on_signals()
    while not stopping.is_set():
        try:
            show(observe_lags(settings))
        except TransientError as error:
            print_warning(f"{error}; retrying")
        stopping.wait(settings.lag.interval_seconds)


def _show(observations: "tuple[Observation, ...]") -> None:
    from pipelines.operate.lag.measure import summarize  # noqa: PLC0415
    from pipelines.operate.lag.observe import all_advice  # noqa: PLC0415

    for observed in observations:
        if len(observations) > 1:
            print_line(observed.measurement.topic)
        print_table(_COLUMNS, list(_rows(observed)))
    slowest = max((observed.catch_up_seconds or 0.0 for observed in observations), default=0.0)
    estimate = f", caught up in {slowest:,.0f} s at this rate" if slowest else ""
    print_line(f"{summarize([observed.measurement for observed in observations])} behind{estimate}")
    for advice in all_advice(observations):
        print_warning(advice)


def _rows(observed: "Observation") -> "Iterator[tuple[object, ...]]":
    for p in observed.measurement.partitions:
        pace = observed.paces.get(p.topic_partition)
        rates = (pace.in_per_second, pace.out_per_second, pace.catch_up_seconds) if pace else (None, None, None)
        yield (p.topic_partition, p.end_offset, p.next_offset, p.lag_records, p.lag_seconds, *rates)


def _show_json(observations: "tuple[Observation, ...]") -> None:
    for observation in observations:
        document = {
            **dataclasses.asdict(observation.measurement),
            "lag_records": observation.measurement.lag_records,
            "lag_seconds": observation.measurement.lag_seconds,
            "paces": [dataclasses.asdict(pace) for pace in observation.paces.values()],
            "catch_up_seconds": observation.catch_up_seconds,
            "advice": observation.advice,
        }
        print_document(document, indent=None)
