"""A published warehouse as one file to carry away."""

from pathlib import Path

from pipelines.boundary.private_files import make_private_dir
from pipelines.errors import UsageError
from pipelines.reputation.base import write_base
from pipelines.reputation.database_file import remove_database, replace_durably
from pipelines.reputation.lake_views import LAKE_VIEWS
from pipelines.reputation.sql import literal, statement
from pipelines.reputation.warehouse import Access, attach


def export_warehouse(warehouse: Path, file: Path) -> None:
    """Write a published warehouse to one file, which any DuckDB opens; views of the lake still need the lake's files.

    A crash leaves a partial file `{file}.next`, which the next export replaces. Raises UsageError if the file exists,
    and like `attach`.
    """
    if file.exists():
        raise UsageError(f"{file} exists: choose another name, or remove it first")
    make_private_dir(file.parent)
    partial = file.with_name(f"{file.name}.next")
    remove_database(partial)
    with attach(warehouse, Access(all_files=True)) as connection:
        write_base(connection, partial)
        views = dict(connection.execute(statement("export_views")).fetchall())
        connection.execute(f"ATTACH {literal(str(partial))} AS next")
        connection.execute("USE next")
        for name in sorted(views, key=(*LAKE_VIEWS, *views).index):
            connection.execute(views[name])
        connection.execute("USE warehouse")
        connection.execute("DETACH next")
    replace_durably(partial, file)
