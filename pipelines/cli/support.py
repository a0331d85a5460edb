"""The commands of support: retract, adjust."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import escape_text
from pipelines.cli.options import bare_settings
from pipelines.cli.output import print_fields, print_line, print_warning

if TYPE_CHECKING:
    from decimal import Decimal

    from pipelines.lake.commit import CommitRecord
    from pipelines.operate.operator_events import OperatorEvent

_Why = Annotated[str, typer.Option("--why", help="The reason, recorded with the event.")]
Operator = Annotated[
    str | None, typer.Option("--operator", metavar="NAME", help="Who does it; the login name by default.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")]
_EARNS = {"granted", "capped", "retraction"}


def retract(
    event_id: Annotated[str, typer.Argument(help="The event, as `explain` shows it.")],
    why: _Why,
    operator: Operator = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a flag
) -> None:
    """Retract one event, such as a fake rating: from now on it earns nothing. A retraction cannot be taken back.

    The retraction is an event of the action that the policy in force names, with reason and operator in its metadata.
    Run it again to resume after a kill: it counts once. The next refresh updates the scores.
    """
    import pipelines.operate.operator_events as operate  # noqa: PLC0415

    settings = bare_settings()
    if dry_run:
        _print(operate.preview_retraction(settings, event_id, why, operator))
        print_line("nothing was changed")
    else:
        _print_done(*operate.retract(settings, event_id, why, operator))


def adjust(
    user: Annotated[str, typer.Argument(help="The user_id.")],
    points: Annotated[str, typer.Argument(help="Points to give, or with a minus sign to take.")],
    why: _Why,
    identity: Annotated[
        str | None,
        typer.Option("--id", help="What it is about, such as a ticket: each counts once. Default: points and reason."),
    ] = None,
    operator: Operator = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a flag
) -> None:
    """Give a user points, or take some, within the bounds of the `[adjustment]` of the policy in force.

    The adjustment is an event with reason and operator in its metadata; `retract` takes it back.
    Run it again to resume after a kill: it counts once. The next refresh updates the scores.
    """
    import pipelines.operate.operator_events as operate  # noqa: PLC0415

    settings = bare_settings()
    if dry_run:
        _print(operate.preview_adjustment(settings, user, points, why, operator, identity))
        print_line("nothing was changed")
    else:
        _print_done(*operate.adjust(settings, user, points, why, operator, identity))


def _print_done(prepared: "OperatorEvent", record: "CommitRecord | None") -> None:
    _print(prepared)
    if record is None:
        print_line("nothing to do: an earlier command recorded this")
    else:
        print_line(f"commit {record.version}; `karmalake refresh` or a running stream updates the scores")


def _print(prepared: "OperatorEvent") -> None:
    target = prepared.target
    action, time = prepared.event["action_type"][0].as_py(), prepared.event["event_time"][0].as_py()
    print_fields(
        [
            ("user", escape_text(prepared.user_id)),
            *(
                [("retracts", f"{escape_text(f'{target.event_id}: {target.action_type}')}, {target.event_time:%F %T}Z")]
                if target
                else []
            ),
            ("event", f"{prepared.event_id}: {action}, {time:%F %T}Z"),
            ("reason", prepared.reason),
            ("score", f"{number(prepared.score_before)} -> {number(prepared.score_after)}"),
        ]
    )
    if prepared.reason not in _EARNS:
        print_warning(f"the event changes no score: its reason is {prepared.reason}")


def number(value: "Decimal") -> str:
    """Return points with up to six digits after the point."""
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
