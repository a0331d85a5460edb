"""The commands that only look: show, leaderboard, scores, sql, doctor."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import chosen_policy, current_settings, instant, utf8
from pipelines.cli.output import say, say_json, say_note, say_verdict, table, warn
from pipelines.cli.rows import Format, rows_file, write, write_relation
from pipelines.errors import KarmalakeError, UsageError, help_on


def show(user: Annotated[str, typer.Argument(help="The user_id.")]) -> None:
    """Print the document that Redis serves for a user. Exits 1 when there is none."""
    from pipelines.serving.read import published, read_reputation  # noqa: PLC0415

    settings = current_settings()
    document = read_reputation(utf8(user), settings)
    info = published(settings)
    if document is None:
        why = "" if info else ": nothing is published yet, run `karmalake publish`"
        raise KarmalakeError(f"no document for {user!r}{why}")
    say_json(document)
    if info is not None and info.staleness_seconds > settings.reputation.max_staleness_seconds:
        warn(f"what is served is {info.staleness_seconds:,.0f} s old: is `karmalake stream` running?")


def leaderboard(
    view: Annotated[str, typer.Argument(help="A view that `redis.leaderboards` names.")] = "all_time",
    top: Annotated[int, typer.Option(min=1, help="How many users.")] = 10,
    user: Annotated[str | None, typer.Option(help="Tell this user's rank instead. Exits 1 for who has none.")] = None,
) -> None:
    """Print who has the highest scores of a view, or one user's rank, as Redis serves them."""
    from pipelines.serving.read import read_leaderboard, read_rank  # noqa: PLC0415

    settings = current_settings()
    if user is None:
        rows = read_leaderboard(view, settings, top)
        table(("rank", "user", "score"), [(row.rank, row.user_id, row.score) for row in rows])
        return
    rank = read_rank(utf8(user), view, settings)
    if rank is None:
        raise KarmalakeError(f"{user!r} is not on the leaderboard of {view}")
    say(f"{rank:,}")


def scores(
    as_of: Annotated[str | None, typer.Option(help="As of this time instead of now, ISO 8601.")] = None,
    known_at: Annotated[
        str | None,
        typer.Option(help="Only what was committed before this time; without --as-of, as of this time too."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A shipped policy or a file, instead of the one in force.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = Format.CSV,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Compute the scores of all users from the lake, at any time and by any policy; publishes nothing."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from pipelines.lake.history import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation import scores as engine  # noqa: PLC0415

    settings = current_settings()
    known = instant(known_at)
    rules = chosen_policy(policy, known)
    moment = instant(as_of) or known or datetime.now(UTC)
    write(engine.scores(take_snapshot(open_lake(settings.lake_root)), rules, moment, known), form, output)


def sql(
    query: Annotated[str, typer.Argument(help="A query, or - to read it from standard input.")],
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Query the warehouse, read-only: reputation, user_days, trends_*, events, commits, dead_letters, ...

    One SELECT, which reads nothing but the warehouse and the lake: no file, no address, no extension.
    """
    import duckdb  # noqa: PLC0415

    from pipelines.reputation.warehouse import Access, Warehouse  # noqa: PLC0415

    text = sys.stdin.read() if query == "-" else query
    path = current_settings().warehouse_path
    try:
        with rows_file() as made, Warehouse(path, access=Access(output=made)) as warehouse:
            write_relation(warehouse.relation(text), form, made, output)
    except duckdb.Error as error:
        raise UsageError(f"the query failed: {error}") from None


def doctor() -> None:
    """Look at the set-up and say what is wrong with it, and how to mend it. Exits 1 if something is."""
    from pipelines.operate.doctor import examine  # noqa: PLC0415

    failed = 0
    for finding in examine(current_settings()):
        say_verdict(f"{finding.subject}: {finding.sentence}", "", passed=finding.good)
        if finding.code is not None:
            say_note(f"            see {help_on(finding.code)}")
        failed += not finding.good
    if failed:
        raise KarmalakeError(f"doctor found {failed} that {'is' if failed == 1 else 'are'} wrong, as said above")
