"""The commands of the pipeline, from drain, ingest, stream and serve to compact, vacuum and verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.boundary.text import amount
from pipelines.cli.options import MetricsPort, current_settings, instant, topic_settings, with_metrics_port
from pipelines.cli.output import (
    print_check,
    print_fields,
    print_line,
    print_metrics_address,
    print_table,
    print_warning,
    progress,
)
from pipelines.cli.signals import stop_on_signals
from pipelines.errors import KarmalakeError, RejectedError
from pipelines.ingest.malloc import explain_malloc

if TYPE_CHECKING:
    from pipelines.lake.commit import CommitRecord
    from pipelines.operate.check import Check
    from pipelines.reputation.derive import DerivationResult
    from pipelines.serving.publish import PublishResult
    from pipelines.settings import Settings

_LABELS = {"dead_letters": "dead letters", "mis_keyed": "mis-keyed"}
_USUAL = ("read", "filtered", "accepted", "duplicates", "conflicts", "dead_letters")
"""The counts of a commit that are printed always; the others where there are any."""
_SUMS = ("converted", "made")
"""Counts that are sums of others."""


def drain(
    max_batches: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Stop after this many commits.")
    ] = None,
    accept_loss: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--accept-loss", help="Record lost records in the table commits, and continue after them.")
    ] = False,
    accept_rejections: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC-PARTITION",
            help="Drain only this topic partition, and accept any number of dead letters. Repeatable.",
        ),
    ] = None,
) -> None:
    """Ingest everything on the bus into the lake, each event exactly once, and exit.

    Safe to kill: the next drain continues from the last commit.
    """
    import pipelines.drain as ingest  # noqa: PLC0415
    from pipelines.ingest.sources import require_topics  # noqa: PLC0415
    from pipelines.operate.skip import parse_partition  # noqa: PLC0415

    settings = current_settings()
    for option, given in {"accept-loss": accept_loss, "accept-rejections": accept_rejections}.items():
        if given:
            require_topics(settings, f"`karmalake drain --{option}`")
    accepted = [parse_partition(settings, name) for name in accept_rejections or ()]
    records: list[CommitRecord] = []
    with ingest.open_drain(settings, accepted) as opened, progress(f"draining {bus_name(settings)}") as advance:
        if accept_loss:
            _print_loss(ingest.accept_loss(opened))

        def report(record: "CommitRecord") -> None:
            records.append(record)
            advance(record.total("read"))

        try:
            ingest.drain(opened, report, max_batches)
        except RejectedError:
            show_drained(records)  # those of the topic partitions that were not halted
            raise
    show_drained(records)


def skip(
    place: Annotated[
        str, typer.Argument(metavar="TOPIC-PARTITION@OFFSET", help="The record, as named in error messages.")
    ],
    why: Annotated[str, typer.Option(help="The reason, recorded with the dead letter.")],
) -> None:
    """Skip one record that stops ingest: commit it as a dead letter without decoding it.

    Drains the records before it in its topic partition first. `karmalake dead-letters requeue` decodes it later.
    """
    from pipelines.operate.skip import skip as skip_record  # noqa: PLC0415

    with progress("skipping"):
        done = skip_record(topic_settings("skip"), place, why)
    print_line(f"{done.skipped} is now a dead letter; drained {amount(done.drained, 'record')} before it")


def bus_name(settings: "Settings") -> str:
    """Return the names of the topics that are ingested, or of the queue."""
    from pipelines.ingest.sources import topic_sources  # noqa: PLC0415

    return f"from {settings.queue.kind}" if settings.queue.kind else ", ".join(topic_sources(settings))


def _totals(records: "list[CommitRecord]") -> list[tuple[str, int]]:
    """Return the counts of commits by name, so that the offsets, the records and the events add up."""
    from pipelines.lake.tables import COUNTS  # noqa: PLC0415

    rare = [count for count in COUNTS if count not in (*_USUAL, *_SUMS)]
    totals = [(count, sum(record.total(count) for record in records)) for count in (*_USUAL, *rare)]
    return [(count.replace("_", " "), number) for count, number in totals if number or count in _USUAL]


def show_drained(records: "list[CommitRecord]") -> None:
    """Print the totals of a drain, with a warning about mis-keyed records."""
    print_fields([("commits", len(records)), *_totals(records)])
    mis_keyed = sum(record.mis_keyed for record in records)
    if mis_keyed:
        print_warning(
            f"{mis_keyed:,} accepted records have a key other than their user_id: the bus does not preserve their order"
        )


def ingest(metrics_port: MetricsPort = None) -> None:
    """Drain continuously, without deriving or publishing: `stream` or Dagster does that.

    Run it for further ingesters of one lake, with the setting ingest.share_partitions. SIGTERM or Ctrl-C stops it
    within 5 s: a commit under way is finished, and a batch that is only read is read again. A kill loses nothing.
    """
    stopping = stop_on_signals()
    import pipelines.ingester as ingesting  # noqa: PLC0415
    from pipelines.monitoring.monitor import call_all, monitor_ingest  # noqa: PLC0415

    settings = with_metrics_port(current_settings(), metrics_port)
    with monitor_ingest(settings) as observer:
        print_line(f"ingesting {bus_name(settings)}; Ctrl-C stops it")
        print_metrics_address(observer.monitor.address)
        on_commit = call_all(_print_commit, observer.committed)
        ingesting.ingest(settings, stopping, on_commit, observer.monitor.record_turn, observer.halted, observer.copied)
    print_line("stopped; what is not committed is read again at the next start")


def stream(metrics_port: MetricsPort = None) -> None:
    """Drain, derive and publish continuously. SIGTERM or Ctrl-C stops it cleanly.

    Then Redis has everything committed; warehouse.duckdb follows at the next start, or by `karmalake refresh`.
    """
    stopping = stop_on_signals()
    import pipelines.stream as streaming  # noqa: PLC0415
    from pipelines.monitoring.monitor import call_all, monitor_stream  # noqa: PLC0415

    settings = with_metrics_port(current_settings(), metrics_port)
    with monitor_stream(settings) as observer:
        print_line(f"streaming {bus_name(settings)}; Ctrl-C stops it")
        _print_malloc()
        print_metrics_address(observer.monitor.address)
        on_commit = call_all(_print_commit, observer.committed)
        on_refresh = call_all(_print_refresh, observer.refreshed)
        is_current = streaming.stream(
            settings,
            stopping,
            on_commit,
            on_refresh,
            observer.monitor.record_turn,
            observer.halted,
            observer.copied,
            observer.relayed,
        )
    _print_stopped(is_current=is_current)


def serve(metrics_port: MetricsPort = None) -> None:
    """Derive and publish continuously what others ingest. SIGTERM or Ctrl-C stops it cleanly.

    Beside `karmalake ingest`, or for another policy than the one in force (the setting reputation.pinned). Waits for
    the lake if there is none yet: it never creates one.
    """
    stopping = stop_on_signals()
    import pipelines.stream as streaming  # noqa: PLC0415
    from pipelines.monitoring.monitor import call_all, monitor_serve  # noqa: PLC0415

    settings = with_metrics_port(current_settings(), metrics_port)
    with monitor_serve(settings) as monitor:
        print_line(f"serving {settings.document_store.prefix} from {settings.lake_root}; Ctrl-C stops it")
        _print_malloc()
        print_metrics_address(monitor.address)
        on_refresh = call_all(_print_refresh, monitor.metrics.refreshed)
        is_current = streaming.serve(settings, stopping, on_refresh, monitor.record_turn, monitor.metrics.relayed)
    _print_stopped(is_current=is_current)


def _print_malloc() -> None:
    if advice := explain_malloc():
        print_line(advice)


def _print_stopped(*, is_current: bool) -> None:
    published = "everything committed is published" if is_current else "the next start publishes what is committed"
    print_line(f"stopped; {published}")


def refresh() -> None:
    """Update warehouse.duckdb to the current lake and time: recompute only users affected since the last refresh."""
    from pipelines.refresh import refresh_warehouse  # noqa: PLC0415

    settings = current_settings()
    with progress("refreshing"):
        derived = refresh_warehouse(settings)
    show_derived(derived)
    _warn_of_uncounted(derived.path)
    if derived.rebuild_reason is not None:  # which has read all events, too
        _warn_of_unknown_seeds(settings)


def rebuild(
    as_of: Annotated[str | None, typer.Option(help="Derive scores as of a time, ISO 8601 or now (default).")] = None,
    engine: Annotated[
        Literal["duckdb", "spark"], typer.Option(help="The engine: spark for data beyond one machine.")
    ] = "duckdb",
) -> None:
    """Rebuild warehouse.duckdb from the lake. Readers use the old one until the new one is complete."""
    from pipelines.refresh import rebuild_warehouse  # noqa: PLC0415
    from pipelines.reputation.engines import load_engine  # noqa: PLC0415

    settings = current_settings()
    with progress("deriving"):
        derived = rebuild_warehouse(settings, instant(as_of), load_engine(engine, settings))
    show_derived(derived)
    _warn_of_uncounted(derived.path)
    _warn_of_unknown_seeds(settings)


def _warn_of_unknown_seeds(settings: "Settings") -> None:
    """Name the seeds of the policy in force whom no event names; a failure here does not undo what the command did."""
    from pipelines.best_effort import best_effort  # noqa: PLC0415
    from pipelines.refresh import unknown_seeds_in_force  # noqa: PLC0415

    def warn() -> None:
        for sentence in unknown_seeds_in_force(settings):
            print_warning(sentence)

    best_effort(warn, "looking for the seeds of raters")()


def _warn_of_uncounted(warehouse: Path) -> None:
    """Say how many events no rule of the policy fits, and why."""
    from pipelines.reputation.uncounted import uncounted_in_warehouse  # noqa: PLC0415
    from pipelines.reputation.warehouse_file import attach  # noqa: PLC0415

    with attach(warehouse) as connection:
        for sentence in uncounted_in_warehouse(connection):
            print_warning(sentence)


def show_derived(derived: "DerivationResult") -> None:
    """Print the outcome of a refresh or rebuild."""
    print_fields(
        [
            ("warehouse", derived.path),
            ("lake version", derived.lake_version),
            ("as of", derived.as_of),
            ("events", derived.events),
            ("counted", derived.counted),
            ("users scored", derived.users),
            ("recomputed", derived.affected_users),
            ("mode", f"full rebuild: {derived.rebuild_reason}" if derived.rebuild_reason else "incremental"),
            ("seconds", derived.seconds),
        ]
    )


def publish(
    full: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--full", help="Write every document, and delete all others.")
    ] = False,
) -> None:
    """Publish the warehouse's documents to Redis: those that changed, or all if Redis lost them. A canary's, too.

    Use --full if something else wrote, deleted or evicted documents, which only `verify` detects.
    """
    from pipelines.canary import canary_settings, follow_canary  # noqa: PLC0415
    from pipelines.refresh import publish_everything, publish_warehouse  # noqa: PLC0415

    engine, settings = publish_everything if full else publish_warehouse, current_settings()
    with progress("publishing"):
        published = engine(settings)
    show_published(published)
    if present := follow_canary(settings, repair=full):
        policy, prefix = present.policy, canary_settings(settings).document_store.prefix
        print_line(f"the canary is current, too: {policy.name}, version {policy.version}, at {prefix}:USER")


def show_published(published: "PublishResult") -> None:
    """Print the outcome of a publication."""
    recorded = [] if published.changes is None else [("changes of the feed", published.changes)]
    print_fields(
        [
            ("written", published.written),
            ("deleted", published.deleted),
            ("unchanged", published.unchanged),
            *recorded,
            ("full", published.full),
            ("seconds", published.seconds),
        ]
    )


def compact() -> None:
    """Merge small files of the lake, sorted by user. Safe during ingest and other compactions."""
    from pipelines.lake import upkeep  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415

    settings = current_settings()
    with progress("compacting") as advance:
        done = upkeep.compact(open_lake(settings.lake_root), settings.lake.compact_after_files, lambda _: advance(1))
    rows = [(c.table, c.files_before, c.files_after, c.rows) for c in done]
    print_table(("table", "files before", "after", "rows"), rows) if rows else print_line("nothing to compact")


def vacuum() -> None:
    """Delete files that no recent version of the lake references, and changes of the feed older than feed.keep_days."""
    from pipelines.lake import upkeep  # noqa: PLC0415
    from pipelines.lake.feed_retention import drop_old_changes  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415

    settings = current_settings()
    lake = open_lake(settings.lake_root)
    if dropped := drop_old_changes(lake, settings.feed):
        print_line(f"{amount(dropped, 'change')} of the feed removed; the newest one of each user stays")
    removed = upkeep.vacuum(lake, settings.lake.vacuum_retention_hours)
    print_line(
        f"{amount(len(removed), 'file')} deleted; those younger than {settings.lake.vacuum_retention_hours:g} h "
        f"were kept"
    )


def verify() -> None:
    """Check that offsets, events, dead letters, conflicts and served documents add up. Exits 1 if a check fails."""
    from pipelines.lake.commit_log import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.operate.verify import totals  # noqa: PLC0415
    from pipelines.operate.verify import verify as checks  # noqa: PLC0415

    settings = current_settings()
    done = totals(take_snapshot(open_lake(settings.lake_root)))
    print_fields([(_LABELS.get(name, name), getattr(done, name)) for name in type(done).__slots__])
    failed = sum(show_check(check) for check in checks(settings))
    if failed:
        raise KarmalakeError(f"{amount(failed, 'check')} failed")


def show_check(check: "Check") -> bool:
    """Print a check with its evidence; return whether it failed."""
    print_check(check.name, check.promise, passed=check.passed)
    if check.evidence:
        print_line(f"            {check.evidence}")
    return check.passed is False


def _print_loss(record: "CommitRecord | None") -> None:
    if record is None:
        print_line("nothing is lost: every checkpoint is within its log")
    else:
        print_warning(str(record.note))


def _print_commit(record: "CommitRecord") -> None:
    counts = ", ".join(f"{number:,} {count}" for count, number in _totals([record]))
    print_line(f"commit {record.version}: {counts}")


def _print_refresh(derived: "DerivationResult", published: "PublishResult") -> None:
    seconds = derived.seconds + published.seconds
    recorded = "" if published.changes is None else f", {amount(published.changes, 'change')} of the feed recorded"
    print_line(
        f"served version {derived.lake_version}: {amount(published.written, 'document')} written in {seconds:.2f} s"
        f"{recorded}"
    )
