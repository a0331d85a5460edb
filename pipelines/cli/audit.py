"""The command audit: an independent proof that nothing is lost or duplicated."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount
from pipelines.cli.options import topic_settings
from pipelines.cli.output import print_document, print_line, print_table, print_warning, progress
from pipelines.errors import KarmalakeError

if TYPE_CHECKING:
    from pipelines.operate.audit import Audit

_COLUMNS = (
    "topic",
    "topic_partition",
    "first_offset",
    "next_offset",
    "converted",
    "filtered",
    "dead_letters",
    "changed",
    "gaps",
    "made",
    "accepted",
    "duplicate_ids",
    "erased",
    "withdrawn",
    "lost",
)


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Prove that no event is lost or duplicated: read topics and lake files again, and account for every offset.

    Uses none of the code of ingest, and is slow accordingly. Exits 1 if anything is lost or duplicated.
    """
    from pipelines.operate.audit import audit as run_audit  # noqa: PLC0415

    with progress("auditing"):
        found = run_audit(topic_settings("audit"))
    rows = [asdict(partition) for partition in found.partitions]
    if as_json:
        print_document(found.totals | {"partitions": rows}, indent=None)
    else:
        print_table(
            [name.replace("_", " ") for name in _COLUMNS], [tuple(row[name] for name in _COLUMNS) for row in rows]
        )
        print_line(f"{amount(found.events, 'event')} in the lake; {_verdict(found)}")
    if found.changed:
        print_warning(
            f"{amount(found.changed, 'record was', 'records were')} only read while their source had another "
            f"text: they are not compared "
            "until `karmalake replay` reads them by the present one"
        )
    if not found.passed:
        examples = [f"{row['topic']}-{row['topic_partition']}@{offset}" for row in rows for offset in row["examples"]]
        raise KarmalakeError(f"{_verdict(found)}; examples of lost events: {', '.join(examples) or 'none'}")


def _verdict(found: "Audit") -> str:
    counts = f"lost {found.lost:,}, duplicated {found.duplicated:,}"
    return f"{counts}; not compared: {amount(found.changed, 'record')}" if found.changed else counts
