"""The command demo: the whole pipeline in about a minute; each run adds other simulated events to the same lake."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount
from pipelines.cli.bus import show_planted
from pipelines.cli.explain import last_level
from pipelines.cli.options import bare_settings
from pipelines.cli.output import print_document, print_fields, print_line, print_table, print_title, progress
from pipelines.cli.pipeline import show_check, show_derived, show_drained, show_published
from pipelines.errors import KarmalakeError

if TYPE_CHECKING:
    from pipelines.lake.commit import CommitRecord
    from pipelines.settings import Settings
    from pipelines.simulate.simulator import Planted

PROTAGONIST = "driver-ada"
"""A driver in every simulation: rated, suspended and reinstated, with one rating retracted."""
_POLICY = "levels-by-city"
"""Put in force on a new lake, unless the settings name another policy than the default."""
_STORY_SQL = """
    SELECT event_time, action_type, metadata['rating'] AS rating, coalesce(metadata['city'], '-') AS city
    FROM events
    WHERE user_id = ? AND action_type != 'TransactionCompleted'
    ORDER BY event_time DESC
    LIMIT 14
"""
"""The last 14 events of the protagonist, which are one simulation's; each run of the demo repeats them."""
_EVENT_LABELS = {
    "AccountSuspended": "suspended over it",
    "AccountReinstated": "reinstated",
    "RatingRetracted": "the one star is retracted",
}
_COUNT_LABELS = ("sent", "accepted", "duplicates", "conflicts", "dead letters")


def demo(
    events: Annotated[int, typer.Option(min=1_000, max=100_000_000, help="Number of distinct valid events.")] = 200_000,
) -> None:
    """Run the whole pipeline once on simulated events, with a local broker and cache, and explain the results."""
    settings = _start_services()
    before = _lake_version(settings)
    planted = _simulate(settings, seed=before + 1, events=events)
    records = _drain(settings)
    differences = _compare(planted, records, first=before == 0)
    if before == 0:
        _activate(settings)
    _refresh(settings)
    failed = _verify(settings)
    _show_document(settings)
    _show_story(settings)
    _suggest_commands()
    if differences or failed:
        differ = amount(differences, "count differs", "counts differ")
        raise KarmalakeError(f"{differ} from what was simulated, {amount(failed, 'check')} failed")


def _start_services() -> "Settings":
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from pipelines.local.services import start, with_local_endpoints  # noqa: PLC0415

    _step(1, "Start a broker and a cache")
    bare = bare_settings()
    start(bare)
    settings = with_local_endpoints(bare)
    topic = ensure_topic(settings.kafka)
    partitions = amount(len(topic.partitions), "partition")
    print_line(f"Kafka at {settings.kafka.bootstrap_servers}, topic {topic.name} with {partitions}")
    return settings


def _lake_version(settings: "Settings") -> int:
    """Return the lake's version, which seeds the simulation: other events on each run."""
    from pipelines.lake.tables import create_lake  # noqa: PLC0415

    return create_lake(settings.lake_root).table("events").version()


def _simulate(settings: "Settings", seed: int, events: int) -> "Planted":
    from pipelines.emit.producer import produce_records  # noqa: PLC0415
    from pipelines.simulate.simulator import simulate  # noqa: PLC0415

    _step(2, f"Simulate rides and sales, with the faults of a real bus (seed {seed})")
    world = simulate(seed, events)
    with progress("sending", world.planted.sent) as advance:
        sent = produce_records(settings.kafka, advance.over(world.records))
    show_planted(world.planted)
    print_line(f"sent in {sent.seconds:.1f} s")
    return world.planted


def _drain(settings: "Settings") -> "list[CommitRecord]":
    from pipelines.drain import drain, open_drain  # noqa: PLC0415

    _step(3, "Ingest: each event exactly once")
    records: list[CommitRecord] = []
    with open_drain(settings) as ingest, progress("draining"):
        drain(ingest, records.append)
    show_drained(records)
    return records


