"""The commands that move events and scores: drain, skip, stream, refresh, rebuild, publish, compact, vacuum, verify."""

import signal
import threading
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.cli.options import MetricsPort, current_settings, instant, with_metrics_port
from pipelines.cli.output import facts, progress, say, say_metrics, say_verdict, table, warn
from pipelines.errors import KarmalakeError, RejectedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from pipelines.lake.commit import CommitRecord
    from pipelines.operate.check import Check
    from pipelines.reputation.derive import Derived
    from pipelines.serving.publish import Published

_LABELS = {"dead_letters": "dead letters", "mis_keyed": "mis-keyed"}
_COUNTS = ("read", "accepted", "duplicates", "conflicts", "dead_letters")


def drain(
    max_batches: Annotated[int | None, typer.Option(min=1, help="Stop after this many commits.")] = None,
    accept_loss: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--accept-loss", help="Write lost records into the commits table and read on.")
    ] = False,
    accept_rejections: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC-PARTITION",
            help="Drain this topic partition only, rejected records as dead letters, however many; may be repeated.",
        ),
    ] = None,
) -> None:
    """Move everything on the bus into the lake, each event once, and end.

    Kill it whenever you like: the next drain goes on from the last commit.
    """
    import pipelines.drain as ingest  # noqa: PLC0415
    from pipelines.operate.skip import partition_named  # noqa: PLC0415

    settings = current_settings()
    accepted = [partition_named(settings, name) for name in accept_rejections or ()]
    records: list[CommitRecord] = []
    with ingest.open_drain(settings, accepted) as opened, progress(f"draining {settings.kafka.topic}") as advance:
        if accept_loss:
            _report_loss(ingest.accept_loss(opened))

        def report(record: "CommitRecord") -> None:
            records.append(record)
            advance(record.total("read"))

        try:
            ingest.drain(opened, report, max_batches)
        except RejectedError:
            show_drained(records)  # of the topic partitions that went on
            raise
    show_drained(records)


def skip(
    place: Annotated[str, typer.Argument(metavar="TOPIC-PARTITION@OFFSET", help="Where it stands, as errors say.")],
    why: Annotated[str, typer.Option(help="Stays on the record.")],
) -> None:
    """Set one record aside as a dead letter, without decoding it, so that ingest gets past it.

    What stands before it in its topic partition is drained first. `karmalake dead-letters requeue` decodes it later.
    """
    from pipelines.operate.skip import skip as set_aside  # noqa: PLC0415

    with progress("skipping"):
        done = set_aside(current_settings(), place, why)
    say(f"{done.skipped} is a dead letter now; {done.drained:,} records before it were drained")


def show_drained(records: "list[CommitRecord]") -> None:
    """Print what a drain did, and warn of what a person should look into."""
    totals = ((count.replace("_", " "), sum(record.total(count) for record in records)) for count in _COUNTS)
    facts([("commits", len(records)), *totals])
    mis_keyed = sum(record.mis_keyed for record in records)
    if mis_keyed:
        warn(f"{mis_keyed:,} accepted records have a key that is not their user_id: their order on the bus is not kept")


def stream(metrics_port: MetricsPort = None) -> None:
    """Drain for ever; derive and publish after every commit. SIGTERM or Ctrl-C ends it cleanly."""
    import pipelines.stream as streaming  # noqa: PLC0415
    from pipelines.monitoring.monitor import each, monitoring_stream  # noqa: PLC0415

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _set(stopping))
    settings = with_metrics_port(current_settings(), metrics_port)
    with monitoring_stream(settings) as observer:
        say(f"streaming {settings.kafka.topic}; Ctrl-C ends it")
        say_metrics(observer.monitor.address)
        on_commit, on_refresh = each(_say_commit, observer.committed), each(_say_refresh, observer.refreshed)
        streaming.stream(
            settings, stopping, on_commit, on_refresh, observer.monitor.turned, observer.halted, observer.copied
        )
    say("ended; everything that was committed is published")


def refresh() -> None:
    """Bring warehouse.duckdb up to the lake and to now, computing only what was touched since the last time."""
    from pipelines.refresh import refresh_warehouse  # noqa: PLC0415

    settings = current_settings()
    with progress("refreshing"):
        derived = refresh_warehouse(settings)
    show_derived(derived)


