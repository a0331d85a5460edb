"""The commands copy and export."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import current_settings
from pipelines.cli.output import print_fields, print_line, progress


def copy(to: Annotated[str, typer.Argument(help="The target: a folder, or s3://bucket/folder.")]) -> None:
    """Copy the lake to a folder or an object store, and verify every file of the copy.

    Run it again to resume after a kill, or to update the copy. To move the lake: stop ingest, copy again, set
    lake.uri (or data_dir) and start ingest.
    """
    from pipelines.lake.copying import copy_lake  # noqa: PLC0415
    from pipelines.lake.tables import open_lake  # noqa: PLC0415

    lake = open_lake(current_settings().lake_root)
    with progress("copying") as advance:
        done = copy_lake(lake, to, lambda _: advance(1))
    print_fields([("lake version", done.version), ("files", done.files), ("sent", done.sent), ("bytes", done.size)])
    print_line(f"every file of the copy in {to} is identical to that in {lake.root}")


def export(file: Annotated[Path, typer.Argument(help="The file to write.")]) -> None:
    """Write the published warehouse to one DuckDB file to carry away, with all its tables.

    Its views of the lake (events, commits, ...) need the lake's files where they are now.
    """
    from pipelines.reputation.export import export_warehouse  # noqa: PLC0415

    export_warehouse(current_settings().warehouse_path, file)
    print_fields([("bytes", file.stat().st_size)])
    print_line(f"{file} has all tables of the warehouse: any DuckDB opens it")
