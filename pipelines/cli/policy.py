"""The commands of policies: list, check, test, diff, activate.

Owns their output; `reputation/policy` defines the language, `reputation/compare.py` the comparison.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import chosen_policy, current_settings, instant
from pipelines.cli.output import print_fields, print_line, print_table
from pipelines.cli.pipeline import publish, refresh
from pipelines.cli.policy_cases import check_cases
from pipelines.cli.rows import Format, write

if TYPE_CHECKING:
    import polars as pl

    from pipelines.reputation.policy import Policy, Rules
    from pipelines.reputation.policy.actions import Adjustment

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
    print_line(f"\nin force: {in_force.name}, version {in_force.version}")
    print_line("KARMALAKE_REPUTATION_POLICY sets the initial policy; `karmalake policy activate` changes it")


@policy.command()
def check(file: Annotated[str, typer.Argument(help="A policy file, or the name of a shipped policy.")]) -> None:
    """Check a policy file: report errors by file and line, or summarize its rules."""
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    rules = load_policy(file)
    print_line(f"{file} is a valid policy.")
    print_fields([("name", rules.name), ("description", rules.description or "(no description)"), *_versions(rules)])


policy.command("test")(check_cases)


@policy.command()
def diff(
    before: Annotated[str, typer.Argument(help="A shipped policy or a policy file.")],
    after: Annotated[str, typer.Argument(help="The policy to compare it with.")],
    as_of: Annotated[str | None, typer.Option(help="Compare scores as of this time, ISO 8601; now by default.")] = None,
    form: Annotated[
        Format, typer.Option("--format", help="Output format; except for table, one row per user.")
    ] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write one row per user to this file.")] = None,
) -> None:
    """Compare the all-time scores of all users under two policies: gains, losses and ranks. Changes nothing."""
    from pipelines.lake.commit_log import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation.compare import compare_policies  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    policies = load_policy(before), load_policy(after)
    moment = instant(as_of) or datetime.now(UTC)
    frame = compare_policies(take_snapshot(open_lake(current_settings().lake_root)), *policies, moment)
    if form is not Format.TABLE or output is not None:
        write(frame, form, output)
        return
    print_line(f"{before} -> {after}, all-time scores of {frame.height:,} users as of {moment:%Y-%m-%d %H:%M:%SZ}\n")
    _compare(frame)


@policy.command()
def activate(file: Annotated[str, typer.Argument(help="A policy file, or the name of a shipped policy.")]) -> None:
    """Put a policy in force: record it in the lake, recompute the scores by it, and publish them.

    Without a document store the scores are in the warehouse only. An invalid policy changes nothing. A running
    `karmalake stream` applies the new policy automatically.
    """
    from pipelines.lake.tables import create_lake  # noqa: PLC0415
    from pipelines.reputation.activation import activate as activate_policy  # noqa: PLC0415
    from pipelines.reputation.derive import is_draft_open  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    settings, rules = current_settings(), load_policy(file)
    if not activate_policy(create_lake(settings.lake_root), rules):
        print_line(f"{rules.name}, version {rules.version}, is already in force")
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


def _versions(rules: "Policy") -> list[tuple[str, str]]:
    """Return the rules of each version as lines of name and text."""
    lines: list[tuple[str, str]] = []
    if len(rules.versions) > 1:
        lines.append(("mode", rules.mode))
    for version in rules.versions:
        since = f", from {version.effective_from:%Y-%m-%d %H:%M %Z} on" if version.effective_from else ""
        lines.append(("version", f"{version.version}{since}"))
        lines += [(name, text) for name, text in _rules(version) if text]
    return lines


def _rules(rules: "Rules") -> list[tuple[str, str]]:
    decay = f"; points decay every {rules.decay_step_minutes} minutes" if rules.decays else ""
    bounds = {"start": rules.score.start or None, "floor": rules.score.floor, "ceiling": rules.score.ceiling}
    adjustment = rules.adjustment
    caps = (
        f"{name}: {cap.maximum:f} {f'per {cap.period}' if cap.period else 'in all'}" for name, cap in rules.caps.items()
    )
    return [
        ("  views", _join(("all time", *(f"{days} days" for days in rules.windows_days)))),
        ("  actions", f"{_join(rules.actions)}{decay}"),
        ("  score", _join(f"{name} {value:f}" for name, value in bounds.items() if value is not None)),
        ("  conditions", _join(f"{key} of {action}" for action, key, _ in rules.conditions)),
        ("  completion", _join(rules.completion)),
        ("  once", _join(rules.once)),
        ("  caps", _join(caps)),
        ("  measures", _join(rules.all_measures)),
        ("  suspension", rules.status.rule if rules.status.suspend else ""),
        ("  retraction", _join(rules.retraction.actions)),
        ("  correction", _join(rules.correction.actions)),
        ("  adjustment", f"{adjustment.action}: {_bounds(adjustment)}" if adjustment else ""),
    ]


def _bounds(adjustment: "Adjustment") -> str:
    return f"{adjustment.points.minimum:f} to {adjustment.points.maximum:f} points"


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