def rebuild(
    as_of: Annotated[str | None, typer.Option(help="Scores as of this time instead of now, ISO 8601.")] = None,
    engine: Annotated[
        Literal["duckdb", "spark"], typer.Option(help="What computes it: Spark for more than one machine holds.")
    ] = "duckdb",
) -> None:
    """Derive warehouse.duckdb from the lake, from nothing. Readers keep theirs until it is whole."""
    from pipelines.refresh import rebuild_warehouse  # noqa: PLC0415
    from pipelines.reputation.engines import engine_named  # noqa: PLC0415

    settings = current_settings()
    with progress("deriving"):
        derived = rebuild_warehouse(settings, instant(as_of), engine_named(engine))
    show_derived(derived)


def show_derived(derived: "Derived") -> None:
    """Print what a derivation did."""
    facts(
        [
            ("warehouse", derived.path),
            ("lake version", derived.lake_version),
            ("as of", derived.as_of),
            ("events", derived.events),
            ("counted", derived.counted),
            ("users scored", derived.users),
            ("of them anew", derived.touched),
            ("from nothing", f"yes: {derived.rebuilt}" if derived.rebuilt else "no, by what was touched"),
            ("seconds", derived.seconds),
        ]
    )


def publish(
    full: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--full", help="Write every document, and delete what does not belong there.")
    ] = False,
) -> None:
    """Publish the warehouse's documents to Redis: those that changed, or all if Redis lost them.

    With --full after something else wrote, deleted or evicted documents, which nothing but `verify` notices.
    """
    from pipelines.refresh import publish_everything, publish_warehouse  # noqa: PLC0415

    engine = publish_everything if full else publish_warehouse
    with progress("publishing"):
        published = engine(current_settings())
    show_published(published)


def show_published(published: "Published") -> None:
    """Print what a publication did."""
    facts(
        [
            ("written", published.written),
            ("deleted", published.deleted),
            ("unchanged", published.unchanged),
            ("in full", published.full),
            ("seconds", published.seconds),
        ]
    )


def compact() -> None:
    """Merge small files, sorted by user. Safe beside ingest, and beside another compaction."""
    from pipelines.lake import upkeep  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415

    settings = current_settings()
    with progress("compacting") as advance:
        done = upkeep.compact(open_lake(settings.lake_root), settings.lake.compact_after_files, lambda _: advance(1))
    rows = [(c.table, c.days, c.files_before, c.files_after, c.rows) for c in done]
    table(("table", "days", "files before", "after", "rows"), rows) if rows else say("nothing to compact")


def vacuum() -> None:
    """Delete files that no recent version of the lake names, orphans of crashes included."""
    from pipelines.lake import upkeep  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415

    settings = current_settings()
    removed = upkeep.vacuum(open_lake(settings.lake_root), settings.lake.vacuum_retention_hours)
    say(f"{len(removed):,} files removed; files younger than {settings.lake.vacuum_retention_hours:g} h stay")


def verify() -> None:
    """Reconcile everything: offsets, events, dead letters, conflicts, the cache. Exits 1 if a check fails."""
    from pipelines.lake.history import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.operate.verify import totals  # noqa: PLC0415
    from pipelines.operate.verify import verify as checks  # noqa: PLC0415

    settings = current_settings()
    done = totals(take_snapshot(open_lake(settings.lake_root)))
    facts([(_LABELS.get(name, name), getattr(done, name)) for name in type(done).__slots__])
    failed = sum(show_check(check) for check in checks(settings))
    if failed:
        raise KarmalakeError(f"{failed} checks failed")


def show_check(check: "Check") -> bool:
    """Print a check with its evidence; return whether it failed."""
    say_verdict(check.name, check.promise, passed=check.passed)
    if check.evidence:
        say(f"            {check.evidence}")
    return check.passed is False


def _set(event: threading.Event) -> "Callable[[int, FrameType | None], None]":
    return lambda _number, _frame: event.set()


def _report_loss(record: "CommitRecord | None") -> None:
    if record is None:
        say("nothing is lost: every checkpoint is within its log")
    else:
        warn(str(record.note))


def _say_commit(record: "CommitRecord") -> None:
    counts = ", ".join(f"{record.total(count):,} {count.replace('_', ' ')}" for count in _COUNTS)
    say(f"commit {record.version}: {counts}")


def _say_refresh(derived: "Derived", published: "Published") -> None:
    seconds = derived.seconds + published.seconds
    say(f"served version {derived.lake_version}: {published.written:,} documents written in {seconds:.2f} s")
