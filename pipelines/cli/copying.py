"""The command copy."""

from typing import Annotated

import typer

from pipelines.cli.options import current_settings
from pipelines.cli.output import facts, progress, say


def copy(to: Annotated[str, typer.Argument(help="A folder, or s3://bucket/folder.")]) -> None:
    """Copy the lake to another place, a folder or an object store, and compare every file of the copy.

    Killed half-way, or to bring the copy up to date, run it again. To move: end what ingests, copy once more,
    set lake.uri (or data_dir) and start again.
    """
    from pipelines.lake.copying import copy_lake  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415

    lake = open_lake(current_settings().lake_root)
    with progress("copying") as advance:
        done = copy_lake(lake, to, lambda _: advance(1))
    facts([("lake version", done.version), ("files", done.files), ("sent", done.sent), ("bytes", done.size)])
    say(f"every file of the copy in {to} is the same as in {lake.root}")
