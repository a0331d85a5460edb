"""A published warehouse as one file to carry away."""

from pathlib import Path

import duckdb

from pipelines.boundary.locked_sql import literal
from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import UsageError
from pipelines.reputation.base import write_base
from pipelines.reputation.database_file import replacing
from pipelines.reputation.lake_paths import with_absolute_paths
from pipelines.reputation.lake_views import LAKE_VIEWS
from pipelines.reputation.sql import statement
from pipelines.reputation.warehouse_file import Access, attach


def export_warehouse(warehouse: Path, file: Path) -> None:
    """Write a published warehouse to one file, which any DuckDB opens; views of the lake still need the lake's files.

    A crash leaves a partial file `{file}.next`, which the next export replaces. Raises UsageError if the file exists,
    duckdb.Error when the disk is full or the folder is read-only, and like `attach`.
    """
    if file.exists():
        raise UsageError(f"{file} exists: choose another name, or remove it first")
    make_private_dir(file.parent)
    with replacing(file) as partial, attach(warehouse, Access(all_files=True)) as connection:
        write_base(connection, partial)
        _create_views(connection, warehouse.parent, partial)


def _create_views(connection: duckdb.DuckDBPyConnection, folder: Path, file: Path) -> None:
    """Create the views of the warehouse in a folder in a file with its tables."""
    views = dict(connection.execute(statement("export_views")).fetchall())
    connection.execute(f"ATTACH {literal(str(file))} AS next")
    connection.execute("USE next")
    for name in sorted(views, key=(*LAKE_VIEWS, *views).index):
        connection.execute(with_absolute_paths(folder, views[name]))
    connection.execute("USE warehouse")
    connection.execute("DETACH next")
