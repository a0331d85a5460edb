"""The command audit: nothing lost, nothing doubled, shown by another route than ingest's."""

from dataclasses import asdict
from typing import Annotated

import typer

from pipelines.cli.options import current_settings
from pipelines.cli.output import progress, say, say_json, table
from pipelines.errors import KarmalakeError

_COLUMNS = (
    "topic_partition",
    "first_offset",
    "next_offset",
    "accepted",
    "repeated",
    "dead_letters",
    "erased",
    "absent",
    "lost",
)


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Read the topic again, record by record, and the lake's files raw, and account for every offset.

    By code that shares nothing with ingest, and slowly therefore. Exits 1 if anything is lost or doubled.
    """
    from pipelines.operate.audit import audit as compare  # noqa: PLC0415

    with progress("auditing"):
        found = compare(current_settings())
    rows = [asdict(partition) for partition in found.partitions]
    if as_json:
        totals = {"events": found.events, "lost": found.lost, "doubled": found.doubled}
        say_json(totals | {"partitions": rows}, indent=None)
    else:
        table([name.replace("_", " ") for name in _COLUMNS], [tuple(row[name] for name in _COLUMNS) for row in rows])
        say(f"{found.events:,} events in the lake; lost {found.lost:,}, doubled {found.doubled:,}")
    if not found.passed:
        examples = [f"{row['topic_partition']}@{offset}" for row in rows for offset in row["examples"]]
        counts = f"lost {found.lost:,}, doubled {found.doubled:,}"
        raise KarmalakeError(f"{counts}; lost for example {', '.join(examples) or '-'}")