def _compare(planted: "Planted", records: "list[CommitRecord]", *, first: bool) -> int:
    """Return how many counts differ from the simulation; on a new lake only, since others hold earlier events."""
    if not first:
        return 0
    expected = (planted.sent, planted.distinct, planted.duplicates, planted.conflicts, sum(planted.malformed.values()))
    counts = ("read", "accepted", "duplicates", "conflicts", "dead_letters")
    found = tuple(sum(record.total(count) for record in records) for count in counts)
    print_table(("", "simulated", "found"), zip(_COUNT_LABELS, expected, found, strict=True))
    return sum(a != b for a, b in zip(expected, found, strict=True))


def _activate(settings: "Settings") -> None:
    """Put the demo's policy in force; one that was set stays in force."""
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.operate.operator_events import login_name  # noqa: PLC0415
    from pipelines.reputation.activation import activate  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415
    from pipelines.settings import ReputationSettings  # noqa: PLC0415

    if settings.reputation.policy == ReputationSettings().policy and not settings.reputation.pinned:
        activate(open_lake(settings.lake_root), load_policy(_POLICY), login_name(), "the demo")


def _refresh(settings: "Settings") -> None:
    from pipelines.refresh import policy_in_force, publish_warehouse, refresh_warehouse  # noqa: PLC0415

    _step(4, f"Derive scores from the lake by the policy {policy_in_force(settings).name}, and publish them to Redis")
    with progress("deriving"):
        show_derived(refresh_warehouse(settings))
    with progress("publishing"):
        show_published(publish_warehouse(settings))


def _verify(settings: "Settings") -> int:
    from pipelines.operate.verify import verify  # noqa: PLC0415

    _step(5, "Verify: every record is accounted for")
    return sum(show_check(check) for check in verify(settings))


def _show_document(settings: "Settings") -> None:
    from pipelines.serving.read import published, read_reputation  # noqa: PLC0415

    _step(6, f"Read as an application does: GET {settings.redis.prefix}:{PROTAGONIST}")
    print_document(read_reputation(PROTAGONIST, settings))
    info = published(settings)
    if info is not None:
        print_line(f"staleness {info.staleness_seconds:.1f} s, {amount(info.documents, 'document')}")


def _show_story(settings: "Settings") -> None:
    """Show how each event of one driver changes her score."""
    from datetime import timedelta  # noqa: PLC0415

    from pipelines.reputation.warehouse import Warehouse  # noqa: PLC0415

    _step(7, f"The story of {PROTAGONIST}: rated, suspended, reinstated; she disputes the bad rating")
    rows: list[tuple[object, ...]] = []
    with Warehouse(settings.warehouse_path) as warehouse:
        for moment, action, rating, city in reversed(warehouse.sql(_STORY_SQL, [PROTAGONIST]).rows()):
            before, after = (
                warehouse.as_of(at).explain(PROTAGONIST) for at in (moment, moment + timedelta(microseconds=1))
            )
            event = _EVENT_LABELS.get(action, f"a ride, {rating} of 5 stars")
            scores = (each["earned"].sum() for each in (before, after))
            rows.append((f"{moment:%Y-%m-%d}", event, city, *scores, last_level(after) or "-"))
    print_table(("day", "event", "city", "score before", "after", "level"), rows)
    print_line("Rides while suspended earned no points, and the retracted rating no longer counts.")
    print_line("Completed rides, not shown, earned one point each.")


def _suggest_commands() -> None:
    _step(8, "Four things to try")
    print_fields(
        [
            (f"karmalake explain {PROTAGONIST}", "explain her score, point by point"),
            ("karmalake scores --scope city", "list the scores of each city"),
            ("karmalake trend review_bombs", "find the seller that strangers bombed with ratings, and when"),
            ("karmalake dashboard", "browse trends, users and health"),
        ]
    )
    print_line("`karmalake local stop` stops the broker and the cache; the lake stays.")


def _step(number: int, title: str) -> None:
    print_title(f"{number}. {title}")
