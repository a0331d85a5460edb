"""The commands of policies: list, check, test, diff, activate, rollback.

Owns their output; `reputation/policy` defines the language, `reputation/compare.py` the comparison.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount
from pipelines.cli.options import chosen_policy, current_settings, instant
from pipelines.cli.output import print_check, print_fields, print_line, print_table, progress
from pipelines.cli.pipeline import publish, refresh
from pipelines.cli.policy_cases import check_cases
from pipelines.cli.rows import Format, write
from pipelines.cli.support import DryRun, Operator
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    import polars as pl

    from pipelines.reputation.activation import Activation
    from pipelines.reputation.diff_gates import Gate
    from pipelines.reputation.policy import Policy
    from pipelines.settings import Settings

_MAX_MOVERS = 10
policy = typer.Typer(help="List, check, test, compare and activate policies.", no_args_is_help=True)


@policy.command("list")
def list_policies() -> None:
    """List the policies that ship with karmalake, and the policy in force."""
    from pipelines.reputation.policy_file import load_policy, shipped_policies  # noqa: PLC0415

    shipped = [(name, load_policy(name)) for name in shipped_policies()]
    print_table(
        ["policy", "version", "description"], [(name, rules.version, rules.description) for name, rules in shipped]
    )
    in_force = chosen_policy(None, None)
    if current_settings().reputation.pinned:
        print_line(f"\npinned by this configuration, whatever is in force: {in_force.name}, version {in_force.version}")
        return
    print_line(f"\nin force: {in_force.name}, version {in_force.version}{_recorded()}")
    if present := _canary():
        print_line(f"canary: {present.policy.name}, version {present.policy.version}{_by(present)}{_served()}")
    print_line("KARMALAKE_REPUTATION_POLICY sets the initial policy; `karmalake policy activate` changes it")


@policy.command()
def check(file: Annotated[str, typer.Argument(help="A policy file, or the name of a shipped policy.")]) -> None:
    """Check a policy file: report errors by file and line, or show everything that it says."""
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415
    from pipelines.reputation.policy_summary import summarize  # noqa: PLC0415

    rules = load_policy(file)
    print_line(f"{file} is a valid policy.")
    print_fields(summarize(rules))


policy.command("test")(check_cases)


@policy.command()
def diff(
    before: Annotated[str, typer.Argument(help="A shipped policy or a policy file.")],
    after: Annotated[str, typer.Argument(help="The policy to compare it with.")],
    as_of: Annotated[str | None, typer.Option(help="Compare scores as of a time, ISO 8601 or now (default).")] = None,
    form: Annotated[
        Format, typer.Option("--format", help="Output format; except for table, one row per user.")
    ] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write one row per user to this file, or replace it.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Exit 1 unless it holds: 'moved_over_10_percent < 1%'; repeatable."),
    ] = None,
) -> None:
    """Compare the all-time scores of all users under two policies: gains, losses and ranks. Changes nothing.

    Measures of a gate: moved, gained, lost, rank_moved and moved_over_N_percent are users, or with % a share of all;
    largest_gain and largest_loss are points.
    """
    from pipelines.lake.commit_log import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation.compare import compare_policies  # noqa: PLC0415
    from pipelines.reputation.diff_gates import parse_gate  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    gates = [parse_gate(text) for text in gate or ()]
    policies = load_policy(before), load_policy(after)
    moment = instant(as_of) or datetime.now(UTC)
    frame = compare_policies(take_snapshot(open_lake(current_settings().lake_root)), *policies, moment)
    if form is not Format.TABLE or output is not None:
        write(frame, form, output)
    else:
        print_line(
            f"{before} -> {after}, all-time scores of {amount(frame.height, 'user')} "
            f"as of {moment:%Y-%m-%d %H:%M:%SZ}\n"
        )
        _compare(frame)
    _require(gates, frame, shown=form is Format.TABLE)


@policy.command()
def activate(
    file: Annotated[str, typer.Argument(help="A policy file, or the name of a shipped policy.")],
    why: Annotated[str | None, typer.Option(help="The reason, recorded with the policy.")] = None,
    operator: Operator = None,
    canary: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--canary", help="Serve it beside the policy in force, under a prefix of its own.")
    ] = False,
) -> None:
    """Put a policy in force: record it in the lake, recompute the scores by it, and publish them.

    Without a document store the scores are in the warehouse only. An invalid policy changes nothing, nor does one that
    lacks, now or in a later version, what a leaderboard ranks: one of redis.leaderboards here or, if the document store
    answers, of the last publication. A running `karmalake stream` applies the new policy automatically.

    With --canary the policy in force stays; putting another one in force, or `policy rollback --canary`, ends the
    canary.
    """
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    if canary:
        _start_canary(load_policy(file), operator, why)
    else:
        _activate(load_policy(file), operator, why)


@policy.command()
def rollback(
    why: Annotated[str, typer.Option("--why", help="The reason, recorded with the policy.")],
    operator: Operator = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a flag
    canary: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--canary", help="End the canary instead; the policy in force stays.")
    ] = False,
) -> None:
    """Return to the policy that was in force before, by an activation of its own: scores are recomputed and published.

    Run it again to return to the other one. It ends a canary, like every activation.
    """
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation.activation import policy_before  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    if canary:
        _end_canary(operator, why, dry_run=dry_run)
        return
    settings = _settings_not_pinned()
    before = policy_before(open_lake(settings.lake_root), lambda: load_policy(settings.reputation.policy))
    if dry_run:
        print_line(f"would be in force: {before.name}, version {before.version}\nnothing was changed")
    else:
        _activate(before, operator, why)


def _who_and_why(operator: str | None, why: str | None) -> tuple[str | None, str | None]:
    """Return operator and reason for the record.

    Pods activate policies, too, and may have no login name: the record then names no operator.
    """
    from pipelines.operate.operator_events import login_name, operator_name, require_text  # noqa: PLC0415

    reason = None if why is None else require_text(why, "the reason (--why)")
    return login_name() if operator is None else operator_name(operator), reason


def _settings_not_pinned() -> "Settings":
    """Return the settings. Raises UsageError where they pin a policy."""
    settings = current_settings()
    if settings.reputation.pinned:
        raise UsageError(
            f"this configuration pins the policy {settings.reputation.policy}, beside the one in force: set "
            "reputation.policy to serve another one here, or run this with the configuration of `karmalake stream`"
        )
    return settings


def _start_canary(rules: "Policy", operator: str | None, why: str | None) -> None:
    """Serve a policy beside the one in force, on the record."""
    from pipelines.canary import canary_settings, follow_canary  # noqa: PLC0415
    from pipelines.lake.tables import create_lake  # noqa: PLC0415
    from pipelines.refresh import policy_in_force, require_publishable  # noqa: PLC0415
    from pipelines.reputation.activation import start_canary  # noqa: PLC0415
    from pipelines.serving.read import published  # noqa: PLC0415

    settings, record = _settings_not_pinned(), _who_and_why(operator, why)
    beside = canary_settings(settings)
    if rules == policy_in_force(settings):
        raise UsageError(f"{rules.name}, version {rules.version}, is in force already: a canary is another policy")
    require_publishable(rules, settings)
    if settings.has_document_store:
        published(beside)  # a store that is down, or refuses this prefix, raises before anything is recorded
    is_new = start_canary(create_lake(settings.lake_root), rules, *record)
    print_line(f"{'canary' if is_new else 'already the canary'}: {rules.name}, version {rules.version}")
    with progress("deriving"):
        follow_canary(settings)
    if settings.has_document_store:
        print_line(f"its documents are at {beside.document_store.prefix}:USER")
    print_line(f"its warehouse is {beside.warehouse_path}")
    print_line("`karmalake stream`, `serve` and `publish` keep it current; the policy in force is as before")


def _end_canary(operator: str | None, why: str, *, dry_run: bool) -> None:
    """End the canary, on the record, and remove its documents and files."""
    from pipelines.canary import follow_canary  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation.activation import end_canary  # noqa: PLC0415

    settings, record = _settings_not_pinned(), _who_and_why(operator, why)
    if dry_run:
        present = _canary()
        what = f"{present.policy.name}, version {present.policy.version}" if present else "there is none"
        print_line(f"the canary that would end: {what}\nnothing was changed")
        return
    ended = end_canary(open_lake(settings.lake_root), record[0], why)
    follow_canary(settings)
    print_line(f"ended, its documents and warehouse are removed: {ended.name}, version {ended.version}")


def _activate(rules: "Policy", operator: str | None, why: str | None) -> None:
    """Put a policy in force, on the record, and recompute and publish the scores unless `stream` does."""
    from pipelines.canary import follow_canary  # noqa: PLC0415
    from pipelines.lake.tables import create_lake  # noqa: PLC0415
    from pipelines.refresh import require_publishable  # noqa: PLC0415
    from pipelines.reputation.activation import activate as activate_policy  # noqa: PLC0415
    from pipelines.reputation.derive import is_draft_open  # noqa: PLC0415

    settings, record = _settings_not_pinned(), _who_and_why(operator, why)
    require_publishable(rules, settings)
    if not activate_policy(create_lake(settings.lake_root), rules, *record):
        print_line(f"{rules.name}, version {rules.version}, is already in force")
        if present := follow_canary(settings):  # completes what a killed command left
            name = f"{present.policy.name}, version {present.policy.version}"
            print_line(f"the canary remains: {name}; `karmalake policy rollback --canary` ends it")
        return
    print_line(f"in force from now on: {rules.name}, version {rules.version}")
    if is_draft_open(settings.warehouse_path):
        print_line(
            "another process holds the warehouse: a running `karmalake stream` recomputes the scores automatically;"
        )
        print_line("otherwise run `karmalake refresh` and `karmalake publish` once it has ended")
        return
    refresh()
    if settings.has_document_store:
        publish()
    else:
        print_line(
            "nothing is published, since no document store is configured (redis.url or cassandra.hosts): the scores "
            "are in the warehouse"
        )
        follow_canary(settings)


def _recorded() -> str:
    """Return since when the policy is in force, by whom and why; nothing before the first activation."""
    from pipelines.lake.tables import is_lake, open_lake  # noqa: PLC0415
    from pipelines.reputation.activation import activations  # noqa: PLC0415

    root = current_settings().lake_root
    past = activations(open_lake(root)) if is_lake(root) else []
    if not past:
        return ""
    return _by(past[-1])


def _by(recorded: "Activation") -> str:
    by = f" by {recorded.operator}" if recorded.operator else ""
    return f", since {recorded.since:%Y-%m-%d %H:%M:%SZ}{by}" + (f": {recorded.why}" if recorded.why else "")


def _canary() -> "Activation | None":
    from pipelines.lake.tables import is_lake, open_lake  # noqa: PLC0415
    from pipelines.reputation.activation import canary  # noqa: PLC0415

    root = current_settings().lake_root
    return canary(open_lake(root)) if is_lake(root) else None


def _served() -> str:
    """Return where the canary is served and as of when, as lines to print."""
    from pipelines.canary import canary_settings  # noqa: PLC0415
    from pipelines.refresh import open_published  # noqa: PLC0415

    settings = current_settings()
    beside = canary_settings(settings)
    where = f"\n  documents at {beside.document_store.prefix}:USER" if settings.has_document_store else ""
    warehouse = open_published(beside.warehouse_path)
    if warehouse is None:
        return f"{where}\n  not computed on this machine yet: repeat `karmalake policy activate --canary`"
    with warehouse:
        info = warehouse.info
    reflects = f"lake version {info.lake_version} as of {info.as_of:%Y-%m-%d %H:%M:%SZ}"
    return f"{where}\n  {beside.warehouse_path} reflects {reflects}"


def _require(gates: "list[Gate]", frame: "pl.DataFrame", *, shown: bool) -> None:
    """Print each gate with its value, if `shown`. Raises KarmalakeError, naming those that do not hold."""
    from pipelines.reputation.diff_gates import check_gate  # noqa: PLC0415

    results = [check_gate(gate, frame) for gate in gates]
    values = [f"{result.value:,.4g} %" if result.gate.is_share else f"{result.value:,f}" for result in results]
    if shown and results:
        print_line("\ngates")
        for result, value in zip(results, values, strict=True):
            print_check(result.gate.text, value, passed=result.holds)
    failed = [
        f"{result.gate.text} (it is {value})" for result, value in zip(results, values, strict=True) if not result.holds
    ]
    if failed:
        raise KarmalakeError(f"{len(failed)} of {amount(len(gates), 'gate')} failed: {'; '.join(failed)}")


def _compare(frame: "pl.DataFrame") -> None:
    import polars as pl  # noqa: PLC0415

    change, climb = pl.col("change"), pl.col("rank_before") - pl.col("rank_after")
    gain, lose = frame.filter(change > 0), frame.filter(change < 0)
    up, down = frame.filter(climb > 0).height, frame.filter(climb < 0).height
    print_fields(
        [("gain", gain.height), ("lose", lose.height), ("unchanged", frame.height - gain.height - lose.height)]
    )
    print_fields([("rank up", up), ("rank down", down), ("rank unchanged", frame.height - up - down)])
    if gain.height + lose.height == 0:
        print_line("\nno change: the two policies give the same all-time scores (windows and ratings are not compared)")
        return
    print_line("")
    names = {"before": "score_before", "after": "score_after", "change": "change"}
    header = ["", "lowest", "10 %", "median", "90 %", "highest", "mean"]
    print_table(header, [(name, *_distribution(frame[column])) for name, column in names.items()])
    for title, movers in {"most gained": gain, "most lost": lose}.items():
        if movers.height:
            print_line(f"\n{title} ({min(_MAX_MOVERS, movers.height):,} of {movers.height:,})")
            print_table(["user", "before", "after", "change", "rank before", "after"], movers.head(_MAX_MOVERS).rows())


def _distribution(values: "pl.Series") -> list[float]:
    numbers = values.to_numpy().astype(float)
    quantiles = (values.quantile(share, "nearest") for share in (0, 0.1, 0.5, 0.9, 1))
    return [*(float(quantile or 0) for quantile in quantiles), float(numbers.mean())]
