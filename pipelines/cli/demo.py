"""`karmalake demo`: everything, once, in about a minute; run again, it adds another world to the same lake."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.bus import show_planted
from pipelines.cli.flow import show_check, show_derived, show_drained, show_published
from pipelines.cli.options import bare_settings
from pipelines.cli.output import facts, progress, say, say_json, say_title, table
from pipelines.errors import KarmalakeError

if TYPE_CHECKING:
    from pipelines.lake.commit import CommitRecord
    from pipelines.settings import Settings
    from pipelines.simulate.simulator import Planted

PROTAGONIST = "driver-ada"
"""Rated, suspended, reinstated, and one rating retracted: her story is in every simulated world."""
_TURNS = """
    SELECT event_time, action_type, metadata['rating'] AS rating
    FROM events
    WHERE user_id = ? AND action_type != 'TransactionCompleted'
    ORDER BY event_time DESC
    LIMIT 14
"""
"""The story has so many turns; another world tells it again."""
_MEANS = {
    "AccountSuspended": "suspended over it",
    "AccountReinstated": "reinstated",
    "RatingRetracted": "the one-star rating is retracted",
}
_COMPARED = ("sent", "accepted", "duplicates", "conflicts", "dead letters")


def demo(
    events: Annotated[int, typer.Option(min=1_000, help="How many distinct valid events.")] = 200_000,
) -> None:
    """Start local services, simulate a world, ingest, derive, publish, verify, and show what came of it."""
    settings = _services()
    before = _lake_version(settings)
    planted = _simulate(settings, seed=before + 1, events=events)
    records = _drain(settings)
    differences = _compare(planted, records, first=before == 0)
    _refresh(settings)
    failed = _verify(settings)
    _show(settings)
    _tell(settings)
    _invite()
    if differences or failed:
        raise KarmalakeError(f"{differences} counts differ from what was planted, {failed} checks failed")


def _services() -> "Settings":
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from pipelines.local.services import start, with_local_endpoints  # noqa: PLC0415

    _step(1, "A broker and a cache")
    bare = bare_settings()
    start(bare)
    settings = with_local_endpoints(bare)
    topic = ensure_topic(settings.kafka)
    say(f"Kafka at {settings.kafka.bootstrap_servers}, topic {topic.name} with {len(topic.partitions)} partitions")
    return settings


def _lake_version(settings: "Settings") -> int:
    """Return how many commits the lake holds: another world each time, the same one on the same lake."""
    from pipelines.lake.tables import create_lake  # noqa: PLC0415

    return create_lake(settings.lake_root).table("events").version()


def _simulate(settings: "Settings", seed: int, events: int) -> "Planted":
    from pipelines.emit.producer import produce_records  # noqa: PLC0415
    from pipelines.simulate.simulator import simulate  # noqa: PLC0415

    _step(2, f"A world of rides and sales, with the faults of a real bus (seed {seed})")
    world = simulate(seed, events)
    with progress("sending", world.planted.sent) as advance:
        sent = produce_records(settings.kafka, advance.over(world.records))
    show_planted(world.planted)
    say(f"sent in {sent.seconds:.1f} s")
    return world.planted


def _drain(settings: "Settings") -> "list[CommitRecord]":
    from pipelines.drain import drain, open_drain  # noqa: PLC0415

    _step(3, "Ingest: each event once")
    records: list[CommitRecord] = []
    with open_drain(settings) as ingest, progress("draining"):
        drain(ingest, records.append)
    show_drained(records)
    return records


def _compare(planted: "Planted", records: "list[CommitRecord]", *, first: bool) -> int:
    """Hold what was found against what was planted; only on a new lake is there nothing else on the bus."""
    if not first:
        return 0
    expected = (planted.sent, planted.distinct, planted.duplicates, planted.conflicts, sum(planted.malformed.values()))
    counts = ("read", "accepted", "duplicates", "conflicts", "dead_letters")
    found = tuple(sum(record.total(count) for record in records) for count in counts)
    table(("", "planted", "found"), zip(_COMPARED, expected, found, strict=True))
    return sum(a != b for a, b in zip(expected, found, strict=True))


def _refresh(settings: "Settings") -> None:
    from pipelines.refresh import publish_warehouse, refresh_warehouse  # noqa: PLC0415

    _step(4, "Scores: derived from the lake, published to Redis")
    with progress("deriving"):
        show_derived(refresh_warehouse(settings))
    with progress("publishing"):
        show_published(publish_warehouse(settings))


def _verify(settings: "Settings") -> int:
    from pipelines.operate.verify import verify  # noqa: PLC0415

    _step(5, "Verify: everything adds up")
    return sum(show_check(check) for check in verify(settings))


def _show(settings: "Settings") -> None:
    from pipelines.serving.read import published, read_reputation  # noqa: PLC0415

    _step(6, f"What an application reads: GET {settings.redis.prefix}:{PROTAGONIST}")
    say_json(read_reputation(PROTAGONIST, settings))
    info = published(settings)
    if info is not None:
        say(f"staleness {info.staleness_seconds:.1f} s, {info.documents:,} documents")


def _tell(settings: "Settings") -> None:
    """Show how a score answers to what happens: before and after each turn of one driver's story."""
    from datetime import timedelta  # noqa: PLC0415

    from pipelines.reputation.warehouse import Warehouse  # noqa: PLC0415

    _step(7, f"The story of {PROTAGONIST}: rated, suspended, reinstated; she disputes the bad rating")
    rows: list[tuple[object, ...]] = []
    with Warehouse(settings.warehouse_path) as warehouse:
        for moment, action, rating in reversed(warehouse.sql(_TURNS, [PROTAGONIST]).rows()):
            before, after = (
                warehouse.as_of(at).explain(PROTAGONIST)["earned"].sum()
                for at in (moment, moment + timedelta(microseconds=1))
            )
            rows.append((f"{moment:%Y-%m-%d}", _MEANS.get(action, f"a ride, {rating} of 5 stars"), before, after))
    table(("day", "what happened", "score before", "after"), rows)
    say("Driving while suspended earned nothing, and the retracted star no longer counts.")
    say("Between the rows, each completed ride earned a point of its own.")


def _invite() -> None:
    _step(8, "Three things to try")
    facts(
        [
            (f"karmalake explain {PROTAGONIST}", "why her score is what it is, point by point"),
            ("karmalake trend review_bombs", "strangers bombed a seller: whom, and when?"),
            ("karmalake dashboard", "the same to look at, in a browser"),
        ]
    )
    say("`karmalake local stop` stops the broker and the cache; the lake stays.")


def _step(number: int, title: str) -> None:
    say_title(f"{number}. {title}")
