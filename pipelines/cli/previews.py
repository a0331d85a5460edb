"""The page about what would come of a file or of records: `sources check`, `backfill --dry-run`, `emit --dry-run`."""

from typing import TYPE_CHECKING

from pipelines.boundary.text import amount
from pipelines.cli.output import print_fields, print_line, print_table, print_warning

if TYPE_CHECKING:
    from pipelines.preview import Preview


def show_preview(title: str, found: "Preview", unit: str = "row") -> None:
    """Print first events, fates, reasons with an example, remarks, and what the policy in force makes of the events."""
    form = f" ({found.form})" if found.form else ""
    print_line(f"{title}{form}: the first of {amount(found.rows, unit)} as events")
    print_table(("user_id", "action_type", "event_time", "metadata", "event_id"), found.first_events)
    print_fields(found.fates)
    for reason, rows, example in found.reasons:
        become = "a dead letter" if rows == 1 else "dead letters"
        print_warning(f"{amount(rows, unit)} would be {become}, {reason}: {example}")
    for step in found.notes:
        print_warning(step)
    accepted, scored = dict(found.fates)["accepted"], sum(row[-1] for row in found.scored)
    if scored and accepted:
        known = f", with {scored - accepted:,} that the lake has already," if scored > accepted else ""
        print_line(f"by the policy in force, {found.policy}, they{known} would count as")
        print_table(("action_type", "reason", "events"), found.scored)
