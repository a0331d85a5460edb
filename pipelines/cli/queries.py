"""The read-only commands: show, leaderboard, scores, sql, doctor."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.loads import warn_of_withdrawn
from pipelines.cli.options import chosen_policy, current_settings, instant, utf8
from pipelines.cli.output import print_check, print_document, print_line, print_note, print_table, print_warning
from pipelines.cli.rows import Format, rows_file, write, write_relation
from pipelines.errors import KarmalakeError, explain_command

if TYPE_CHECKING:
    from pipelines.settings import Settings


def show(user: Annotated[str, typer.Argument(help="The user_id.")]) -> None:
    """Print the document that Redis serves for a user. Exits 1 if there is none.

    Of an account that was merged into another one, or renamed, it names the current user_id.
    """
    from pipelines.serving.read import published, read_reputation  # noqa: PLC0415

    settings = current_settings()
    document = read_reputation(utf8(user), settings)
    info = published(settings)
    if document is None:
        _refuse_erased(settings, user)
        why = "" if info else ": nothing is published yet, run `karmalake publish`"
        raise KarmalakeError(f"no document for {user!r}{_merged_into(settings, user) or why}")
    print_document(document)
    if info is not None and info.staleness_seconds > settings.reputation.max_staleness_seconds:
        print_warning(f"the document is {info.staleness_seconds:,.0f} s old: is `karmalake stream` running?")


def _refuse_erased(settings: "Settings", user: str) -> None:
    """Raise UsageError if a user was erased, rather than say that nothing was found."""
    from pipelines.lake.tombstones import is_erased  # noqa: PLC0415
    from pipelines.reputation.known_users import erased_user  # noqa: PLC0415

    if is_erased(settings, user):
        raise erased_user(user)


def _merged_into(settings: "Settings", user: str) -> str:
    """Return the end of a sentence about a former user_id; empty for others, and where the lake is not at hand."""
    from pipelines.lake.commit_log import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import is_lake, open_lake  # noqa: PLC0415
    from pipelines.reputation.merged_users import aliases, merges_of  # noqa: PLC0415

    if not is_lake(settings.lake_root):
        return ""
    current = aliases(merges_of(take_snapshot(open_lake(settings.lake_root)))).resolve(user)
    return "" if current == user else f": this account is merged into {current!r}, whose document has its events"


def leaderboard(
    view: Annotated[str, typer.Argument(help="A view listed in `redis.leaderboards`.")] = "all_time",
    top: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of users.")] = 10,
    user: Annotated[
        str | None, typer.Option(help="Print the rank of this user instead. Exits 1 if the user has none.")
    ] = None,
) -> None:
    """Print the users with the highest scores of a view, or one user's rank, as served by Redis.

    A leaderboard within a scope is named as in the setting: all_time.city=berlin.
    """
    from pipelines.serving.read import read_leaderboard, read_rank  # noqa: PLC0415

    settings = current_settings()
    if user is None:
        rows = read_leaderboard(view, settings, top)
        print_table(("rank", "user", "score"), [(row.rank, row.user_id, row.score) for row in rows])
        return
    rank = read_rank(utf8(user), view, settings)
    if rank is None:
        _refuse_erased(settings, user)
        raise KarmalakeError(f"{user!r} is not on the leaderboard of {view}")
    print_line(f"{rank:,}")


def scores(
    as_of: Annotated[str | None, typer.Option(help="Compute scores as of a time, ISO 8601 or now (default).")] = None,
    known_at: Annotated[
        str | None,
        typer.Option(help="Use only what was committed before this time; also the default of --as-of."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="A shipped policy or a policy file; the policy in force by default.")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(help="A scope of the policy, such as city: a row for each user and value; city=berlin: that one."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.CSV,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file, or replace it, instead of standard output.")
    ] = None,
) -> None:
    """Compute the scores of all users from the lake, as of any time and by any policy. Publishes nothing."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from pipelines.lake.commit_log import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation import scores as engine  # noqa: PLC0415
    from pipelines.reputation.lake_views import open_lake_views  # noqa: PLC0415
    from pipelines.reputation.scopes import find_value, rows_of_value  # noqa: PLC0415
    from pipelines.reputation.uncounted import OF_STEPS, explain_uncounted  # noqa: PLC0415

    settings = current_settings()
    known = instant(known_at)
    warn_of_withdrawn(known)
    rules = chosen_policy(policy, known)
    moment = instant(as_of) or known or datetime.now(UTC)
    name, value = find_value(rules.at(moment), utf8(scope)) if scope and "=" in scope else (scope, None)
    with open_lake_views(take_snapshot(open_lake(settings.lake_root))) as connection:
        rows = engine.scores(connection, rules, moment, known, name)
        uncounted = explain_uncounted(connection, rules.at(moment), OF_STEPS)
    write(rows if name is None or value is None else rows_of_value(rows, name, value), form, output)
    for sentence in uncounted:
        print_warning(sentence)


def sql(
    query: Annotated[str, typer.Argument(help="The query, or - to read it from standard input.")],
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file, or replace it, instead of standard output.")
    ] = None,
) -> None:
    """Query the warehouse by SQL: reputation, user_days, trends_*, events, commits, dead_letters and more.

    Accepts one SELECT, which can read only the warehouse and the lake: no files, network or extensions.
    """
    from pipelines.reputation.query_errors import explained  # noqa: PLC0415
    from pipelines.reputation.warehouse import Warehouse  # noqa: PLC0415
    from pipelines.reputation.warehouse_file import Access  # noqa: PLC0415

    text = sys.stdin.read() if query == "-" else query
    settings = current_settings()
    with rows_file() as made:
        access = Access(output=made, limits=settings.queries)
        with Warehouse(settings.warehouse_path, access=access) as warehouse, explained():
            write_relation(warehouse.relation(text), form, made, output)


def doctor() -> None:
    """Check the installation: what is wrong, and how to fix it. Exits 1 if anything is wrong."""
    from pipelines.operate.doctor import diagnose  # noqa: PLC0415

    failed = 0
    for finding in diagnose(current_settings()):
        print_check(f"{finding.subject}: {finding.message}", "", passed=finding.ok)
        if finding.code is not None:
            print_note(f"            see {explain_command(finding.code)}")
        failed += not finding.ok
    if failed:
        raise KarmalakeError(f"{failed} of the checks above failed")
