"""The commands topics and simulate."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount
from pipelines.cli.options import instant, topic_settings
from pipelines.cli.output import print_fields, print_line, print_table, print_warning, progress
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    from pipelines.bus.topics import Topic
    from pipelines.simulate.simulator import Planted

topics = typer.Typer(
    no_args_is_help=True, help="Create the topic of events; check and describe all topics that are ingested."
)


@topics.command()
def ensure() -> None:
    """Create the topic from the [kafka] settings unless it exists; an existing topic is never changed.

    Topics of source files are never created: they belong to the services that write them.
    """
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415

    ensure_topic(topic_settings("topics ensure").kafka)
    describe()


@topics.command()
def check() -> None:
    """Check the topics that are ingested, and that of the feed, for risks of losing records, with advice.

    Exits 1 if there are any.
    """
    from pipelines.operate.topic_check import check_topics  # noqa: PLC0415

    found = check_topics(topic_settings("topics check"))
    rows = [(name, finding.severity, finding.message) for name, findings in found.items() for finding in findings]
    if rows:
        print_table(("topic", "severity", "finding"), rows)
    losing = {name: sum(each.severity == "loses data" for each in findings) for name, findings in found.items()}
    if any(losing.values()):
        risks = (f"{name}: {amount(count, 'risk')} of losing events" for name, count in losing.items())
        raise KarmalakeError("; ".join(risks))
    print_line(f"{', '.join(found)}: no risk of losing events")


@topics.command()
def describe() -> None:
    """Show every topic that is ingested: id, source, replication, retention, and the offsets of each partition."""
    from pipelines.bus.topics import describe_topic  # noqa: PLC0415
    from pipelines.ingest.sources import CONTRACT, explain_missing_topic, topic_sources  # noqa: PLC0415

    settings = topic_settings("topics describe")
    for name, source in topic_sources(settings).items():
        topic = describe_topic(settings.kafka.model_copy(update={"topic": name}))
        if topic is None:
            raise UsageError(explain_missing_topic(settings, name))
        show_topic(topic, source)
        for difference in topic.differences if source == CONTRACT else ():
            print_warning(difference)


def show_topic(topic: "Topic", source: str) -> None:
    """Print a topic."""
    print_fields(
        [
            ("topic", topic.name),
            ("id", topic.topic_id),
            ("source", source),
            ("replication factor", topic.replication_factor),
            ("retention", _retention(topic.retention_hours)),
        ]
    )
    rows = [(p.partition, p.leader, p.begin_offset, p.end_offset) for p in topic.partitions]
    print_table(("partition", "leader", "first offset", "end offset"), rows)


def simulate(
    events: Annotated[int, typer.Option(min=200, max=100_000_000, help="Number of distinct valid events.")] = 200_000,
    seed: Annotated[
        int, typer.Option(min=0, max=4_294_967_295, help="Random seed; the same seed generates the same events.")
    ] = 1,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Number of days that the events cover.")] = 90,
    end: Annotated[str | None, typer.Option(help="End of the simulated time, ISO 8601 or now (default).")] = None,
) -> None:
    """Publish simulated events of rides and a marketplace, with realistic faults, and print what was injected."""
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from pipelines.emit.producer import produce_records  # noqa: PLC0415
    from pipelines.simulate.simulator import simulate as simulate_world  # noqa: PLC0415

    kafka = topic_settings("simulate").kafka
    ensure_topic(kafka)
    world = simulate_world(seed, events, days=days, end=instant(end))
    with progress(f"simulating on {kafka.topic}", world.planted.sent) as advance:
        sent = produce_records(kafka, advance.over(world.records))
    show_planted(world.planted)
    print_line(f"{amount(sent.records, 'record')} sent to {kafka.topic} in {sent.seconds:.1f} s")


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
