"""The commands topics and simulate."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import current_settings, instant
from pipelines.cli.output import print_fields, print_line, print_table, print_warning, progress
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    from pipelines.simulate.simulator import Planted

topics = typer.Typer(no_args_is_help=True, help="Create, check and describe the topic of events.")


@topics.command()
def ensure() -> None:
    """Create the topic from the [kafka] settings unless it exists; an existing topic is never changed."""
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415

    ensure_topic(current_settings().kafka)
    describe()


@topics.command()
def check() -> None:
    """Check the topic for risks of losing events, with advice. Exits 1 if there are any."""
    from pipelines.operate.topic_check import check_topic  # noqa: PLC0415

    settings = current_settings()
    findings = check_topic(settings)
    if findings:
        print_table(("severity", "finding"), [(finding.severity, finding.message) for finding in findings])
    losing = sum(finding.severity == "loses data" for finding in findings)
    if losing:
        raise KarmalakeError(f"{settings.kafka.topic}: {losing} risks of losing events")
    print_line(f"{settings.kafka.topic}: no risk of losing events")


@topics.command()
def describe() -> None:
    """Show the topic: id, replication, retention, and the offsets of each partition."""
    from pipelines.bus.topics import describe_topic  # noqa: PLC0415

    kafka = current_settings().kafka
    topic = describe_topic(kafka)
    if topic is None:
        raise UsageError(f"topic {kafka.topic} does not exist: create it with `karmalake topics ensure`")
    print_fields(
        [
            ("topic", topic.name),
            ("id", topic.topic_id),
            ("replication factor", topic.replication_factor),
            ("retention", _retention(topic.retention_hours)),
        ]
    )
    rows = [(p.partition, p.leader, p.begin_offset, p.end_offset) for p in topic.partitions]
    print_table(("partition", "leader", "first offset", "end offset"), rows)
    for difference in topic.differences:
        print_warning(difference)


def simulate(
    events: Annotated[int, typer.Option(min=200, help="Number of distinct valid events.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed generates the same events.")] = 1,
    days: Annotated[int, typer.Option(min=1, help="Number of days that the events cover.")] = 90,
    end: Annotated[str | None, typer.Option(help="End of the simulated time, ISO 8601; now by default.")] = None,
) -> None:
    """Publish simulated events of rides and a marketplace, with realistic faults, and print what was injected."""
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from pipelines.emit.producer import produce_records  # noqa: PLC0415
    from pipelines.simulate.simulator import simulate as simulate_world  # noqa: PLC0415

    kafka = current_settings().kafka
    ensure_topic(kafka)
    world = simulate_world(seed, events, days=days, end=instant(end))
    with progress(f"simulating on {kafka.topic}", world.planted.sent) as advance:
        sent = produce_records(kafka, advance.over(world.records))
    show_planted(world.planted)
    print_line(f"{sent.records:,} records sent to {kafka.topic} in {sent.seconds:.1f} s")


def show_planted(planted: "Planted") -> None:
    """Print the counts of a simulation, to compare with those of the lake."""
    print_fields(
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
            return "unlimited"
        case _:
            return f"{hours:g} h"
