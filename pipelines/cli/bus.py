"""The commands at the bus: topics, simulate."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import current_settings, instant
from pipelines.cli.output import facts, progress, say, table, warn
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    from pipelines.simulate.simulator import Planted

topics = typer.Typer(no_args_is_help=True, help="Create the topic of events, and look at it.")


@topics.command()
def ensure() -> None:
    """Create the topic if it is not there, as the [kafka] settings say; an existing one is never changed."""
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415

    ensure_topic(current_settings().kafka)
    describe()


@topics.command()
def check() -> None:
    """Say what about the topic may lose events, and what to do; exits 1 if anything does."""
    from pipelines.operate.topic_check import check_topic  # noqa: PLC0415

    settings = current_settings()
    findings = check_topic(settings)
    if findings:
        table(("severity", "finding"), [(finding.severity, finding.sentence) for finding in findings])
    losing = sum(finding.severity == "loses data" for finding in findings)
    if losing:
        raise KarmalakeError(f"{settings.kafka.topic}: {losing} that may lose events")
    say(f"{settings.kafka.topic}: nothing that may lose events")


@topics.command()
def describe() -> None:
    """Show the topic: its id, its partitions and what they hold."""
    from pipelines.bus.topics import describe_topic  # noqa: PLC0415

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


def simulate(
    events: Annotated[int, typer.Option(min=200, help="How many distinct valid events.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same world.")] = 1,
    days: Annotated[int, typer.Option(min=1, help="How many days the events are spread over.")] = 90,
    end: Annotated[str | None, typer.Option(help="When the world ends, ISO 8601; now by default.")] = None,
) -> None:
    """Publish a made-up world of rides and a marketplace, with the faults of real ones; says what it planted."""
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from pipelines.emit.producer import produce_records  # noqa: PLC0415
    from pipelines.simulate.simulator import simulate as simulate_world  # noqa: PLC0415

    kafka = current_settings().kafka
    ensure_topic(kafka)
    world = simulate_world(seed, events, days=days, end=instant(end))
    with progress(f"simulating on {kafka.topic}", world.planted.sent) as advance:
        sent = produce_records(kafka, advance.over(world.records))
    show_planted(world.planted)
    say(f"{sent.records:,} records sent to {kafka.topic} in {sent.seconds:.1f} s")


def show_planted(planted: "Planted") -> None:
    """Print what a simulation holds, so that it can be held against what the lake says."""
    facts(
        [
            ("sent", planted.sent),
            ("distinct events", planted.distinct),
            ("duplicates", planted.duplicates),
            ("conflicts", planted.conflicts),
            ("malformed", sum(planted.malformed.values())),
            ("mis-keyed", planted.mis_keyed),
            ("out of order", planted.out_of_order),
            ("over a day late", planted.late),
            ("users", planted.users),
        ]
    )


def _retention(hours: float | None) -> str | None:
    match hours:
        case None:
            return None
        case -1:
            return "forever"
        case _:
            return f"{hours:g} h"
