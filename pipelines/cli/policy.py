"""The commands about policies: what there is, what a file says, and what a change of policy would do.

Owns how they are shown; the language is `reputation/policy`, the comparison `reputation/compare.py`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.flow import publish, refresh
from pipelines.cli.options import chosen_policy, current_settings, instant
from pipelines.cli.output import facts, say, table
from pipelines.cli.rows import Format, write

if TYPE_CHECKING:
    import polars as pl

    from pipelines.reputation.policy import Policy, Rules

_MOVERS = 10
policy = typer.Typer(
    help="Look at policies, check one, see what another one would change, put it in force.", no_args_is_help=True
)


@policy.command("list")
def list_policies() -> None:
    """Show the policies that come with karmalake, and which policy is in force."""
    from pipelines.reputation.policy_file import load_policy, shipped_policies  # noqa: PLC0415

    shipped = [(name, load_policy(name)) for name in shipped_policies()]
    table(["policy", "version", "what it is"], [(name, rules.version, rules.description) for name, rules in shipped])
    in_force = chosen_policy(None, None)
    say(f"\nin force: {in_force.name}, version {in_force.version}")
    say("KARMALAKE_REPUTATION_POLICY names the first one, a name or a path; `karmalake policy activate` the next")


@policy.command()
def check(file: Annotated[str, typer.Argument(help="A policy file, or the name of a shipped policy.")]) -> None:
    """Read a policy: explain its mistakes by file and line, or say what it holds. Exits 2 on a mistake."""
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    rules = load_policy(file)
    say(f"{file} is a policy.")
    facts([("name", rules.name), ("what it is", rules.description or "(no description)"), *_versions(rules)])


@policy.command()
def diff(
    before: Annotated[str, typer.Argument(help="A shipped policy or a file.")],
    after: Annotated[str, typer.Argument(help="The policy to compare it with.")],
    as_of: Annotated[str | None, typer.Option(help="As of this time instead of now, ISO 8601.")] = None,
    form: Annotated[Format, typer.Option("--format", help="Other than table: a row a user.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write a row a user to this file.")] = None,
) -> None:
    """Compare everybody's all-time score under two policies: who gains, who loses, how ranks move. Changes nothing."""
    from pipelines.lake.history import take_snapshot  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.reputation.compare import compare_policies  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    policies = load_policy(before), load_policy(after)
    moment = instant(as_of) or datetime.now(UTC)
    frame = compare_policies(take_snapshot(open_lake(current_settings().lake_root)), *policies, moment)
    if form is not Format.TABLE or output is not None:
        write(frame, form, output)
        return
    say(f"{before} -> {after}, all-time scores of {frame.height:,} users as of {moment:%Y-%m-%d %H:%M:%SZ}\n")
    _compare(frame)


@policy.command()
def activate(file: Annotated[str, typer.Argument(help="A policy file, or the name of a shipped policy.")]) -> None:
    """Put a policy in force from now on: recorded in the lake, scores computed by it and published.

    A policy with a mistake changes nothing. A running `karmalake stream` takes it up by itself.
    """
    from pipelines.lake.tables import create_lake  # noqa: PLC0415
    from pipelines.reputation.activation import activate as put_in_force  # noqa: PLC0415
    from pipelines.reputation.derive import is_kept  # noqa: PLC0415
    from pipelines.reputation.policy_file import load_policy  # noqa: PLC0415

    settings, rules = current_settings(), load_policy(file)
    if not put_in_force(create_lake(settings.lake_root), rules):
        say(f"{rules.name}, version {rules.version}, is in force already")
        return
    say(f"in force from now on: {rules.name}, version {rules.version}")
    if is_kept(settings.warehouse_path):
        say("another process has the warehouse in work: `karmalake stream` computes the scores anew by itself;")
        say("after any other, run `karmalake refresh` and `karmalake publish`")
        return
    refresh()
    publish()


def _compare(frame: "pl.DataFrame") -> None:
    import polars as pl  # noqa: PLC0415

    change, climb = pl.col("change"), pl.col("rank_before") - pl.col("rank_after")
    gain, lose = frame.filter(change > 0), frame.filter(change < 0)
    up, down = frame.filter(climb > 0).height, frame.filter(climb < 0).height
    facts([("gain", gain.height), ("lose", lose.height), ("stay", frame.height - gain.height - lose.height)])
    facts([("rank up", up), ("rank down", down), ("rank kept", frame.height - up - down)])
    if gain.height + lose.height == 0:
        say("\nnobody moves: the two policies give the same all-time scores (windows and ratings are not compared)")
        return
    say("")
    names = {"before": "score_before", "after": "score_after", "change": "change"}
    header = ["", "lowest", "10 %", "median", "90 %", "highest", "mean"]
    table(header, [(name, *_distribution(frame[column])) for name, column in names.items()])
    for title, movers in {"most gained": gain, "most lost": lose}.items():
        if movers.height:
            say(f"\n{title} ({min(_MOVERS, movers.height):,} of {movers.height:,})")
            table(["user", "before", "after", "change", "rank before", "after"], movers.head(_MOVERS).rows())


def _distribution(values: "pl.Series") -> list[float]:
    numbers = values.to_numpy().astype(float)
    quantiles = (values.quantile(share, "nearest") for share in (0, 0.1, 0.5, 0.9, 1))
    return [*(float(quantile or 0) for quantile in quantiles), float(numbers.mean())]


def _versions(rules: "Policy") -> list[tuple[str, str]]:
    """Return what each version says, a line a subject."""
    lines: list[tuple[str, str]] = []
    if len(rules.versions) > 1:
        lines.append(("mode", rules.mode))
    for version in rules.versions:
        since = f", from {version.effective_from:%Y-%m-%d %H:%M %Z} on" if version.effective_from else ""
        lines.append(("version", f"{version.version}{since}"))
        lines += [(name, text) for name, text in _rules(version) if text]
    return lines


def _rules(rules: "Rules") -> list[tuple[str, str]]:
    decay = "; points decay" if rules.decays else ""
    bounds = {"start": rules.score.start or None, "floor": rules.score.floor, "ceiling": rules.score.ceiling}
    caps = (f"{name}: {cap.maximum:f} a {cap.period}" for name, cap in rules.caps.items())
    return [
        ("  views", _list(("all time", *(f"{days} days" for days in rules.windows_days)))),
        ("  actions", f"{_list(rules.actions)}{decay}"),
        ("  score", _list(f"{name} {value:f}" for name, value in bounds.items() if value is not None)),
        ("  completion", _list(rules.completion)),
        ("  once", _list(rules.once)),
        ("  caps", _list(caps)),
        ("  measures", _list(rules.all_measures)),
        ("  suspension", rules.status.rule if rules.status.suspend else ""),
        ("  retraction", _list(rules.retraction.actions)),
        ("  correction", _list(rules.correction.actions)),
    ]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
