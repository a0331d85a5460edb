"""The commands at the bus: topics, simulate, emit, lag."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import current_settings, instant
from pipelines.cli.output import facts, progress, say, table, warn
from pipelines.errors import UsageError

topics = typer.Typer(no_args_is_help=True, help="Create the topic of events, and look at it.")


class TimeUnit(StrEnum):
    """What a time column holds."""

    S = "s"
    MS = "ms"
    US = "us"
    ISO = "iso"


@topics.command()
def ensure() -> None:
    """Create the topic if it is not there, as the [kafka] settings say; an existing one is never changed."""
    from pipelines.emit.topics import ensure_topic  # noqa: PLC0415

    ensure_topic(current_settings().kafka)
    show()


@topics.command()
def show() -> None:
    """Show the topic: its id, its partitions and what they hold."""
    from pipelines.emit.topics import describe_topic  # noqa: PLC0415

    kafka = current_settings().kafka
    topic = describe_topic(kafka)
    if topic is None:
        raise UsageError(f"topic {kafka.topic} does not exist: create it with `karmalake topics ensure`")
    facts(
        [
            ("topic", topic.name),
            ("id", topic.topic_id),
            ("replication factor", topic.replication_factor),
            ("retention", _retention(topic.retention_hours)),
        ]
    )
    rows = [(p.partition, p.leader, p.begin_offset, p.end_offset) for p in topic.partitions]
    table(("partition", "leader", "first offset", "end offset"), rows)
    for difference in topic.differences:
        warn(difference)


def lag() -> None:
    """Show how far the lake is behind the bus, by topic partition."""
    from pipelines.lag import measure_lag  # noqa: PLC0415

    lags = measure_lag(current_settings())
    rows = [(p.topic_partition, p.begin_offset, p.end_offset, p.next_offset, p.lag_records) for p in lags]
    table(("partition", "first offset", "end offset", "next to read", "lag in records"), rows)
    say(f"{sum(p.lag_records for p in lags):,} records behind")


def _retention(hours: float | None) -> str | None:
    match hours:
        case None:
            return None
        case -1:
            return "forever"
        case _:
            return f"{hours:g} h"
